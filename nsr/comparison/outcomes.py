"""Test images one by one: which of them each run classifies correctly under an attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy
import pandas

from nsr.run.files import regular

WORST = "worst_case_accuracy"
Outcomes = dict[str, numpy.ndarray]  # {metric: (image,) 1 where it is correctly classified, else 0}


def outcomes_by_seed(runs: pandas.DataFrame, metrics: Sequence[str]) -> dict[int, Outcomes]:
    """Return {seed: outcomes} of one method's rows of `read_runs`; several runs of a seed count as their mean."""
    found: dict[int, Outcomes] = {}
    for seed, group in runs.groupby("seed"):
        each = [outcomes(row, metrics) for _, row in group.iterrows()]
        alike = {name: {len(own.get(name, ())) for own in each} for name in metrics}
        found[int(str(seed))] = {
            name: numpy.mean([own[name] for own in each], axis=0)
            for name in metrics
            if len(alike[name]) == 1 and name in each[0]
        }
    return found


def image_differences(
    one: Mapping[int, Outcomes], other: Mapping[int, Outcomes], metric: str, seeds: Sequence[int]
) -> numpy.ndarray | None:
    """Return (seed, image) differences; None where a run has no outcomes, or another number of images."""
    pairs = [(one[seed].get(metric), other[seed].get(metric)) for seed in seeds]
    sizes = {len(side) if side is not None else 0 for pair in pairs for side in pair}
    if len(sizes) != 1 or 0 in sizes:
        return None
    return numpy.array([first - second for first, second in pairs])  # type: ignore[operator]


def outcomes(run: pandas.Series, metrics: Sequence[str]) -> Outcomes:
    """Read the images behind a run's accuracies; a file whose column has another mean is of another measurement."""
    found: Outcomes = {}
    for table in _tables(run):
        for metric in metrics:
            attacks = [metric.removesuffix("_accuracy")]
            if metric == WORST:
                attacks = str(run.get("worst_case_of", "")).split(", ")
            columns = [name for name in attacks if name in table]
            correct = table[columns].min(axis=1).to_numpy(dtype=float)
            if columns and len(correct) and abs(correct.mean() - run[metric]) < 1e-5:
                found.setdefault(metric, correct)
    return found


def _tables(run: pandas.Series) -> Iterator[pandas.DataFrame]:
    """Yield the images.csv of a run's measurements, newest first; a missing or damaged one is passed over."""
    root, names = Path(str(run.get("run", ""))), str(run.get("evaluation", "")).split(", ")
    for folder in (*(root / "evaluations" / name for name in reversed(names) if name), root):
        try:
            yield pandas.read_csv(regular(folder / "images.csv")).select_dtypes("number")
        except (OSError, ValueError):
            continue
