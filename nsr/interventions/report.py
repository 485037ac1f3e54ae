"""What interventions found, as files and on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from nsr.interventions.controls import LEAST, MASS, MOST, SIZE, WHOLE
from nsr.interventions.effects import Effects, Row
from nsr.interventions.plots import layer_figure, network_figure
from nsr.plotting import save
from nsr.run.files import append_rows, write_json

SHOWN_SHARE = 0.5  # the table and the network's figure show the share nearest to it
HAPPENS = {
    "restore": "right again",
    "corrupt": "made wrong",
    "mask_zero": "made wrong",
    "mask_mean": "made wrong",
}


def write_effects(directory: Path, effects: Effects, *, settings: Mapping[str, Any]) -> list[str]:
    """interventions.csv (a row a layer, kind, share and family), interventions.json, interventions/*.png and *.pdf.

    Returns:
        What was written, relative to `directory`.
    """
    columns = [column.name for column in fields(Row)]
    append_rows(directory / "interventions.csv", columns, [list(astuple(row)) for row in effects.rows])
    write_json(directory / "interventions.json", {"settings": dict(settings), **effects.plain()})
    folder = directory / "interventions"
    folder.mkdir(exist_ok=True)
    save(network_figure(effects.rows, share=shown_share(effects)), folder / "network")
    for layer in effects.layers:
        save(layer_figure([row for row in effects.rows if row.layer == layer]), folder / layer.replace("#", "_call"))
    return ["interventions.csv", "interventions.json", f"interventions/ ({len(effects.layers) + 1} figures)"]


def shown_share(effects: Effects) -> float:
    """The share that one has to choose where only one is shown."""
    return min({row.share for row in effects.rows if row.family == MOST}, key=lambda share: abs(share - SHOWN_SHARE))


def effects_table(effects: Effects, kind: str) -> Table:
    """A row a layer: the effects of the whole layer and of the families at one share, in per cent."""
    layers, families = _at_shown_share(effects, kind)
    whole = {row.layer: row for row in effects.rows if row.kind == kind and row.family == WHOLE}
    images = next(iter(whole.values())).images
    share = 100 * shown_share(effects)
    table = Table(title=f"{kind}: % of {images} images {HAPPENS[kind]}, {share:g} % of each layer's neurons")
    table.add_column("layer")
    for heading in (WHOLE, *families):
        table.add_column(heading.replace("_", "\n", 1).replace("_", " "), justify="right")
    for layer, rows in layers.items():
        shown = (whole[layer], *(rows[family] for family in families))
        table.add_row(layer, *(f"{100 * row.effect:.1f}" for row in shown))
    return table


def contrasts_table(effects: Effects, kind: str) -> Table:
    """A row a layer: the most sensitive set's effect minus each control's, in points."""
    layers, families = _at_shown_share(effects, kind)
    controls = [family for family in families if family not in (MOST, LEAST)]
    table = Table(title=f"{kind}: the most sensitive set minus each control, points [95 % interval]")
    table.add_column("layer")
    for heading in controls:
        table.add_column(heading.replace("_", "\n", 1).replace("_", " "), justify="right")
    for layer, rows in layers.items():
        table.add_row(layer, *(contrast(rows[family]) for family in controls))
    return table


def _at_shown_share(effects: Effects, kind: str) -> tuple[dict[str, dict[str, Row]], list[str]]:
    """{layer: {family: row}} and the families."""
    share = shown_share(effects)
    layers: dict[str, dict[str, Row]] = {}
    for row in effects.rows:
        if row.kind == kind and row.share == share and row.family != WHOLE:
            layers.setdefault(row.layer, {})[row.family] = row
    return layers, list(next(iter(layers.values())))


def contrast(row: Row) -> str:
    """'+12.3 [+8.0, +16.1]', in points."""
    points = [100 * value for value in (row.contrast, row.contrast_low, row.contrast_high) if value is not None]
    return f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]"


def layers_table(effects: Effects) -> Table:
    """What was ranked: how much of each layer's summed sensitivity the sets hold, and how activation goes with it."""
    share = shown_share(effects)
    layers, _ = _at_shown_share(effects, effects.rows[0].kind)
    table = Table(
        title=f"ranking: the most sensitive {100 * share:g} % of each layer's neurons, and the controls of equal size"
    )
    table.add_column("layer")
    for heading in (
        "neurons",
        "correlation with\nactivation",
        "mass of most\nsensitive, %",
        "mass of random\nequal size, %",
        "mass of least\nsensitive, %",
        "neurons in random\nequal mass",
        "of most sensitive\nin that, %",
    ):
        table.add_column(heading, justify="right")
    for layer, figures in effects.layers.items():
        correlation = figures["correlation_of_sensitivity_and_activation"]
        most, size, least, mass = (layers[layer][family] for family in (MOST, SIZE, LEAST, MASS))
        table.add_row(
            layer,
            f"{most.layer_neurons}",
            "" if correlation is None else f"{correlation:.2f}",
            *(f"{100 * row.mass:.0f}" for row in (most, size, least)),
            f"{mass.neurons:.1f}",
            f"{100 * mass.overlap:.0f}",
        )
    return table
