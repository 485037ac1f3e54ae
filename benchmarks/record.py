"""Evidence of a benchmark: what it measured, on which machine and at which commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Hardware, versions and commit."""
    command = ["git", "rev-parse", "HEAD"]
    return {
        "commit": subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def installed(package: str) -> str | None:
    """The version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def append_row(name: str, row: Mapping[str, Any]) -> None:
    """Print a row and append it to benchmarks/results/NAME.jsonl."""
    row = {**row, **machine()}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2), flush=True)
