"""Training curves: accuracies, loss terms and learning rate of every epoch, from metrics.csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas

from nsr.errors import fraction
from nsr.plots import training_curves
from nsr.plots.curves import ACCURACIES, has_values, loss_columns, spelled
from nsr.report.drawing import svg
from nsr.report.facts import validation_attack
from nsr.report.files import RunFiles
from nsr.report.numbers import percent, rounded
from nsr.report.parts import Figure, Section
from nsr.run.tables import Cell, Table

RAMP = "nsr.callbacks.Ramp"


def section(run: RunFiles) -> Section | None:
    """Plot metrics.csv; the best epoch and the epochs at which the run was resumed are marked."""
    if run.is_evaluation:
        return None
    frame, title = run.frame("metrics.csv"), "Training"
    if frame.empty:
        return Section(title, "training", ["There is no metrics.csv yet: no epoch has ended."])
    marks = {"best_epoch": run.run.best_epoch, "resumed": _resumed(run)}
    epsilon = ramped_epsilon(run.run.settings, frame["epoch"].tolist())
    paragraphs = [_sentence(frame, marks, run)]
    data = {"epochs": frame.to_dict("list"), "epsilon": epsilon, **marks}
    return Section(title, "training", paragraphs, list(_figures(frame, epsilon, marks, run)), [_table(frame)], data)


def _resumed(run: RunFiles) -> list[int]:
    """Return the epochs after which the run was resumed or extended."""
    found = run.mapping("timing.json").get("resumed")
    extended = [entry.get("from") for entry in run.run.settings.get("extended") or () if isinstance(entry, dict)]
    return sorted({epoch for epoch in [*(found if isinstance(found, list) else ()), *extended] if type(epoch) is int})


def _sentence(frame: pandas.DataFrame, marks: dict[str, Any], run: RunFiles) -> str:
    by = validation_attack(run.run.settings)
    text = f"Epoch 0 is before training. Robust accuracy of validation images is under {by}; that of training"
    text += " images is under the training attack, while the weights still change."
    best = frame[frame["epoch"] == marks["best_epoch"]]
    robust = "validation/robust_accuracy"
    if len(best) and robust in best:
        last = frame.iloc[-1]
        text += f" The best epoch, {marks['best_epoch']}, has {percent(best.iloc[0][robust])} on validation images"
        is_last = last["epoch"] == marks["best_epoch"]
        text += "; it is the last." if is_last else f", the last one, {last['epoch']:.0f}, {percent(last[robust])}."
    return text


def _figures(
    frame: pandas.DataFrame, epsilon: list[float | None] | None, marks: dict[str, Any], run: RunFiles
) -> Iterator[Figure]:
    """Yield the curves that have values."""
    if any(has_values(frame, name) for name in ACCURACIES):
        alt = f"Clean and robust accuracy over {len(frame) - 1} epochs; the numbers are in the table below."
        caption = "Accuracy of each epoch, on training images and on all validation images (robust: "
        caption += f"{validation_attack(run.run.settings)})."
        yield Figure(svg(training_curves(frame, **marks)), alt, caption)
    if names := loss_columns(frame):
        listed = ", ".join(spelled(name.removeprefix("train/")) for name in names)
        alt = f"Terms of the training loss over {len(frame) - 1} epochs: {listed}."
        caption = "Terms of the training loss, means over each epoch."
        yield Figure(svg(training_curves(frame, of="loss", **marks)), alt, caption)
    shown = frame.assign(training_epsilon=epsilon) if epsilon else frame
    for name, when in (("learning_rate", "at the beginning"), ("training_epsilon", "at the end")):
        if has_values(shown, name):
            caption = f"{spelled(name).capitalize()} {when} of each epoch."
            alt = caption.replace(f" {when}", "")
            yield Figure(svg(training_curves(shown, of=name, **marks)), alt, caption)


def ramped_epsilon(settings: Mapping[str, Any], epochs: Sequence[float]) -> list[float | None] | None:
    """Return the training attack's epsilon at the end of each epoch, None where no ramp of nsr changes it."""
    callbacks, attack = settings.get("callbacks") or {}, settings.get("train_attack") or {}
    for ramp in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if str(ramp.get("_target_")) == RAMP and ramp.get("of") == "train_attack" and "epsilon" in attack:
            start, initial = ramp.get("start", 0), ramp.get("initial", 0)
            radius = fraction("epsilon", attack["epsilon"])
            progress = [min(1.0, max(0.0, (epoch - start) / ramp["epochs"])) for epoch in epochs]
            scales = [initial + (1 - initial) * done for done in progress]
            return [radius * scale if epoch else None for epoch, scale in zip(epochs, scales, strict=True)]
    return None


def _table(frame: pandas.DataFrame) -> Table:
    names = [name for name in frame if name != "epoch"]
    rows = [
        [Cell(f"{row['epoch']:.0f}", row["epoch"]), *(_cell(name, row[name]) for name in names)]
        for row in frame.to_dict("records")
    ]
    headings = ["epoch", *(name.replace("/", " ").replace("_", " ") for name in names)]
    return Table("Every epoch", headings, rows)


def _cell(name: str, value: Any) -> Cell:
    if not isinstance(value, (int, float)) or value != value:
        return Cell("–")
    return Cell(percent(value) if name.endswith("_accuracy") else rounded(value), value)
