"""The tables of a comparison as plain cells, for the screen, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas

from nsr.comparison.frames import MEASURES, layers_of
from nsr.comparison.result import Comparison
from nsr.comparison.statistics import attack_columns

MISSING = "-"
MUST = "autoattack_accuracy"  # a column even where no run has it
WIDE = 8  # layers that fit side by side
SHOWN = {"absolute": "absolute", "relative": "relative", "mean_activation": "activation"}


class Cell(NamedTuple):
    """A text, and whether it is the best of its column."""

    text: str
    best: bool = False


class Sheet(NamedTuple):
    """A table; the first `texts` columns hold words, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1


def sheets(comparison: Comparison) -> list[Sheet]:
    """List all tables that have rows."""
    found = [
        accuracies(comparison),
        sensitivities(comparison),
        *(by_layer(comparison, measure) for measure in MEASURES),
        differences(comparison),
        correlated(comparison),
        others(comparison),
    ]
    return [sheet for sheet in found if sheet.rows and len(sheet.headings) > 1]


def accuracies(comparison: Comparison) -> Sheet:
    """Tabulate accuracies: clean, under each attack, worst case; the best mean of each column is marked."""
    methods, runs = comparison.methods, comparison.runs
    names = attack_columns(runs.assign(**{MUST: runs.get(MUST)}))
    columns = [_column(methods, name, percent=True, mark_best=True) for name in names]
    return Sheet(
        "accuracy on the test set, %: mean +- standard deviation over seeds, highest mean in bold",
        ["method", "seeds", *(attack_name(name) for name in names)],
        _transposed([*_method_columns(methods), *columns]),
        texts=1,
    )


def sensitivities(comparison: Comparison) -> Sheet:
    """Tabulate means over layers, at the best epoch and before training."""
    methods, runs = comparison.methods, comparison.runs
    names = [f"{measure}{when}" for when in ("", "_before") for measure in MEASURES if f"{measure}{when}" in runs]
    headings = [SHOWN[name.removesuffix("_before")] + (", untrained" * name.endswith("_before")) for name in names]
    return Sheet(
        "neuron sensitivity on validation images, mean over layers: mean +- standard deviation over seeds",
        ["method", "seeds", *headings],
        _transposed([*_method_columns(methods), *(_column(methods, name) for name in names)]),
    )


def by_layer(comparison: Comparison, measure: str) -> Sheet:
    """Tabulate one measure of each layer; methods are columns where there are many layers."""
    methods, layers = comparison.methods, layers_of(comparison.runs)
    columns = [_column(methods, f"{measure}/{layer}") for layer in layers]
    title = f"{measure.replace('_', ' ')}{'' if measure == 'mean_activation' else ' sensitivity'} by layer"
    if len(layers) > WIDE:
        rows = [[Cell(layer), *column] for layer, column in zip(layers, columns, strict=True)]
        return Sheet(title, ["layer", *methods["method"]], rows)
    return Sheet(title, ["method", *layers], _transposed([_method_columns(methods)[0], *columns]))


def differences(comparison: Comparison) -> Sheet:
    """Tabulate each method minus the baseline at equal seeds, with 95 % t-intervals."""
    frame, runs = comparison.differences, comparison.runs
    names = [name for name in (*attack_columns(runs), *MEASURES[:2]) if name in runs]
    title = f"difference from {comparison.baseline} at equal seeds, accuracies in points: mean [95 % t-interval]"
    if frame.empty:
        return Sheet(title, ["method"], [])
    rows = []
    for method, group in frame.groupby("method", sort=False):
        found = group.set_index("metric")
        cells = [Cell(_interval(found.loc[name], scale=100 if name in attack_columns(runs) else 1)) for name in names]
        rows.append([Cell(str(method)), Cell(str(found.loc[names, "pairs"].max())), *cells])
    return Sheet(title, ["method", "pairs", *(SHOWN.get(name) or attack_name(name) for name in names)], rows)


