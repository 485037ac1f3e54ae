"""Neuron sensitivity: layer by epoch, the distribution before and after training, the most sensitive neurons."""

from __future__ import annotations

from collections.abc import Mapping

import pandas

from nsr.comparison.reading import CUT_SHORT
from nsr.plots import ranking_stability, sensitivity_distribution, sensitivity_heat_map
from nsr.plots.sensitivity import MEASURES
from nsr.report.drawing import svg
from nsr.report.facts import validation_attack
from nsr.report.files import RunFiles
from nsr.report.numbers import rounded
from nsr.report.parts import Figure, Section
from nsr.run.tables import Cell, Table

LISTED = 5  # most sensitive neurons of a layer
NUMBERS = ["neuron", *MEASURES]


def section(run: RunFiles) -> Section | None:
    """Plot layers.csv and sensitivity.csv of training, and list the neurons of the newest evaluation."""
    layers = pandas.DataFrame() if run.is_evaluation else run.frame("layers.csv")
    before, after, when = _neurons(run)
    if layers.empty and after.empty:
        return None
    figures: list[Figure] = []
    on = f"validation images, {validation_attack(run.run.settings)}"
    if len(layers):
        on_largest = f"{on}; right: the layer's largest value, to which its row is scaled"
        drawn = ((svg(sensitivity_heat_map(layers, measures=[name])), title) for name, title in MEASURES.items())
        figures += [_map(image, layers, title, on_largest) for image, title in drawn]
        figures += [_stability(layers, on)] if layers["epoch"].nunique() > 1 else []
    figures += [] if before.empty else [_distribution(before, after, when, on)]
    tables = [] if after.empty else [_table(before, after, when), _listed(after, when)]
    listed = {} if after.empty else most(after).to_dict("list")
    frames = {"before": before, "after": after}
    means = {name: means_of(frame).to_dict("index") for name, frame in frames.items() if len(frame)}
    data = {"layers": layers.to_dict("list"), "means": means, "listed": listed}
    model = run.run.settings.get("model")
    is_loaded = isinstance(model, Mapping) and bool(model.get("weights"))
    weights = "the weights that were loaded" if is_loaded else "its initial, usually random weights"
    paragraphs = [_sentence(before, after, when, weights)]
    return Section("Neuron sensitivity", "sensitivity", paragraphs, figures, tables, data)


def _neurons(run: RunFiles) -> tuple[pandas.DataFrame, pandas.DataFrame, str]:
    """Return the neurons before training, at the best or newest epoch, and the latter's name."""
    if run.is_evaluation:
        return pandas.DataFrame(), run.frame("sensitivity.csv"), "test images"
    epoch = run.run.best_epoch if run.run.best_epoch is not None else run.run.epoch
    before, after = run.neurons(0), run.neurons(epoch)
    if len(before) and (after.empty or not _sizes(before).equals(_sizes(after))):
        run.problems.append(f"the sensitivities lack neurons of epoch {epoch}: {CUT_SHORT}")
        before, after = pandas.DataFrame(), pandas.DataFrame()
    return (before if epoch else pandas.DataFrame()), after, f"epoch {epoch}"


def _sizes(frame: pandas.DataFrame) -> pandas.Series:
    return frame.groupby("layer").size()


def _sentence(before: pandas.DataFrame, after: pandas.DataFrame, when: str, weights: str) -> str:
    text = "Sensitivity is how far the attack moves a neuron's output: in units of the activation (absolute), or as a "
    text += "fraction of it (relative)."
    if before.empty:
        return text
    first, last = (means_of(frame).mean() for frame in (before, after))
    text += f" “Before training” is the network with {weights}: it is no reference for robustness, and absolute "
    text += "sensitivity usually rises with the activations as a network learns. Read relative sensitivity beside it, "
    text += "and compare with runs of other objectives (nsr-compare). Means over layers: absolute "
    text += f"{rounded(first['absolute'])} before training, {rounded(last['absolute'])} in {when}; relative "
    return text + f"{rounded(first['relative'])} and {rounded(last['relative'])}."


def means_of(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return a row for each layer: absolute and mean activation, means over neurons, and their ratio, relative."""
    found = frame.groupby("layer", sort=False)[["absolute", "mean_activation"]].mean()
    relative = found["absolute"] / found["mean_activation"]
    return found.assign(relative=relative.where(found["absolute"] != 0, 0.0))[list(MEASURES)]


def most(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return the most sensitive neurons of each layer, most sensitive first."""
    order = frame.sort_values("absolute", ascending=False, kind="stable")
    listed = order.groupby("layer", sort=False).head(LISTED)
    layers = list(dict.fromkeys(frame["layer"]))
    return listed.sort_values("layer", key=lambda column: column.map(layers.index), kind="stable", ignore_index=True)[
        ["layer", *NUMBERS]
    ]


def _stability(layers: pandas.DataFrame, on: str) -> Figure:
    count = len(str(layers["most_sensitive"].iloc[0]).split())
    title = f"ranking: overlap of the {count} most sensitive neurons with the epoch before"
    return _map(svg(ranking_stability(layers)), layers, title, on)


def _map(image: str, layers: pandas.DataFrame, title: str, on: str) -> Figure:
    rows = layers["layer"].nunique()
    alt = f"Heat map, a row for each of {rows} layers and a column for each epoch: {title}."
    return Figure(image, alt, f"{title[0].upper()}{title[1:]}; {on}.")


def _distribution(before: pandas.DataFrame, after: pandas.DataFrame, when: str, on: str) -> Figure:
    alt = f"Distribution of absolute sensitivity over the neurons of each layer, before training and in {when}."
    caption = "Absolute sensitivity of the neurons of each layer: median, middle half (thick), 5 % to 95 % (thin); "
    caption += f"{on}; logarithmic scale, with neurons that never move at its left end."
    return Figure(svg(sensitivity_distribution({"before training": before, when: after})), alt, caption)


def _table(before: pandas.DataFrame, after: pandas.DataFrame, when: str) -> Table:
    frames = {"before": before, when: after} if len(before) else {when: after}
    means = {label: means_of(frame) for label, frame in frames.items()}
    rows = []
    for layer, size in after.groupby("layer", sort=False).size().items():
        values = [means[label].loc[layer, name] for name in MEASURES for label in frames if layer in means[label].index]
        cells = [Cell(rounded(value), float(value)) for value in values]
        rows.append([Cell(str(layer)), Cell(str(size), float(size)), *cells])
    headings = [f"{name.replace('_', ' ')}, {label}" for name in MEASURES for label in frames]
    return Table("Means over the neurons of each layer", ["layer", "neurons", *headings], rows)


def _listed(after: pandas.DataFrame, when: str) -> Table:
    rows = [
        [Cell(str(row["layer"])), *(Cell(rounded(row[name]), float(row[name])) for name in NUMBERS)]
        for row in most(after).to_dict("records")
    ]
    headings = ["layer", *(name.replace("_", " ") for name in NUMBERS)]
    return Table(f"The {LISTED} most sensitive neurons of each layer, {when}", headings, rows)
