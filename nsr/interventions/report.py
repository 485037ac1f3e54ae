"""Results of interventions as files, plots (`nsr.plots`) and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsr.interventions.controls import LEAST, MOST, WHOLE
from nsr.interventions.effects import Effects, Row
from nsr.interventions.verdicts import is_uninformative, verdicts
from nsr.plots import intervention_effects, interventions, save
from nsr.plots.contrasts import FEWEST_IMAGES, nearest_shown
from nsr.run.files import write_json, write_rows
from nsr.run.tables import screen_table

if TYPE_CHECKING:
    from rich.table import Table


def write_effects(directory: Path, effects: Effects, *, settings: Mapping[str, Any]) -> list[str]:
    """Write interventions.csv (a row per layer, kind, fraction and control), interventions.json, interventions/*.

    Returns:
        The names of what was written, relative to `directory`.
    """
    columns = [column.name for column in fields(Row)]
    write_rows(directory / "interventions.csv", columns, [list(astuple(row)) for row in effects.rows])
    summary = {"images": effects.images, "skipped": effects.skipped, "layers": effects.layers}
    summary["verdicts"] = {kind: verdicts(_at_shown_fraction(effects, kind)) for kind in effects.kinds()}
    write_json(directory / "interventions.json", {"settings": dict(settings), **summary})
    folder = directory / "interventions"
    folder.mkdir(exist_ok=True)
    frame, fraction = effects.frame(), shown_fraction(effects)
    title = f"{100 * fraction:g} % of each layer's neurons"
    save(interventions(frame[frame["fraction"] == fraction], title=title), folder / "network")
    for layer in effects.layers:
        save(intervention_effects(frame[frame["layer"] == layer]), folder / layer.replace("#", "_call"))
    return ["interventions.csv", "interventions.json", f"interventions/ ({len(effects.layers) + 1} plots)"]


def shown_fraction(effects: Effects) -> float:
    """The fraction to show where only one is shown."""
    return nearest_shown(row.fraction for row in effects.rows if row.control == MOST)


# ---------------------------------------------------------------- tables


def tables(effects: Effects) -> Iterator[Table | str]:
    """Tables of effects and of contrasts for each kind, a row per layer, at one fraction, and a verdict per layer."""
    of_neurons = f"{100 * shown_fraction(effects):g} % of each layer's neurons"
    for kind in effects.kinds():
        by_layer = _at_shown_fraction(effects, kind)
        first = next(iter(by_layer.values()))
        outcome = "correctly classified" if kind == "patch_clean" else "misclassified"
        yield screen_table(
            f"{kind}: % of {first[MOST].images} images that become {outcome}, {of_neurons}",
            ["layer", *(control.replace("_", " ") for control in first)],
            ([layer, *(f"{100 * row.effect:.1f}" for row in rows.values())] for layer, rows in by_layer.items()),
        )
        controls = [control for control in first if control not in (MOST, LEAST, WHOLE)]
        yield screen_table(
            f"{kind}: effect of the most sensitive neurons minus each control, percentage points [95 % interval]",
            ["layer", *(control.replace("_", " ") for control in controls)],
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
