"""Interventions: the effect of the most sensitive neurons, and its contrasts with random ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nsr.plots.style import COLUMN, ROW, legend, name_rows, new_figure, plot

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OFFSET = 0.5  # points of a fraction between two controls, so that equal effects can be distinguished
PANEL = 1.4  # inches of a further kind
SHOWN_FRACTION = 0.5  # where only one fraction is shown, it is the nearest to this one
FEWEST_IMAGES = 50  # for a verdict
WHOLE = "whole_layer"
CONTROLS = {  # name: (in words, color, marker)
    "most_sensitive": ("the most sensitive neurons", "#D55E00", "o"),
    "random_equal_squared_difference": ("random neurons of equal summed squared difference", "#E69F00", "P"),
    "random_equal_sensitivity": ("random neurons of equal summed sensitivity", "#0072B2", "s"),
    "random_equal_size": ("as many random neurons", "#56B4E9", "D"),
    "least_sensitive": ("the least sensitive neurons", "#000000", "v"),
    "by_activation": ("the neurons of largest clean activation", "#009E73", "^"),
    "by_relative": ("the neurons of largest relative sensitivity", "#CC79A7", "<"),
    "by_squared_difference": ("the neurons of largest squared difference", "#F0E442", "h"),
    "by_attribution": ("the neurons of largest attribution", "#8B4513", "X"),
    "by_conductance": ("the neurons of largest conductance", "#7F7F7F", ">"),
}
RANDOM = ("random_equal_size", "random_equal_sensitivity", "random_equal_squared_difference")
LABELS = {
    "patch_clean": "clean patching:\nimages corrected",
    "patch_adversarial": "adversarial patching:\nimages misclassified",
    "zero_ablation": "zero ablation:\nimages misclassified",
    "mean_ablation": "mean ablation:\nimages misclassified",
}


def nearest_shown(fractions: Iterable[float]) -> float:
    """Return the fraction nearest to SHOWN_FRACTION, of two equally near ones the smaller."""
    return min(sorted(fractions), key=lambda one: abs(one - SHOWN_FRACTION))


@plot
def interventions(rows: pandas.DataFrame, *, title: str = "") -> Figure:
    """Plot the effect of the most sensitive neurons minus that of each random control, a panel for each kind.

    Args:
        rows: of interventions.csv at one fraction: columns layer, kind, control, images, contrast, contrast_low and
            contrast_high (fractions of the images, 95 % intervals).
    """
    kinds, layers = (list(dict.fromkeys(rows[name])) for name in ("kind", "layer"))
    width = COLUMN + PANEL * max(0, len(kinds) - 2)
    figure = new_figure(height=1.3 + 2.2 * ROW * len(layers), width=width, title=title)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _draw_contrasts(axes, rows[rows["kind"] == kind], layers)
        axes.set_xlabel(f"{LABELS.get(kind, kind)}\ndifference (% points)")
    name_rows(panels[0], layers)
    legend(panels[0], columns=1, title=_population(rows))
    return figure


def _draw_contrasts(axes: Axes, rows: pandas.DataFrame, layers: list[str]) -> None:
    axes.axvline(0, color="0.5", linewidth=0.7, zorder=1)
    axes.grid(visible=False, axis="y")
    for control, shift in zip(RANDOM, (-0.24, 0, 0.24), strict=True):
        label, color, marker = CONTROLS[control]
        own = rows[rows["control"] == control].set_index("layer").reindex(layers)
        names = ("contrast", "contrast_low", "contrast_high")
        middle, low, high = (100 * own[name].astype(float) for name in names)
        style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none", "elinewidth": 0.9}
        places = [number + shift for number in range(len(layers))]
        axes.errorbar(middle, places, xerr=[middle - low, high - middle], label=f"minus {label}", **style)


@plot
def intervention_effects(rows: pandas.DataFrame, *, title: str = "") -> Figure:
    """Plot effects against the fraction of one layer's neurons, a panel for each kind, with 95 % intervals.

    Args:
        rows: of one layer in interventions.csv: columns layer, layer_neurons, kind, fraction, control, images, effect,
            effect_low and effect_high (fractions of the images).
    """
    kinds = list(dict.fromkeys(rows["kind"]))
    figure = new_figure(height=0.4 + 0.15 * rows["control"].nunique() + 1.5 * len(kinds), title=title)
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        _draw_effects(axes, rows[rows["kind"] == kind])
        axes.set_ylabel(f"{LABELS.get(kind, kind)} (%)")
    first = rows.iloc[0]
    panels[-1].set_xlabel(f"fraction of the {first['layer_neurons']:.0f} neurons of {first['layer']} (%)")
    legend(panels[0], columns=1, title=_population(rows))
    return figure


def _draw_effects(axes: Axes, rows: pandas.DataFrame) -> None:
    whole = rows[rows["control"] == WHOLE]
    if len(whole):
        style: dict[str, Any] = {"color": "0.5", "linewidth": 0.7, "linestyle": (0, (4, 3)), "zorder": 1}
        axes.axhline(100 * whole.iloc[0]["effect"], label="whole layer", **style)
    drawn = [control for control in CONTROLS if control in set(rows["control"])]
    for place, control in enumerate(drawn):
        label, color, marker = CONTROLS[control]
        own = rows[rows["control"] == control].sort_values("fraction")
        x = 100 * own["fraction"] + OFFSET * (place - (len(drawn) - 1) / 2)
        low, high = 100 * own["effect_low"], 100 * own["effect_high"]
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(x, 100 * own["effect"], color=color, marker=marker, label=label, clip_on=False)
    ticks = sorted({100 * fraction for fraction in rows["fraction"][rows["control"] != WHOLE]})
    axes.set_ylim(0, 100)
    axes.set_xlim(0, max(ticks[-1] + len(drawn), 10))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _population(rows: pandas.DataFrame) -> str:
    images = " and ".join(f"{count:.0f}" for count in dict.fromkeys(rows["images"]))
    return f"{images} images, 95 % intervals"
