"""Plots of interventions, one column of a paper wide; matplotlib is loaded when one is drawn.

Colors are those of Okabe and Ito (2008), distinct for color-blind readers, and every control has its own marker. The
background is white, so that a plot is readable on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nsr.interventions.controls import LEAST, MOST, RANDOM, SENSITIVITY, SIZE, SQUARED_DIFFERENCE, WHOLE
from nsr.interventions.effects import Row
from nsr.plotting import COLUMN, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER_WIDTH = 0.2  # inches in the plot of the network
OFFSET = 0.6  # points of a fraction between two controls, so that equal effects can be distinguished
CONTROLS = {  # name: (label, color, marker)
    MOST: ("most sensitive", "#D55E00", "o"),
    SQUARED_DIFFERENCE: ("random, equal squared difference", "#E69F00", "P"),
    SENSITIVITY: ("random, equal sensitivity", "#0072B2", "s"),
    SIZE: ("random, equal size", "#56B4E9", "D"),
    LEAST: ("least sensitive", "#000000", "v"),
    "by_activation": ("by clean activation", "#009E73", "^"),
    "by_relative": ("by relative sensitivity", "#CC79A7", "<"),
    "by_conductance": ("by conductance", "#7F7F7F", ">"),
}
LABELS = {
    "patch_clean": "clean patching:\nimages corrected (%)",
    "patch_adversarial": "adversarial patching:\nimages misclassified (%)",
    "zero_ablation": "zero ablation:\nimages misclassified (%)",
    "mean_ablation": "mean ablation:\nimages misclassified (%)",
}


def layer_plot(rows: Sequence[Row]) -> Figure:
    """Draw effects against the fraction of one layer's neurons, a panel per kind, with 95 % intervals.

    Args:
        rows: of one layer.
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    with styled():
        figure, panels = _panels(len(kinds), legend=len({row.control for row in rows}), width=COLUMN)
        for kind, axes in zip(kinds, panels, strict=True):
            _draw_effects(axes, [row for row in rows if row.kind == kind])
            axes.set_ylabel(LABELS[kind])
        panels[-1].set_xlabel(f"fraction of the {rows[0].layer_neurons} neurons of {rows[0].layer} (%)")
        _legend(figure, panels[0], rows)
    return figure


def _draw_effects(axes: Any, rows: Sequence[Row]) -> None:
    whole = [100 * row.effect for row in rows if row.control == WHOLE]
    axes.axhline(whole[0], color="0.5", linewidth=0.7, linestyle=(0, (4, 3)), label="whole layer", zorder=1)
    drawn = [control for control in CONTROLS if any(row.control == control for row in rows)]
    for place, control in enumerate(drawn):
        label, color, marker = CONTROLS[control]
        of_control = sorted((row for row in rows if row.control == control), key=lambda row: row.fraction)
        x = [100 * row.fraction + OFFSET * (place - (len(drawn) - 1) / 2) for row in of_control]
        effect, low, high = _percent(of_control, "effect")
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(x, effect, color=color, marker=marker, label=label, clip_on=False)
    ticks = sorted({100 * row.fraction for row in rows if row.control != WHOLE})
    axes.set_ylim(0, 100)
    axes.set_xlim(0, max(ticks[-1] + len(drawn), 10))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def network_plot(rows: Sequence[Row], *, fraction: float) -> Figure:
    """Draw the contrasts of the most sensitive neurons with the random controls in every layer, a panel per kind.

    Args:
        rows: of all layers.
        fraction: of each layer's neurons.
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    layers = list(dict.fromkeys(row.layer for row in rows))
    with styled():
        figure, panels = _panels(len(kinds), legend=len(RANDOM), width=max(COLUMN, LAYER_WIDTH * len(layers)))
        for kind, axes in zip(kinds, panels, strict=True):
            _draw_contrasts(axes, [row for row in rows if row.kind == kind and row.fraction == fraction])
            axes.set_ylabel(f"{LABELS[kind].splitlines()[0]}\ndifference (% points)")
        panels[-1].set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor")
        panels[-1].set_xlabel(f"layer, {100 * fraction:g} % of its neurons")
        _legend(figure, panels[0], rows)
    return figure


def _draw_contrasts(axes: Any, rows: Sequence[Row]) -> None:
    axes.axhline(0, color="0.5", linewidth=0.7, zorder=1)
    for control, shift in zip(RANDOM, (-0.22, 0, 0.22), strict=True):
        label, color, marker = CONTROLS[control]
        middle, low, high = _percent([row for row in rows if row.control == control], "contrast")
        errors = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        style = {"color": color, "marker": marker, "linestyle": "none", "elinewidth": 0.9, "capsize": 1.6}
        x = [place + shift for place in range(len(middle))]
        axes.errorbar(x, middle, yerr=errors, label=f"most sensitive minus {label}", **style)


def _percent(rows: Sequence[Row], metric: str) -> list[list[float]]:
    """A metric of each row and the bounds of its interval, in percent."""
    return [[100 * getattr(row, f"{metric}{bound}") for row in rows] for bound in ("", "_low", "_high")]


def _legend(figure: Figure, axes: Any, rows: Sequence[Row]) -> None:
    images = " and ".join(f"{count}" for count in dict.fromkeys(row.images for row in rows))
    title = f"{images} images, 95 % intervals"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", frameon=False, title=title)


def _panels(count: int, *, legend: int, width: float) -> tuple[Figure, list[Any]]:
    """A figure with panels one above the other, and room for a legend of some lines."""
    figure = new_figure(width=width, height=0.4 + 0.15 * legend + 1.5 * count)
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
