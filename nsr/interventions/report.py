"""Results of interventions as files, plots and tables.

Plots are one column of a paper wide; matplotlib is loaded when one is drawn. Colors are those of Okabe and Ito (2008),
distinct for color-blind readers, and every control has its own marker. The background is white, so that a plot is
readable on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsr.interventions.controls import LEAST, MOST, RANDOM, SENSITIVITY, SIZE, SQUARED_DIFFERENCE, WHOLE
from nsr.interventions.effects import Effects, Row
from nsr.interventions.verdicts import FEWEST_IMAGES, is_uninformative, verdicts
from nsr.plotting import COLUMN, new_figure, save, styled
from nsr.run.files import append_rows, write_json
from nsr.run.plain_text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SHOWN_FRACTION = 0.5  # the tables and the plot of the network show the fraction nearest to it
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


def write_effects(directory: Path, effects: Effects, *, settings: Mapping[str, Any]) -> list[str]:
    """Write interventions.csv (a row per layer, kind, fraction and control), interventions.json, interventions/*.

    Returns:
        The names of what was written, relative to `directory`.
    """
    columns = [column.name for column in fields(Row)]
    append_rows(directory / "interventions.csv", columns, [list(astuple(row)) for row in effects.rows])
    summary = {"images": effects.images, "skipped": effects.skipped, "layers": effects.layers}
    summary["verdicts"] = {kind: verdicts(_at_shown_fraction(effects, kind)) for kind in effects.kinds()}
    write_json(directory / "interventions.json", {"settings": dict(settings), **summary})
    folder = directory / "interventions"
    folder.mkdir(exist_ok=True)
    save(network_plot(effects.rows, fraction=shown_fraction(effects)), folder / "network")
    for layer in effects.layers:
        save(layer_plot([row for row in effects.rows if row.layer == layer]), folder / layer.replace("#", "_call"))
    return ["interventions.csv", "interventions.json", f"interventions/ ({len(effects.layers) + 1} plots)"]


def shown_fraction(effects: Effects) -> float:
    """The fraction to show where only one is shown."""
    return min({row.fraction for row in effects.rows if row.control == MOST}, key=lambda one: abs(one - SHOWN_FRACTION))


# ---------------------------------------------------------------- tables


def tables(effects: Effects) -> Iterator[Table | str]:
    """Tables of effects and of contrasts for each kind, a row per layer, at one fraction, and a verdict per layer."""
    of_neurons = f"{100 * shown_fraction(effects):g} % of each layer's neurons"
    for kind in effects.kinds():
        by_layer = _at_shown_fraction(effects, kind)
        first = next(iter(by_layer.values()))
        outcome = "correctly classified" if kind == "patch_clean" else "misclassified"
        yield _table(
            f"{kind}: % of {first[MOST].images} images that become {outcome}, {of_neurons}",
            list(first),
            ([layer, *(f"{100 * row.effect:.1f}" for row in rows.values())] for layer, rows in by_layer.items()),
        )
        controls = [control for control in first if control not in (MOST, LEAST, WHOLE)]
        yield _table(
            f"{kind}: effect of the most sensitive neurons minus each control, percentage points [95 % interval]",
            controls,
            ([layer, *(contrast(rows[control]) for control in controls)] for layer, rows in by_layer.items()),
        )
        yield f"verdicts    {kind}, {of_neurons}; Holm's correction over all contrasts of the table"
        yield from (f"  {sentence}" for sentence in verdicts(by_layer).values())


def _at_shown_fraction(effects: Effects, kind: str) -> dict[str, dict[str, Row]]:
    """{layer: {control: row}}, the whole layer first."""
    fraction = shown_fraction(effects)
    by_layer: dict[str, dict[str, Row]] = {}
    for row in sorted(effects.rows, key=lambda row: row.control != WHOLE):
        if row.kind == kind and (row.fraction == fraction or row.control == WHOLE):
            by_layer.setdefault(row.layer, {})[row.control] = row
    return by_layer


def contrast(row: Row) -> str:
    """'+12.3 [+8.0, +16.1]', in percentage points, or why there is none."""
    if row.images < FEWEST_IMAGES:
        return f"too few images ({row.images})"
    if is_uninformative(row):
        return f"uninformative (overlap {100 * row.overlap:.0f} %)"
    points = [100 * value for value in (row.contrast, row.contrast_low, row.contrast_high) if value is not None]
    return f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]"


def _table(title: str, controls: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table("layer", title=title)
    for control in controls:
        table.add_column(control.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(printable, row))
    return table


# ---------------------------------------------------------------- plots


def layer_plot(rows: Sequence[Row]) -> Figure:
    """Draw effects against the fraction of one layer's neurons, a panel per kind, with 95 % intervals."""
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
