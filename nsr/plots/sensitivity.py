"""Neuron sensitivity: heat maps scaled layer by layer, distributions, stability of the ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from nsr.plots.style import CLEAN, OTHER, ROBUST, ROW, legend, name_rows, new_figure, plot, rounded, short

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {
    "absolute": "absolute sensitivity (activation units)",
    "relative": "relative sensitivity (fraction of activation)",
    "mean_activation": "mean activation (activation units)",
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_COLUMNS = 60  # epochs of a heat map
MOST_NAMES = 10  # of columns


@plot
def sensitivity_heat_map(
    layers: pandas.DataFrame,
    *,
    measures: Sequence[str] = ("absolute",),
    column: str = "epoch",
    column_names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Plot each layer's sensitivity in every epoch, or another column, scaled to the layer's largest value.

    The largest value stands at the right of its row: on one scale for all layers most of them would be black.

    Args:
        layers: columns layer, epoch and each of the measures, as in layers.csv; a row for each layer and epoch.
        measures: a panel for each: 'absolute', 'relative', 'mean_activation'.
        column: what the columns of the heat map are, such as 'class'.
        column_names: of the columns; they may have the same name twice.
    """
    rows = layers["layer"].nunique()
    figure = new_figure(height=(0.85 + ROW * rows) * len(measures), title=title)
    for axes, name in zip(figure.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
        values = _pivot(layers, name, column)
        largest = values.max(axis=1)
        scaled = values.div(largest.where(largest > 0, 1.0), axis=0)
        right, unit = [rounded(value) for value in largest], "fraction of the layer's largest value"
        _map(axes, scaled, right, unit, column, column_names)
        if len(measures) > 1:
            axes.set_title(MEASURES.get(name, name), loc="left")
    return figure


@plot
def ranking_stability(layers: pandas.DataFrame, *, title: str = "") -> Figure:
    """Plot how many of a layer's most sensitive neurons stay so from epoch to epoch: Jaccard's index.

    Args:
        layers: columns layer, epoch and overlap_previous, as in layers.csv.
    """
    values = _pivot(layers[layers["epoch"] > layers["epoch"].min()], "overlap_previous", "epoch").astype(float)
    figure = new_figure(height=0.85 + ROW * len(values), title=title)
    last = [f"{value:.2f}" for value in values.iloc[:, -1]]
    _map(figure.subplots(), values, last, "Jaccard index (right: last epoch)", "epoch")
    return figure


@plot
def sensitivity_distribution(neurons: Mapping[str, pandas.DataFrame], *, title: str = "") -> Figure:
    """Plot the distribution of absolute sensitivity over each layer's neurons: median, middle half, 5 % to 95 %.

    Args:
        neurons: {label, such as an epoch: columns layer and absolute, as in sensitivity.csv}, three at most.
    """
    layers = list(dict.fromkeys(list(neurons.values())[-1]["layer"]))
    figure = new_figure(height=0.8 + 1.6 * ROW * len(layers), title=title)
    axes = figure.subplots()
    positive = [frame["absolute"][frame["absolute"] > 0].min() for frame in neurons.values()]
    smallest = numpy.nanmin([*positive, 1.0])
    shifts = numpy.linspace(-0.18, 0.18, len(neurons)) if len(neurons) > 1 else [0.0]
    for (label, frame), color, marker, shift in zip(
        neurons.items(), (CLEAN, ROBUST, OTHER), "os^", shifts, strict=False
    ):
        found = frame.groupby("layer", sort=False)["absolute"].quantile(list(QUANTILES)).unstack()
        found = found.reindex(layers).clip(lower=smallest)
        rows = numpy.arange(len(layers)) + shift
        axes.hlines(rows, found[0.05], found[0.95], color=color, linewidth=0.8)
        axes.hlines(rows, found[0.25], found[0.75], color=color, linewidth=3)
        axes.plot(found[0.5], rows, marker, color="white", markeredgecolor=color, markersize=3.4, label=label)
    name_rows(axes, layers)
    axes.set(xscale="log", xlabel=MEASURES["absolute"])
    axes.xaxis.set_major_formatter("{x:g}")  # powers would be mathematics, which labels with $ must not be
    axes.xaxis.set_minor_formatter("")
    legend(axes)
    return figure


def _pivot(layers: pandas.DataFrame, name: str, column: str) -> pandas.DataFrame:
    """Return a row for each layer, a column for each epoch; of many epochs, some spread over the run."""
    found = layers.pivot_table(index="layer", columns=column, values=name, sort=False, aggfunc="last", dropna=False)
    if column == "epoch":
        found = found.sort_index(axis=1)
    chosen = numpy.unique(numpy.linspace(0, found.shape[1] - 1, min(found.shape[1], MOST_COLUMNS)).round().astype(int))
    return found.iloc[:, chosen]


def _map(
    axes: Axes, values: pandas.DataFrame, right: Sequence[str], unit: str, column: str, column_names: Sequence[str] = ()
) -> None:
    picture = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    name_rows(axes, list(values.index))
    is_epoch = column == "epoch"
    names = [short(name) for name in column_names] or [f"{each:g}" for each in values.columns]
    every = max(1, -(-len(names) // (MOST_NAMES if is_epoch else 2 * MOST_NAMES)))
    upright = 90 if not is_epoch and max(map(len, names)) > 3 else 0
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=upright)
    axes.grid(visible=False)
    for row, text in enumerate(right):
        place: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(text, (len(names) - 0.5, row), va="center", fontsize=6.5, **place)
    axes.set_xlabel("epoch (0: before training)" if is_epoch and values.columns[0] == 0 else column)
    bar = axes.figure.colorbar(picture, ax=axes, location="top", aspect=40, shrink=0.9)
    bar.set_label(unit, fontsize=6.5)
