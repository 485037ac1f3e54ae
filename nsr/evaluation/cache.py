"""The result cache: a file for each attack and batch of images, so that a killed evaluation resumes.

FOLDER/evaluation.json identifies the evaluation; FOLDER/ATTACK-FINGERPRINT/NUMBER.json holds the outcome of a batch.
Files are written under another name and renamed: each is complete or missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nsr.errors import InputError
from nsr.run.files import write_json


class ResultCache:
    """The cached batches of one evaluation.

    Args:
        folder: of the files; made where it is missing.
        identity: values that must be equal for a result to be reused: network, images, threat model, seed.
        attacks: {name: its settings}; a result is reused for these settings alone.

    Errors:
        InputError: the folder is a file, cannot be made, or caches another evaluation; the difference is named.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], attacks: Mapping[str, Any]):
        self.folder = folder
        self.places = {name: folder / f"{name}-{fingerprint(settings)[:8]}" for name, settings in attacks.items()}
        record = folder / "evaluation.json"
        if record.exists():
            _check_same(json.loads(record.read_text()), identity, folder)
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            wanted = f"it must be a folder that can be made ({error.strerror})"
            raise InputError(f"evaluation.cache is {str(folder)!r}; {wanted}") from None
        write_json(record, dict(identity))

    def read(self, attack: str, number: int) -> Any:
        """Return the cached result of a batch, None where there is none."""
        path = self._path(attack, number)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, attack: str, number: int, result: Any) -> None:
        """Cache the result of a batch."""
        path = self._path(attack, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)

    def _path(self, attack: str, number: int) -> Path:
        return self.places[attack] / f"{number:05}.json"


def fingerprint(content: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def network_fingerprint(net: nn.Module) -> str:
    """Return a hash of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def images_fingerprint(images: Any) -> str:
    """Return a hash of a data set's labels and images, or of the images' paths where they are not in memory."""
    digest = hashlib.sha256(images.labels.numpy().tobytes())
    is_on_disk = hasattr(images, "paths")
    digest.update("\n".join(map(str, images.paths)).encode() if is_on_disk else images.images.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_same(written: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    different = [name for name in {**written, **wanted} if written.get(name) != wanted.get(name)]
    if different:
        name = different[0]
        raise InputError(
            f"{folder} caches another evaluation: {', '.join(different)} differ ({name} was {written.get(name)!r} and "
            f"is {wanted.get(name)!r}); set evaluation.cache to another folder, or leave it out"
        )
