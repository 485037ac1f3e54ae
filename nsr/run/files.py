"""Files that others read: rows added, JSON written whole."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
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


def whole_rows(path: Path, *, starting: str = "") -> Iterator[dict[str, str]]:
    """The rows of a CSV file that are there whole: a last line without its end is still being written.

    Args:
        starting: of all lines but the header only those that begin so.
    """
    with path.open(newline="") as file:
        lines = (line for line in file if line.endswith("\n"))
        columns = next(csv.reader(lines), [])
        for values in csv.reader(line for line in lines if line.startswith(starting)):
            if len(values) == len(columns):
                yield dict(zip(columns, values, strict=True))


def ratio(movement: float, activation: float) -> float:
    """movement / activation, 0 where both are 0."""
    return 0.0 if movement == 0 else movement / activation if activation > 0 else float("inf")


def layer_means(records: Path, epoch: int) -> dict[str, list[float]]:
    """{layer: its absolute and relative sensitivity and activation} of one epoch of a sensitivity.csv."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for row in whole_rows(records, starting=f"{epoch},"):
        rows.setdefault(row["layer"], []).append((float(row["absolute"]), float(row["mean_activation"])))
    means = {layer: [fmean(values) for values in zip(*figures, strict=True)] for layer, figures in rows.items()}
    return {layer: [absolute, ratio(absolute, active), active] for layer, (absolute, active) in means.items()}


def validated(records: Path, epoch: float) -> dict[str, float]:
    """The validation figures of one epoch of a metrics.csv."""
    row = next(whole_rows(records, starting=f"{epoch:.0f},"))
    return {name: float(value) for name, value in row.items() if name.startswith("validation/")}
