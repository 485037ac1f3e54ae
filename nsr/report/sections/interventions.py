"""Interventions: what the most sensitive neurons cause, against each control, with a verdict for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas

from nsr.comparison.reading import evaluate_command
from nsr.report.drawing import ROW, drawn, legend, name_rows
from nsr.report.files import RunFiles, folder_of
from nsr.report.numbers import columns_of
from nsr.report.parts import Cell, Figure, Section, Table

SHOWN_FRACTION, FEWEST_IMAGES = 0.5, 50
MOST = "most_sensitive"
CONTROLS = {  # name: (what it is, color, marker)
    "random_equal_size": ("random neurons, as many", "#56B4E9", "D"),
    "random_equal_sensitivity": ("random neurons with the same summed sensitivity", "#0072B2", "s"),
    "random_equal_squared_difference": ("random neurons with the same summed squared difference", "#E69F00", "P"),
    "least_sensitive": ("the least sensitive neurons, as many", "#7F7F7F", "v"),
    "whole_layer": ("all neurons of the layer: the upper bound of an effect", "#7F7F7F", "o"),
}
RANDOM = tuple(CONTROLS)[:3]
KINDS = {
    "patch_clean": "Clean activations put into the adversarial pass: images corrected",
    "patch_adversarial": "Adversarial activations put into the clean pass: images misclassified",
    "zero_ablation": "Neurons set to 0 in the clean pass: images misclassified",
    "mean_ablation": "Neurons set to their mean in the clean pass: images misclassified",
}


def section(run: RunFiles) -> Section | None:
    """Plot interventions.csv of the newest evaluation that has one, with the verdicts of interventions.json."""
    title = "Interventions"
    for measurement in reversed(run.measurements):
        frame = run.frame("interventions.csv", folder_of(run, measurement))
        if len(frame):
            summary = run.mapping("interventions.json", folder_of(run, measurement))
            return _section(title, frame, summary)
    if run.measured is None:
        return None
    code = [] if run.is_evaluation else [evaluate_command(run.directory, "analyses=[interventions]")]
    return Section(title, "interventions", ["None were measured; analyses=[interventions] measures them."], code=code)


def _section(title: str, frame: pandas.DataFrame, summary: Mapping[str, Any]) -> Section:
    fractions = sorted(set(frame["fraction"][frame["control"] == MOST]))
    fraction = min(fractions, key=lambda one: abs(one - SHOWN_FRACTION))
    shown = frame[frame["fraction"] == fraction]
    kinds = list(dict.fromkeys(frame["kind"]))
    text = (
        f"Shown at {100 * fraction:g} % of each layer's neurons: the effect of the most sensitive ones minus that of "
    )
    text += "random ones, in percentage points of the images; above 0 the most sensitive neurons matter more. Bars are "
    text += "95 % bootstrap intervals over images and random sets."
    paragraphs = [text, *_warnings(frame, summary)]
    figures = [_contrasts(shown[shown["kind"] == kind], kind, fraction) for kind in kinds]
    verdicts = summary.get("verdicts")
    tables = [_verdicts(verdicts)] if isinstance(verdicts, Mapping) else []
    names = [[Cell(name.replace("_", " ")), Cell(words)] for name, (words, *_) in CONTROLS.items()]
    tables += [_effects(shown, frame), Table("Controls", ["control", "neurons"], names, texts=2)]
    numbers = ["layer", "kind", "fraction", "control", "images", "effect", "contrast", "contrast_low", "contrast_high"]
    data = {"fraction": fraction, "rows": columns_of(shown[numbers]), "verdicts": verdicts}
    return Section(title, "interventions", paragraphs, figures, tables, data)


def _warnings(frame: pandas.DataFrame, summary: Mapping[str, Any]) -> list[str]:
    """Return a warning for each kind with too few images, and the layers that were skipped."""
    counts = frame.groupby("kind", sort=False)["images"].min()
    small = [f"{kind.replace('_', ' ')} ({count:.0f})" for kind, count in counts.items() if count < FEWEST_IMAGES]
    found = [f"Too few images for a verdict (fewer than {FEWEST_IMAGES}): {', '.join(small)}."] if small else []
    skipped = summary.get("skipped")
    if isinstance(skipped, Mapping) and skipped:
        found.append("Skipped: " + "; ".join(f"{layer}: {reason}" for layer, reason in skipped.items()) + ".")
    return found


def _contrasts(rows: pandas.DataFrame, kind: str, fraction: float) -> Figure:
    layers = list(dict.fromkeys(rows["layer"]))
    with drawn(height=1.15 + 2.2 * ROW * len(layers)) as (axes, image):
        axes.axvline(0, color="0.5", linewidth=0.7, zorder=1)
        for control, shift in zip(RANDOM, (-0.24, 0, 0.24), strict=True):
            own = rows[rows["control"] == control].set_index("layer").reindex(layers)
            _, color, marker = CONTROLS[control]
            middle, low, high = (100 * own[name].astype(float) for name in _names("contrast"))
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none", "elinewidth": 0.9}
            places = [number + shift for number in range(len(layers))]
            label = f"minus {control.replace('_', ' ')}"
            axes.errorbar(middle, places, xerr=[middle - low, high - middle], label=label, **style)
        name_rows(axes, layers)
        axes.set_xlabel("difference (percentage points)")
        legend(axes, columns=1)
        images = f"{int(rows['images'].max()):,} images"
        what = KINDS.get(kind, kind.replace("_", " "))
        alt = f"{what}: most sensitive neurons minus random ones, for each of {len(layers)} layers."
        return Figure(image(), alt, f"{what}. {100 * fraction:g} % of each layer's neurons, {images}.")


def _names(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _verdicts(verdicts: Mapping[str, Any]) -> Table:
    rows = [
        [Cell(str(layer)), Cell(str(kind).replace("_", " ")), Cell(str(sentence).removeprefix(f"{layer}: "))]
        for kind, own in verdicts.items()
        if isinstance(own, Mapping)
        for layer, sentence in own.items()
    ]
    note = "Holm's correction over all contrasts of a kind."
    return Table("Verdict for each layer", ["layer", "kind", "verdict"], rows, texts=3, note=note)


def _effects(shown: pandas.DataFrame, frame: pandas.DataFrame) -> Table:
    controls = [MOST, *[name for name in dict.fromkeys(frame["control"]) if name != MOST]]
    whole = frame[frame["control"] == "whole_layer"]
    table = pandas.concat([shown[shown["control"] != "whole_layer"], whole])
    effects = table.pivot_table(index=["layer", "kind"], columns="control", values="effect", sort=False)
    rows = [
        [Cell(str(layer)), Cell(str(kind).replace("_", " "))] + [_percent(values.get(control)) for control in controls]
        for (layer, kind), values in effects.iterrows()
    ]
    headings = ["layer", "kind", *(control.replace("_", " ") for control in controls)]
    return Table("Effect: images corrected or misclassified (%)", headings, rows, texts=2)


def _percent(value: float | None) -> Cell:
    return Cell("–") if value is None or value != value else Cell(f"{100 * value:.1f}", float(value))
