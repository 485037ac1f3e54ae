"""The tables of a comparison as plain cells, for the screen, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas

from nsr.comparison.frames import MEASURES, layers_of
from nsr.comparison.statistics import Comparison, attack_columns

MISSING = "-"
MUST = "autoattack_accuracy"  # a column even where no run has it
WIDE = 8  # layers that fit side by side
RUN_COLUMNS = ("run", "method", "seed", "status", "detail")
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
    names = attack_columns(dict.fromkeys([*comparison.runs, MUST]))
    title = "accuracy on the test set, %: mean +- standard deviation over seeds, highest mean in bold"
    return _over_seeds(comparison.methods, title, names, [attack_name(name) for name in names])


def sensitivities(comparison: Comparison) -> Sheet:
    """Tabulate means over layers, at the best epoch and before training."""
    names = [f"{measure}{when}" for when in ("", "_before") for measure in MEASURES]
    names = [name for name in names if name in comparison.runs]
    headings = [SHOWN[name.removesuffix("_before")] + (", untrained" * name.endswith("_before")) for name in names]
    title = "neuron sensitivity on validation images, mean over layers: mean +- standard deviation over seeds"
    return _over_seeds(comparison.methods, title, names, headings)


def by_layer(comparison: Comparison, measure: str) -> Sheet:
    """Tabulate one measure of each layer; methods are columns where there are many layers."""
    methods, layers = comparison.methods, layers_of(comparison.runs)
    columns = [_column(methods, f"{measure}/{layer}") for layer in layers]
    title = f"{measure.replace('_', ' ')}{'' if measure == 'mean_activation' else ' sensitivity'} by layer"
    if len(layers) > WIDE:
        rows = [[Cell(layer), *column] for layer, column in zip(layers, columns, strict=True)]
        return Sheet(title, ["layer", *methods["method"]], rows)
    return Sheet(title, ["method", *layers], list(zip(map(Cell, methods["method"]), *columns, strict=True)))


def differences(comparison: Comparison) -> Sheet:
    """Tabulate each method minus the baseline at equal seeds, with 95 % t-intervals."""
    frame, runs = comparison.differences, comparison.runs
    names = [name for name in (*attack_columns(runs), *MEASURES[:2]) if name in runs]
    title = f"difference from {comparison.baseline} at equal seeds, accuracies in points: mean [95 % t-interval]"
    rows = []
    for method, group in frame.groupby("method", sort=False) if len(frame) else ():
        found = group.set_index("metric")
        texts = [
            str(method),
            str(found.loc[names, "pairs"].max()),
            *(_interval(name, found.loc[name]) for name in names),
        ]
        rows.append([Cell(text) for text in texts])
    return Sheet(title, ["method", "pairs", *(SHOWN.get(name) or attack_name(name) for name in names)], rows)


def correlated(comparison: Comparison) -> Sheet:
    """Tabulate Spearman's correlation of sensitivity and robust accuracy."""
    frame, measures = comparison.correlations, MEASURES[:2]
    name = attack_name(comparison.accuracy or "")
    title = f"Spearman correlation of sensitivity with accuracy under {name}: [95 % interval, bootstrap over methods]"
    rows = []
    for which, group in frame.groupby("among", sort=False) if len(frame) else ():
        if group["note"].nunique() == 1 and group["note"].iloc[0]:
            rows.append([str(which), group["note"].iloc[0], "", "", *[""] * len(measures)])
            continue
        for layer, pair in group.groupby("layer", sort=False):
            by_measure = pair.set_index("measure")
            counts = [str(int(pair[name].max())) for name in ("methods", "runs")]
            rows.append([str(which), str(layer), *counts, *(_correlation(by_measure, name) for name in measures)])
    cells = [[Cell(text) for text in row] for row in rows]
    return Sheet(title, ["among", "layer", "methods", "runs", *measures], cells, texts=2)


def others(comparison: Comparison) -> Sheet:
    """Tabulate the runs that are not in the other tables, and those with a remark."""
    frame = comparison.runs
    chosen = frame[(frame["status"] != "finished") | frame.get("detail", pandas.Series("", frame.index)).ne("")]
    rows = [
        [Cell(MISSING if name == "seed" and row[name] < 0 else str(row[name])) for name in RUN_COLUMNS]
        for row in chosen.to_dict("records")
    ]
    return Sheet("unfinished runs and remarks", [*RUN_COLUMNS[:-1], "remark"], rows, texts=5)


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


def _over_seeds(methods: pandas.DataFrame, title: str, names: Sequence[str], headings: Sequence[str]) -> Sheet:
    """Return a row per method: how many of its runs have finished ('1 of 2' where some have not), then its metrics."""
    pairs = zip(methods["finished"], methods["runs"], strict=True)
    counts = [str(done) if done == total else f"{done} of {total}" for done, total in pairs]
    columns = [map(Cell, methods["method"]), map(Cell, counts), *(_column(methods, name) for name in names)]
    return Sheet(title, ["method", "seeds", *headings], list(zip(*columns, strict=True)))


def _column(methods: pandas.DataFrame, name: str) -> list[Cell]:
    """Return a metric of each method; accuracies in percent, the best marked."""
    if name not in methods:
        return [Cell(MISSING)] * len(methods)
    is_accuracy = name.endswith("_accuracy")
    scale = 100 if is_accuracy else 1
    means, deviations = scale * methods[name], scale * methods[f"{name}_std"]
    digits = 2 if is_accuracy else decimals(means.tolist())
    cells = []
    for mean, deviation, count, done in zip(means, deviations, methods[f"{name}_n"], methods["finished"], strict=True):
        fewer = f" (of {count})" if 0 < count < done else ""
        best = is_accuracy and math.isclose(mean, means.max(), rel_tol=1e-9)
        cells.append(Cell(f"{spread(mean, deviation, digits)}{fewer}", best))
    return cells


def _correlation(by_measure: pandas.DataFrame, measure: str) -> str:
    if measure not in by_measure.index:
        return MISSING
    row = by_measure.loc[measure]
    return row["note"] or f"{row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _interval(name: str, row: Mapping[str, Any]) -> str:
    scale, digits = (100, 2) if name.endswith("_accuracy") else (1, 4)
    mean, low, high = (f"{scale * row[part]:+.{digits}f}" for part in ("difference", "low", "high"))
    if math.isnan(row["difference"]):
        return MISSING
    return mean if math.isnan(row["low"]) else f"{mean} [{low}, {high}]"
