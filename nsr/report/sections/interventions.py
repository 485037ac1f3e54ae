"""Interventions: what the most sensitive neurons cause, against each control, with a verdict for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas

from nsr.comparison.reading import evaluate_command
from nsr.plots import interventions
from nsr.plots.contrasts import CONTROLS, FEWEST_IMAGES, WHOLE, nearest_shown
from nsr.report.drawing import svg
from nsr.report.files import RunFiles, folder_of
from nsr.report.parts import Figure, Section
from nsr.run.tables import Cell, Table

MOST = "most_sensitive"
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
    fraction = nearest_shown(frame["fraction"][frame["control"] == MOST])
    shown = frame[frame["fraction"] == fraction]
    kinds = list(dict.fromkeys(frame["kind"]))
    text = (
        f"Shown at {100 * fraction:g} % of each layer's neurons: the effect of the most sensitive ones minus that of "
        "random ones, in percentage points of the images; above 0 the most sensitive neurons matter more. Bars are "
        "95 % bootstrap intervals over images and random sets."
    )
    paragraphs = [text, *_warnings(frame, summary)]
    figures = [_contrasts(shown[shown["kind"] == kind], kind, fraction) for kind in kinds]
    verdicts = summary.get("verdicts")
    tables = [_verdicts(verdicts)] if isinstance(verdicts, Mapping) else []
    words = {name: words for name, (words, *_) in CONTROLS.items() if name != MOST}
    words[WHOLE] = "all neurons of the layer: the upper bound of an effect"
    shown_names = set(frame["control"])
    names = [[Cell(name.replace("_", " ")), Cell(text)] for name, text in words.items() if name in shown_names]
    tables += [_effects(shown, frame), Table("Controls", ["control", "neurons"], names, texts=2)]
    numbers = ["layer", "kind", "fraction", "control", "images", "effect", "contrast", "contrast_low", "contrast_high"]
    data = {"fraction": fraction, "rows": shown[numbers].to_dict("list"), "verdicts": verdicts}
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
    images, layers = f"{int(rows['images'].max()):,} images", rows["layer"].nunique()
    what = KINDS.get(kind, kind.replace("_", " "))
    alt = f"{what}: most sensitive neurons minus random ones, for each of {layers} layers."
    return Figure(svg(interventions(rows)), alt, f"{what}. {100 * fraction:g} % of each layer's neurons, {images}.")


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
    whole = frame[frame["control"] == WHOLE]
    table = pandas.concat([shown[shown["control"] != WHOLE], whole])
    effects = table.pivot_table(index=["layer", "kind"], columns="control", values="effect", sort=False)
    rows = [
        [Cell(str(layer)), Cell(str(kind).replace("_", " "))] + [_percent(values.get(control)) for control in controls]
        for (layer, kind), values in effects.iterrows()
    ]
    headings = ["layer", "kind", *(control.replace("_", " ") for control in controls)]
    return Table("Effect: images corrected or misclassified (%)", headings, rows, texts=2)


def _percent(value: float | None) -> Cell:
    return Cell("–") if value is None or value != value else Cell(f"{100 * value:.1f}", float(value))
