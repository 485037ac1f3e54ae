"""Figures of interventions, one column of a paper wide; matplotlib is loaded when one is drawn.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers too, and every family has a marker of its own.
The background is white, so that a figure can be read on a dark page as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nsr.interventions.controls import ENERGY, LEAST, MASS, MOST, RANDOM, SIZE, WHOLE
from nsr.interventions.effects import Row
from nsr.plotting import COLUMN, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

A_LAYER = 0.2  # inches of the network's figure
BESIDE = 0.6  # points of a share between two families, so that equal ones can be told apart
FAMILIES = {  # name: (label, colour, marker)
    MOST: ("most sensitive", "#D55E00", "o"),
    ENERGY: ("random, equal energy", "#E69F00", "P"),
    MASS: ("random, equal mass", "#0072B2", "s"),
    SIZE: ("random, equal size", "#56B4E9", "D"),
    LEAST: ("least sensitive", "#000000", "v"),
    "by_activation": ("by clean activation", "#009E73", "^"),
    "by_relative": ("by relative sensitivity", "#CC79A7", "<"),
    "by_conductance": ("by conductance", "#7F7F7F", ">"),
}
MEASURED = {
    "restore": "restored:\nimages right again (%)",
    "corrupt": "corrupted:\nimages made wrong (%)",
    "mask_zero": "set to zero:\nimages made wrong (%)",
    "mask_mean": "set to their mean:\nimages made wrong (%)",
}


def layer_figure(rows: Sequence[Row]) -> Figure:
    """Effect against share of one layer's neurons, a panel a kind, with 95 % intervals.

    Args:
        rows: of one layer.
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    with styled():
        figure, panels = _panels(len(kinds), width=COLUMN, height=1.55)
        for kind, axes in zip(kinds, panels, strict=True):
            of_kind = [row for row in rows if row.kind == kind]
            _draw_layer(axes, of_kind)
            axes.set_ylabel(MEASURED[kind])
        panels[-1].set_xlabel(f"share of the {rows[0].layer_neurons} neurons of {rows[0].layer} (%)")
        _legend(figure, panels[0], rows, columns=2)
    return figure


def _draw_layer(axes: Any, rows: Sequence[Row]) -> None:
    whole = [100 * row.effect for row in rows if row.family == WHOLE]
    axes.axhline(whole[0], color="0.5", linewidth=0.7, linestyle=(0, (4, 3)), label="the whole layer", zorder=1)
    shares = sorted({row.share for row in rows if row.family != WHOLE})
    drawn = [family for family in FAMILIES if any(row.family == family for row in rows)]
    for place, family in enumerate(drawn):
        label, colour, marker = FAMILIES[family]
        by_share = {row.share: row for row in rows if row.family == family}
        effect, low, high = (
            [100 * getattr(by_share[share], name) for share in shares]
            for name in ("effect", "effect_low", "effect_high")
        )
        beside = [100 * share + BESIDE * (place - (len(drawn) - 1) / 2) for share in shares]
        axes.fill_between(beside, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(beside, effect, color=colour, marker=marker, markersize=3.2, linewidth=1, label=label, clip_on=False)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, max(100 * shares[-1] + len(drawn), 10))
    axes.set_xticks([100 * share for share in shares], [f"{100 * share:g}" for share in shares])


def network_figure(rows: Sequence[Row], *, share: float) -> Figure:
    """The contrasts of the most sensitive neurons with the random controls in every layer, a panel a kind.

    Args:
        rows: of all layers.
        share: of each layer's neurons.
    """
    kinds = list(dict.fromkeys(row.kind for row in rows))
    layers = list(dict.fromkeys(row.layer for row in rows))
    with styled():
        figure, panels = _panels(len(kinds), width=max(COLUMN, A_LAYER * len(layers)), height=1.5)
        for kind, axes in zip(kinds, panels, strict=True):
            at_share = [row for row in rows if row.kind == kind and row.share == share]
            _draw_contrasts(axes, at_share, layers)
            axes.set_ylabel(f"{MEASURED[kind].splitlines()[0]}\ndifference (points)")
        panels[-1].set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor")
        panels[-1].set_xlabel(f"layer, {100 * share:g} % of its neurons")
        _legend(figure, panels[0], rows, columns=1)
    return figure


def _draw_contrasts(axes: Any, rows: Sequence[Row], layers: Sequence[str]) -> None:
    axes.axhline(0, color="0.5", linewidth=0.7, zorder=1)
    for family, shift in zip(RANDOM, (-0.22, 0, 0.22), strict=True):
        label, colour, marker = FAMILIES[family]
        by_layer = {row.layer: row for row in rows if row.family == family}
        middle, low, high = (
            [100 * getattr(by_layer[layer], name) for layer in layers]
            for name in ("contrast", "contrast_low", "contrast_high")
        )
        errors = [[m - below for m, below in zip(middle, low, strict=True)]]
        errors.append([above - m for m, above in zip(middle, high, strict=True)])
        axes.errorbar(
            [place + shift for place in range(len(layers))],
            middle,
            yerr=errors,
            color=colour,
            marker=marker,
            markersize=3.2,
            linestyle="none",
            elinewidth=0.9,
            capsize=1.6,
            label=f"most sensitive minus {label}",
        )


def _legend(figure: Figure, axes: Any, rows: Sequence[Row], *, columns: int) -> None:
    images = " and ".join(f"{count}" for count in dict.fromkeys(row.images for row in rows))
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        title=f"{images} images, 95 % intervals",
    )


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure and its panels, one above the other."""
    figure = new_figure(width=width, height=0.85 + height * count)
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
