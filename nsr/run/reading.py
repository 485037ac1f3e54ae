"""What a run has written, read back without torch, also while the run still writes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean


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
