"""What interventions found, as files and on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from nsr.analysis.figures import layer_figure, network_figure, save
from nsr.analysis.outcomes import Effects, Row
from nsr.analysis.sets import LEAST, MASS, MOST, RANDOM, SIZE, WHOLE
from nsr.files import append_rows, write_json

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
    """A row a layer: effects of the families at one share, and the contrasts with the random ones."""
    share = shown_share(effects)
    rows = {(row.layer, row.family): row for row in effects.rows if row.kind == kind and row.share == share}
    whole = {row.layer: row for row in effects.rows if row.kind == kind and row.family == WHOLE}
    images = next(iter(whole.values())).images
    families = list(dict.fromkeys(family for _, family in rows if family != WHOLE))
    table = Table(title=f"{kind}: % of {images} images {HAPPENS[kind]}, {100 * share:g} % of each layer's neurons")
    table.add_column("layer")
    for heading in ("whole_layer", *families):
        table.add_column(heading.replace("_", "\n", 1).replace("_", " "), justify="right")
    for family in RANDOM:
        table.add_column(f"most - {family.removeprefix('random_').replace('_', ' ')}\n[95 %]", justify="right")
    for layer, everything in whole.items():
        cells = [f"{100 * rows[layer, family].effect:.1f}" for family in families]
        contrasts = [contrast(rows[layer, family]) for family in RANDOM]
        table.add_row(layer, f"{100 * everything.effect:.1f}", *cells, *contrasts)
    return table


def contrast(row: Row) -> str:
    """'+12.3 [+8.0, +16.1]', in points."""
    points = [100 * value for value in (row.contrast, row.contrast_low, row.contrast_high) if value is not None]
    return f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]"


def layers_table(effects: Effects) -> Table:
    """What was ranked: how much of each layer's summed sensitivity the sets hold, and how activation goes with it."""
    share = shown_share(effects)
    kind = effects.rows[0].kind
    rows = {(row.layer, row.family): row for row in effects.rows if row.kind == kind and row.share == share}
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
        most, size, least, mass = (rows[layer, family] for family in (MOST, SIZE, LEAST, MASS))
        table.add_row(
            layer,
            f"{most.layer_neurons}",
            "" if correlation is None else f"{correlation:.2f}",
            *(f"{100 * row.mass:.0f}" for row in (most, size, least)),
            f"{mass.neurons:.1f}",
            f"{100 * mass.overlap:.0f}",
        )
    return table
