"""Files that others read: rows added, JSON written whole."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Adds rows to a CSV file, with a header where the file is new; floats in full."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(columns)
        writer.writerows(rows)


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file of these rows alone, in place of one that is there."""
    path.unlink(missing_ok=True)
    append_rows(path, columns, rows)


def write_json(path: Path, content: Any) -> None:
    """A JSON file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # processes do not write into each other's
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