def correlated(comparison: Comparison) -> Sheet:
    """Tabulate Spearman's correlation of sensitivity and robust accuracy."""
    name = attack_name(comparison.accuracy or "")
    title = f"Spearman correlation of sensitivity with accuracy under {name}: [95 % interval, bootstrap over methods]"
    rows = []
    for which, group in comparison.correlations.groupby("among", sort=False) if len(comparison.correlations) else ():
        if group["note"].nunique() == 1 and group["note"].iloc[0]:
            rows.append([Cell(str(which)), Cell(group["note"].iloc[0]), *[Cell("")] * (2 + len(MEASURES[:2]))])
            continue
        for layer, pair in group.groupby("layer", sort=False):
            by_measure = pair.set_index("measure")
            counts = [Cell(str(int(pair[name].max()))) for name in ("methods", "runs")]
            texts = [_correlation(by_measure, measure) for measure in MEASURES[:2]]
            rows.append([Cell(str(which)), Cell(str(layer)), *counts, *map(Cell, texts)])
    return Sheet(title, ["among", "layer", "methods", "runs", *MEASURES[:2]], rows, texts=2)


def others(comparison: Comparison) -> Sheet:
    """Tabulate the runs that are not in the other tables, and those with a remark."""
    frame = comparison.runs
    chosen = frame[(frame["status"] != "finished") | frame.get("detail", pandas.Series("", frame.index)).ne("")]
    rows = [
        [Cell(_run_text(name, row[name])) for name in ("run", "method", "seed", "status", "detail")]
        for row in chosen.to_dict("records")
    ]
    return Sheet("unfinished runs and remarks", ["run", "method", "seed", "status", "remark"], rows, texts=5)


def commands(comparison: Comparison) -> list[str]:
    """List the commands that finish what is missing."""
    frame = comparison.runs
    return [command for command in frame["command"] if command] if "command" in frame else []


def attack_name(column: str) -> str:
    """Return the heading of an accuracy's column: 'pgd_accuracy' is pgd, 'worst_case_accuracy' worst case."""
    return column.removesuffix("_accuracy").replace("_", " ").replace("autoattack", "AutoAttack")


def decimals(values: Sequence[float]) -> int:
    """Return the decimals that give the smallest value three significant digits; 3 to 6."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    return min(6, max(3, 2 - math.floor(math.log10(min(sizes))))) if sizes else 3


def spread(mean: float, deviation: float, digits: int) -> str:
    """Return '74.48 +- 1.47', the mean alone for a single run."""
    if math.isnan(mean):
        return MISSING
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" +- {deviation:.{digits}f}")


def _method_columns(methods: pandas.DataFrame) -> list[list[Cell]]:
    """Return the names and how many runs have finished, '1 of 2' where some have not."""
    counts = [
        str(done) if done == total else f"{done} of {total}"
        for done, total in zip(methods["finished"], methods["runs"], strict=True)
    ]
    return [[Cell(name) for name in methods["method"]], [Cell(count) for count in counts]]


def _column(methods: pandas.DataFrame, name: str, *, percent: bool = False, mark_best: bool = False) -> list[Cell]:
    if name not in methods:
        return [Cell(MISSING)] * len(methods)
    scale = 100 if percent else 1
    means, deviations = scale * methods[name], scale * methods[f"{name}_std"]
    digits = 2 if percent else decimals(means.tolist())
    cells = []
    for mean, deviation, count, done in zip(means, deviations, methods[f"{name}_n"], methods["finished"], strict=True):
        fewer = f" (of {count})" if 0 < count < done else ""
        best = mark_best and math.isclose(mean, means.max(), rel_tol=1e-9)
        cells.append(Cell(f"{spread(mean, deviation, digits)}{fewer}", best))
    return cells


def _correlation(by_measure: pandas.DataFrame, measure: str) -> str:
    if measure not in by_measure.index:
        return MISSING
    row = by_measure.loc[measure]
    return row["note"] or f"{row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _interval(row: Mapping[str, Any], *, scale: int) -> str:
    values = [scale * row[name] for name in ("difference", "low", "high")]
    if math.isnan(values[0]):
        return MISSING
    digits = 2 if scale == 100 else 4
    mean, low, high = (f"{value:+.{digits}f}" for value in values)
    return mean if math.isnan(values[1]) else f"{mean} [{low}, {high}]"


def _run_text(name: str, value: Any) -> str:
    return MISSING if name == "seed" and value < 0 else str(value)


def _transposed(columns: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    return [list(row) for row in zip(*columns, strict=True)]


def notes(comparison: Comparison) -> Iterator[str]:
    """Yield the notes below the tables."""
    yield from comparison.notes
    if comparison.accuracy is None and len(comparison.runs):
        yield "no correlation: no attack was evaluated in every finished run"
