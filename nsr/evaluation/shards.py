"""Shards of an evaluation: independent jobs that each measure a part of the test set, and the merge of their results.

A shard's directory holds shard.pt: the results of its images and what identifies the evaluation, tensors and plain
values alone. Batches are whole, and have the same numbers in any number of shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nsr.errors import InputError

FILE = "shard.pt"


def write_shard(directory: Path, shard: tuple[int, int], identity: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    """Write shard.pt, complete or not at all.

    Args:
        shard: number from 0, and how many there are.
        identity: plain values that are equal for all shards of an evaluation.
        part: `AttackSuite.partial_result`.
    """
    partial = directory / f"{FILE}.{os.getpid()}.partial"
    torch.save({"shard": list(shard), "identity": dict(identity), **part}, partial)
    partial.replace(directory / FILE)


def read_shards(folders: Iterable[Path], identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the partial results of all shards of an evaluation, each once.

    Args:
        folders: those of the shards, or folders that contain them.
        identity: of the evaluation; shards of others are passed over.

    Errors:
        InputError: no shard, one that cannot be read, shards of other evaluations alone, or a missing one.
    """
    places = [str(folder) for folder in folders]
    paths = [path for folder in map(Path, places) for path in (folder / FILE, *sorted(folder.glob(f"*/{FILE}")))]
    found = [_read(path) for path in paths if path.is_file()]
    if not found:
        raise InputError(f"merge is {places}; no folder there holds a {FILE}, which evaluate.py shard=1/N writes")
    same = [part for part in found if part["identity"] == dict(identity)]
    if not same:
        theirs = found[-1]["identity"]
        names = [name for name in identity if theirs.get(name) != identity[name]]
        raise InputError(
            f"merge is {places}; its shards are of another evaluation ({', '.join(names)} differ): give the command of "
            "the shards, with merge in the place of shard"
        )
    by_count: dict[int, dict[int, dict[str, Any]]] = {}
    for part in same:
        number, count = part["shard"]
        by_count.setdefault(count, {})[number] = part  # the latest of equals
    count, parts = max(by_count.items(), key=lambda entry: len(entry[1]) / entry[0])
    missing = [f"{number + 1}/{count}" for number in range(count) if number not in parts]
    if missing:
        raise InputError(
            f"merge is {places}; shards are missing: {', '.join(missing)}; run them, or name their folders"
        )
    return [parts[number] for number in range(count)]


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {name: saved[name] for name in ("shard", "identity", "pieces", "sums")}
    except Exception as error:  # of any damaged or foreign file
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); remove it and run its shard again") from error
