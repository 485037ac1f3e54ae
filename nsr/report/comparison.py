"""The comparison of several runs as a page: nsr-compare's tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
from scipy.stats import rankdata

from nsr.comparison.captions import conditions_sentence
from nsr.comparison.conditions import unequal
from nsr.comparison.frames import MEASURES, layers_of, read_runs
from nsr.comparison.names import method_names
from nsr.comparison.plots import accuracy, drawn, layers, robustness
from nsr.comparison.statistics import Comparison, compare, one_a_seed
from nsr.comparison.tables import commands, headings, sheets
from nsr.report.drawing import svg
from nsr.report.page import html
from nsr.report.parts import Figure, Section
from nsr.run.files import write_text
from nsr.run.tables import Cell, Table

PLOTS = {
    accuracy: ("Accuracy of each method", "One point for each seed, a bar at the mean; best checkpoints."),
    robustness: ("Accuracy under attack against sensitivity", "One point for each run; sensitivity: mean over layers."),
    layers: ("Sensitivity of each layer", "Mean and standard deviation over seeds; dotted: before training."),
}


def write_comparison(places: Sequence[Path], output: Path, *, allow_different: bool = False) -> Path:
    """Write the page of a comparison, complete or not at all, and return its path.

    Errors:
        InputError: the runs differ in data or threat model, and `allow_different` is false.
    """
    runs = read_runs(*places, allow_different=allow_different)
    comparison = compare(runs, labels=method_names(runs))
    title = f"Comparison of {len(comparison.runs)} runs"
    write_text(output, html(title, ", ".join(map(str, places)), page_sections(comparison), []))
    return output


def page_sections(comparison: Comparison) -> list[Section]:
    """Return the sections: what is compared, plots, tables, the commands that finish what is missing."""
    found = sheets(comparison)
    missing = commands(comparison)
    data = {name: frame.to_dict("list") for name, frame in zip(comparison._fields, comparison[:4], strict=False)}
    notes = [_summary(comparison), *comparison.notes]
    parts = [
        Section("Result", "result", notes, tables=[_table(found[0])] if found else [], data=data),
        Section("Plots", "plots", figures=_plots(comparison)),
        Section("Tables", "tables", tables=[*map(_table, found[1:]), *_concordances(comparison.runs)]),
    ]
    if missing:
        parts.append(Section("To finish", "commands", ["Commands for what is missing:"], code=missing))
    return parts


def _summary(comparison: Comparison) -> str:
    methods, runs = comparison.methods, comparison.runs
    done = int((runs["status"] == "finished").sum())
    text = f"{len(methods)} methods, {done} of {len(runs)} runs finished."
    is_ranked = comparison.accuracy in methods and not unequal(runs, [str(comparison.accuracy)])
    if is_ranked and methods[comparison.accuracy].notna().any():
        best = methods.loc[methods[comparison.accuracy].idxmax()]
        text += f" Highest mean accuracy under {headings(comparison)[str(comparison.accuracy)]}: {best['method']}, "
        seeds = int(best[f"{comparison.accuracy}_n"])
        text += f"{100 * best[comparison.accuracy]:.1f} % over {seeds} seed{'s' * (seeds != 1)}."
        if seeds > 1:
            text += " The table of differences says whether it exceeds the baseline beyond chance."
        else:
            text += " With one seed a method, no test can tell a difference from chance."
    return text


def _plots(comparison: Comparison) -> list[Figure]:
    found = []
    for draw, (alt, caption) in PLOTS.items():
        if (figure := drawn(draw, comparison)) is not None:
            caption += f" {conditions_sentence(comparison.runs)}"
            found.append(Figure(svg(figure), f"{alt}; the numbers are in the tables.", f"{alt}. {caption}"))
    return found


def _table(sheet: Table) -> Table:
    rows = [
        [replace(cell, text=cell.text.replace(" +- ", " ± "), value=_number(cell.text)) for cell in row]
        for row in sheet.rows
    ]
    caption = f"{sheet.caption[0].upper()}{sheet.caption[1:]}".replace("+-", "±")
    return replace(sheet, caption=caption, rows=rows)


def concordance(values: numpy.ndarray) -> float:
    """Return Kendall's W (Kendall and Babington Smith 1939) of rankings, 1 where all agree; ties share mean ranks.

    Args:
        values: (ranking, item).
    """
    ranks = numpy.apply_along_axis(rankdata, 1, values)
    judges, items = values.shape
    tied = sum(
        float((counts**3 - counts).sum()) for counts in (numpy.unique(row, return_counts=True)[1] for row in ranks)
    )
    deviation = float(((ranks.sum(0) - judges * (items + 1) / 2) ** 2).sum())
    largest = judges**2 * (items**3 - items) - judges * tied  # 0 where every ranking is one tie
    return 12 * deviation / largest if largest else math.nan


def _concordances(runs: pandas.DataFrame) -> list[Table]:
    """Tabulate whether the seeds of a method agree on which layers are sensitive."""
    names, rows = layers_of(runs), []
    for method, group in one_a_seed(runs).groupby("method", sort=False):
        values = [group[[f"{measure}/{name}" for name in names]].dropna().to_numpy(float) for measure in MEASURES[:2]]
        if len(names) > 1 and all(len(one) > 1 for one in values):
            agreed = [concordance(one) for one in values]
            cells = [Cell(f"{one:.2f}" if math.isfinite(one) else "–", one) for one in agreed]
            rows.append([Cell(str(method)), Cell(str(len(group)), len(group)), *cells])
    title = "Agreement of seeds on the order of layers by sensitivity: Kendall's W, 1 where all seeds agree"
    note = "Neurons have no counterpart in a network of another seed, so their order is not compared."
    return [Table(title, ["method", "seeds", *MEASURES[:2]], rows, note=note)] if rows else []


def _number(text: str) -> float | None:
    """Return the number that a cell begins with, by which it is sorted."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None
