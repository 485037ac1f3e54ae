"""What an evaluation has finished, on disk: a file for each attack and chunk of images, so that a killed one goes on.

FOLDER/evaluation.json says what was measured; FOLDER/ATTACK-FINGERPRINT/NUMBER.json which images of a chunk are right.
Files are written under another name and renamed: what is there is whole.
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


class Chunks:
    """The finished chunks of one evaluation.

    Args:
        folder: of the files; made where it is missing.
        identity: what has to be the same for a chunk to count: network, images, threat model, seed; plain values.
        attacks: {name: its settings}; a chunk counts for these settings alone.

    Errors:
        InputError: the folder holds chunks of another evaluation; it names the difference.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], attacks: Mapping[str, Any]):
        self.folder = folder
        self.places = {name: folder / f"{name}-{fingerprint(settings)[:8]}" for name, settings in attacks.items()}
        record = folder / "evaluation.json"
        if record.exists():
            _check_same(json.loads(record.read_text()), dict(identity), folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(record, dict(identity))

    def read(self, attack: str, number: int) -> Any:
        """What `write` was given; None where the chunk is not finished."""
        path = self._path(attack, number)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, attack: str, number: int, result: Any) -> None:
        """Keeps a finished chunk."""
        path = self._path(attack, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)

    def _path(self, attack: str, number: int) -> Path:
        return self.places[attack] / f"{number:05}.json"


def fingerprint(content: Any) -> str:
    """A name for plain values: the same for the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def network_fingerprint(net: nn.Module) -> str:
    """Of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def images_fingerprint(images: Any) -> str:
    """Of a data set's labels and images, or of the images' paths where they are not in memory."""
    digest = hashlib.sha256(images.labels.numpy().tobytes())
    content = images.paths if hasattr(images, "paths") else images.images.numpy()
    digest.update("\n".join(map(str, content)).encode() if hasattr(images, "paths") else content.tobytes())
    return digest.hexdigest()[:16]


def _check_same(written: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    different = [name for name in {**written, **wanted} if written.get(name) != wanted.get(name)]
    if different:
        name = different[0]
        raise InputError(
            f"{folder} holds chunks of another evaluation: {', '.join(different)} differ ({name} was "
            f"{written.get(name)!r}, now {wanted.get(name)!r}); give another folder in chunks, or leave it out"
        )
