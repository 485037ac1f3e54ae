"""Rows of a plan: one file a machine in benchmarks/results/evidence/PLAN/, merged by cell."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from nsr.errors import InputError

FOLDER = RESULTS / "evidence"
MEASURED = ("config", "data", "best_epoch", "validation_robust", "best", "last")  # equal wherever a cell was run twice
Row = dict[str, Any]


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row in one write, on a line of its own even after a line that a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, 2)
        file.seek(max(end - 1, 0))
        cut = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * cut + json.dumps(row).encode() + b"\n")
        file.flush()


def read(plan: str, folder: Path = FOLDER) -> list[Row]:
    """Return one row per cell: its start, its end merged into it, and `starts`, how often it was started.

    Errors:
        InputError: two finished rows of a cell with different results.
    """
    merged: dict[str, Row] = {}
    for path in sorted((folder / plan).glob("*.jsonl")):
        for row in _lines(path):
            known = merged.setdefault(row["cell"], {"starts": 0})
            if row["status"] == "started":
                known["starts"] += 1
                if known.get("status") == "finished":
                    continue
            elif known.get("status") == "finished" == row["status"]:
                _check_equal(known, row, path)
                continue
            elif known.get("status") == "finished":
                continue
            known.update(row)
    return list(merged.values())


def _lines(path: Path) -> Iterator[Row]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill: the cell is started, not finished


def _check_equal(one: Row, other: Row, path: Path) -> None:
    if different := [key for key in MEASURED if one.get(key) != other.get(key)]:
        raise InputError(
            f"{path} has other results of {one['title']} (cell {one['cell']}) than a row before it: "
            f"{', '.join(different)} differ; keep one of the two rows"
        )


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether this process is the only one that has claimed `path`; a claim ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
