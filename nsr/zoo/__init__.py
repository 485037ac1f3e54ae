"""Trained networks inside the package: 'zoo:NAME' wherever a checkpoint or a weight file is named.

index.json has an entry for each network: the SHA-256 of NAME.safetensors, its data, threat model and accuracies.
NAME.md is its model card. `python -m benchmarks.zoo add RUN NAME` makes all three from a finished run.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from nsr.errors import InputError, check_choice

FOLDER = Path(__file__).parent
PREFIX = "zoo:"


def zoo_index() -> dict[str, dict[str, Any]]:
    """Return {name: entry of the network}."""
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def zoo_file(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the checkpoint that 'zoo:NAME' names, any other path unchanged.

    Errors:
        InputError: there is no such network, or its file is not the one that the index describes.
    """
    if not str(path).startswith(PREFIX):
        return path
    name, index = str(path).removeprefix(PREFIX), zoo_index()
    check_choice(f"the network of {str(path)!r}", name, index)
    file = FOLDER / f"{name}.safetensors"
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != index[name]["sha256"]:
        raise InputError(f"{file} is missing or not the file of the zoo's index; install nsr again")
    return file
