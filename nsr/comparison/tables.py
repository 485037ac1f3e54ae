"""The tables of a comparison as plain cells, for the screen, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas

from nsr.comparison.captions import (
    DAGGER,
    attacks_sentence,
    conditions_sentence,
    lead_sentence,
    seeds_sentence,
    sensitivity_caption,
)
from nsr.comparison.conditions import unequal
from nsr.comparison.frames import MEASURES, STRONG, layers_of
from nsr.comparison.inference import ALPHA, Decision, holm
from nsr.comparison.leaders import Lead, leads
from nsr.comparison.names import attack_names
from nsr.comparison.statistics import Comparison, attack_columns, tested_metrics
from nsr.run.rows import without_norm
from nsr.run.tables import Cell, Table

MISSING = "-"
WIDE = 8  # layers that fit side by side
RUN_COLUMNS = ("run", "method", "seed", "status", "detail")
SHOWN = {"absolute": "absolute", "relative": "relative", "mean_activation": "activation"}


def sheets(comparison: Comparison) -> list[Table]:
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


def accuracies(comparison: Comparison) -> Table:
    """Tabulate accuracies: clean, under each attack, worst case; the best mean is bold, a shown lead has a dagger."""
    runs, methods, names = comparison.runs, comparison.methods, headings(comparison)
    measured = [name for name in names if name in methods and methods[name].notna().any()]
    left_out = unequal(runs, measured)
    found, decision = leads(runs, methods, [name for name in measured if name not in left_out])
    title = "accuracy on the test set, %: mean +- standard deviation over seeds"
    sheet = _over_seeds(methods, title, [*names], [*names.values()])
    leading = [None, None, *(found.get(name) for name in names)]  # of each column
    rows = [[_marked(cell, row[0].text, lead) for cell, lead in zip(row, leading, strict=True)] for row in sheet.rows]
    caption = [conditions_sentence(runs), attacks_sentence(runs, {name: names[name] for name in measured})]
    caption += [seeds_sentence(methods), lead_sentence(found, decision, left_out, len(measured))]
    return replace(sheet, rows=rows, note=" ".join(filter(None, caption)))


def headings(comparison: Comparison) -> dict[str, str]:
    """Return {accuracy's column: its heading}, in the order of tables."""
    rows = [str(name).removesuffix("_accuracy") for name in comparison.runs if str(name).endswith("_accuracy")]
    expected = [] if STRONG in map(without_norm, rows) else [f"{STRONG}_accuracy"]  # a column even where no run has it
    return attack_names(comparison.runs, attack_columns(dict.fromkeys([*comparison.runs, *expected])))


def _marked(cell: Cell, method: str, lead: Lead | None) -> Cell:
    if lead is None or method not in lead.best:
        return cell
    return Cell(f"{cell.text}{DAGGER * lead.is_shown}", best=True)


def sensitivities(comparison: Comparison) -> Table:
    """Tabulate means over layers, at the best epoch and before training."""
    names = [f"{measure}{when}" for when in ("", "_before") for measure in MEASURES]
    names = [name for name in names if name in comparison.runs]
    shown = [SHOWN[name.removesuffix("_before")] + (", untrained" * name.endswith("_before")) for name in names]
    title = "neuron sensitivity on validation images, mean over layers: mean +- standard deviation over seeds"
    return replace(_over_seeds(comparison.methods, title, names, shown), note=sensitivity_caption(comparison))


def by_layer(comparison: Comparison, measure: str) -> Table:
    """Tabulate one measure of each layer; methods are columns where there are many layers."""
    methods, layers = comparison.methods, layers_of(comparison.runs)
    columns = [_column(methods, f"{measure}/{layer}") for layer in layers]
    title = f"{measure.replace('_', ' ')}{'' if measure == 'mean_activation' else ' sensitivity'} by layer"
    title += ": mean +- standard deviation over seeds"
    note = sensitivity_caption(comparison)
    if len(layers) > WIDE:
        rows = [[Cell(layer), *column] for layer, column in zip(layers, columns, strict=True)]
        return Table(title, ["layer", *methods["method"]], rows, note=note)
    return Table(title, ["method", *layers], list(zip(map(Cell, methods["method"]), *columns, strict=True)), note=note)


def differences(comparison: Comparison) -> Table:
    """Tabulate each method minus the baseline at equal seeds; what survives Holm's correction is bold."""
    frame, names = comparison.differences, tested_metrics(comparison.runs)
    title = f"difference from {comparison.baseline} at equal seeds, accuracies in points: mean [95 % interval], p"
    decision = decide(frame)
    rows = []
    for method, group in frame.groupby("method", sort=False) if len(frame) else ():
        found = group.set_index("metric")
        pairs = int(found.loc[names, "pairs"].max())
        cells = [_interval(name, found.loc[name], decision, pairs) for name in names]
        rows.append([Cell(str(method)), Cell(str(pairs)), *cells])
    shown = headings(comparison)
    caption = [conditions_sentence(comparison.runs), attacks_sentence(comparison.runs, _measured(frame, shown))]
    caption += [decision.sentence("seeds"), covered(frame, names)]
    columns = ["method", "pairs", *(SHOWN.get(name) or shown[name] for name in names)]
    return Table(title, columns, rows, note=" ".join(filter(None, caption)))


def _measured(frame: pandas.DataFrame, names: Mapping[str, str]) -> dict[str, str]:
    return {name: names[name] for name in names if len(frame) and name in set(frame["metric"])}


def decide(frame: pandas.DataFrame) -> Decision:
    """Correct the tests of a table of differences or correlations."""
    return holm(frame["p"], frame["smallest_p"]) if len(frame) else holm(())


def covered(frame: pandas.DataFrame, names: Sequence[str]) -> str:
    """Describe what the intervals of differences generalize to; "" where there is none."""
    over = set(frame["over"][frame["low"].notna() & frame["metric"].isin(names)]) if len(frame) else set()
    if not over:
        return ""
    seeds, images = "other seeds on the same images", "other seeds and other test images of the same distribution"
    found = f"Intervals generalize to {seeds if 'seeds' in over else images}"
    if len(over) > 1:
        found = f"Intervals of accuracies with an images.csv in every run generalize to {images}, the others to {seeds}"
    return f"{found}; not to other data, networks, radii or attacks."


def correlated(comparison: Comparison) -> Table:
    """Tabulate Spearman's correlation of sensitivity and robust accuracy; what survives Holm's correction is bold."""
    frame, measures = comparison.correlations, MEASURES[:2]
    name = headings(comparison).get(comparison.accuracy or "", "")
    title = f"Spearman correlation of sensitivity with accuracy under {name}: [95 % interval from 8 methods on], p"
    decision = decide(frame)
    rows = []
    for which, group in frame.groupby("among", sort=False) if len(frame) else ():
        if group["note"].nunique() == 1 and group["note"].iloc[0]:
            texts = str(which), group["note"].iloc[0], *[""] * (2 + len(measures))
            rows.append([Cell(text) for text in texts])
            continue
        for layer, pair in group.groupby("layer", sort=False):
            by_measure = pair.set_index("measure")
            counts = [str(int(pair[name].max())) for name in ("methods", "runs")]
            cells = [_correlation(by_measure, name, decision) for name in measures]
            rows.append([*map(Cell, (str(which), str(layer), *counts)), *cells])
    note = " ".join(filter(None, [conditions_sentence(comparison.runs), decision.sentence("methods")]))
    if decision.comparisons:
        note += " A correlation generalizes to other methods on this data, network and attack; it is not a cause."
    return Table(title, ["among", "layer", "methods", "runs", *measures], rows, texts=2, note=note)


def others(comparison: Comparison) -> Table:
    """Tabulate the runs that are not in the other tables, and those with a remark."""
    frame = comparison.runs
    chosen = frame[(frame["status"] != "finished") | frame.get("detail", pandas.Series("", frame.index)).ne("")]
    rows = [
        [Cell(MISSING if name == "seed" and row[name] < 0 else str(row[name])) for name in RUN_COLUMNS]
        for row in chosen.to_dict("records")
    ]
    return Table("unfinished runs and remarks", [*RUN_COLUMNS[:-1], "remark"], rows, texts=5)


def commands(comparison: Comparison) -> list[str]:
    """List the commands that finish what is missing."""
    frame = comparison.runs
    return [command for command in frame["command"] if command] if "command" in frame else []


def decimals(values: Sequence[float]) -> int:
    """Return the decimals that give the smallest value three significant digits; 3 to 6."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    return min(6, max(3, 2 - math.floor(math.log10(min(sizes))))) if sizes else 3


def spread(mean: float, deviation: float, digits: int) -> str:
    """Return '74.48 +- 1.47', the mean alone for a single run."""
    if math.isnan(mean):
        return MISSING
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" +- {deviation:.{digits}f}")


def _over_seeds(methods: pandas.DataFrame, title: str, names: Sequence[str], headings: Sequence[str]) -> Table:
    """Return a row per method: how many of its runs have finished ('1 of 2' where some have not), then its metrics."""
    pairs = zip(methods["finished"], methods["runs"], strict=True)
    counts = [str(done) if done == total else f"{done} of {total}" for done, total in pairs]
    columns = [map(Cell, methods["method"]), map(Cell, counts), *(_column(methods, name) for name in names)]
    return Table(title, ["method", "seeds", *headings], list(zip(*columns, strict=True)))


def _column(methods: pandas.DataFrame, name: str) -> list[Cell]:
    """Return a metric of each method; accuracies in percent."""
    if name not in methods:
        return [Cell(MISSING)] * len(methods)
    is_accuracy = name.endswith("_accuracy")
    scale = 100 if is_accuracy else 1
    means, deviations = scale * methods[name], scale * methods[f"{name}_std"]
    digits = 2 if is_accuracy else decimals(means.tolist())
    cells = []
    for mean, deviation, count, done in zip(means, deviations, methods[f"{name}_n"], methods["finished"], strict=True):
        fewer = f" (of {count})" if 0 < count < done else ""
        cells.append(Cell(f"{spread(mean, deviation, digits)}{fewer}"))
    return cells


def _correlation(by_measure: pandas.DataFrame, measure: str, decision: Decision) -> Cell:
    if measure not in by_measure.index:
        return Cell(MISSING)
    row = by_measure.loc[measure]
    if row["note"]:
        return Cell(row["note"])
    bounds = "" if math.isnan(row["low"]) else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return _decided(f"{row['correlation']:+.2f}{bounds}", row, decision)


def _interval(name: str, row: Mapping[str, Any], decision: Decision, pairs: int) -> Cell:
    """Return a difference; '(of 2)' behind one with fewer pairs than its row."""
    scale, digits = (100, 2) if name.endswith("_accuracy") else (1, 4)
    mean, low, high = (f"{scale * row[part]:+.{digits}f}" for part in ("difference", "low", "high"))
    if math.isnan(row["difference"]):
        return Cell(MISSING)
    fewer = f" (of {row['pairs']})" if row["pairs"] < pairs else ""
    return _decided((mean if math.isnan(row["low"]) else f"{mean} [{low}, {high}]") + fewer, row, decision)


def _decided(text: str, row: Mapping[str, Any], decision: Decision) -> Cell:
    """Return the cell of a comparison, with its corrected p where the table can decide; bold where it is shown."""
    if not decision.is_possible or math.isnan(row["holm_p"]):
        return Cell(text)
    return Cell(f"{text} p {row['holm_p']:.2g}", best=bool(row["holm_p"] <= ALPHA))
