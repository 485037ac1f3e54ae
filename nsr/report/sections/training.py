"""Training curves: accuracies, loss terms and learning rate of every epoch, from metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from nsr.errors import fraction
from nsr.report.drawing import CLEAN, OTHER, ROBUST, drawn, legend
from nsr.report.files import RunFiles
from nsr.report.numbers import columns_of, percent, rounded
from nsr.report.parts import Cell, Figure, Section, Table

RAMP = "nsr.callbacks.Ramp"
ACCURACIES = {  # column: (label, color, line, marker)
    "train/clean_accuracy": ("clean, training", CLEAN, "--", ""),
    "validation/clean_accuracy": ("clean, validation", CLEAN, "-", "o"),
    "train/robust_accuracy": ("robust, training", ROBUST, "--", ""),
    "validation/robust_accuracy": ("robust, validation", ROBUST, "-", "s"),
}


def section(run: RunFiles) -> Section | None:
    """Plot metrics.csv; the best epoch and the epochs at which the run was resumed are marked."""
    if run.is_evaluation:
        return None
    frame, title = run.frame("metrics.csv"), "Training"
    if frame.empty:
        return Section(title, "training", ["There is no metrics.csv yet: no epoch has ended."])
    marks = {"best_epoch": run.run.best_epoch, "resumed": _resumed(run)}
    losses = [name for name in frame if name.startswith("train/") and not name.endswith("_accuracy")]
    epsilon = ramped_epsilon(run.run.settings, frame["epoch"].tolist())
    rates = [("learning_rate", "learning rate", frame.get("learning_rate")), ("epsilon", "training epsilon", epsilon)]
    steps = [_steps(frame, values, label, marks) for _, label, values in rates]
    figures = [_accuracy(frame, marks), _line(frame, losses, marks), *steps]
    paragraphs = [_sentence(frame, marks, run)]
    data = {"epochs": columns_of(frame), "epsilon": epsilon, **marks}
    return Section(title, "training", paragraphs, [figure for figure in figures if figure], [_table(frame)], data)


def _resumed(run: RunFiles) -> list[int]:
    """Return the epochs after which the run was resumed or extended."""
    found = run.mapping("timing.json").get("resumed")
    extended = [entry.get("from") for entry in run.run.settings.get("extended") or () if isinstance(entry, dict)]
    return sorted({epoch for epoch in [*(found if isinstance(found, list) else ()), *extended] if type(epoch) is int})


def _sentence(frame: pandas.DataFrame, marks: dict[str, Any], run: RunFiles) -> str:
    attack = run.run.settings.get("validation_attack") or {}
    by = f"PGD-{attack['steps']}" if type(attack.get("steps")) is int else "the validation attack"
    text = f"Epoch 0 is the untrained network. Robust accuracy of validation images is under {by}; that of training"
    text += " images is under the training attack, while the weights still change."
    best = frame[frame["epoch"] == marks["best_epoch"]]
    robust = "validation/robust_accuracy"
    if len(best) and robust in best:
        last = frame.iloc[-1]
        text += f" The best epoch, {marks['best_epoch']}, has {percent(best.iloc[0][robust])} on validation images"
        is_last = last["epoch"] == marks["best_epoch"]
        text += "; it is the last." if is_last else f", the last one, {last['epoch']:.0f}, {percent(last[robust])}."
    return text


def _mark(axes: Any, marks: dict[str, Any]) -> None:
    axes.set_xlabel("epoch (0: before training)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if marks["best_epoch"] is not None:
        axes.axvline(marks["best_epoch"], color="0.5", linestyle=":", linewidth=1, label="best epoch", zorder=1)
    for place, epoch in enumerate(marks["resumed"]):
        label = None if place else "resumed"
        axes.axvline(epoch, color="#CC79A7", linestyle=(0, (1, 1)), linewidth=1, label=label, zorder=1)


def _accuracy(frame: pandas.DataFrame, marks: dict[str, Any]) -> Figure | None:
    shown = {name: style for name, style in ACCURACIES.items() if name in frame and frame[name].notna().any()}
    if not shown:
        return None
    every = max(1, len(frame) // 12)
    with drawn(height=2.5) as (axes, image):
        for name, (label, color, line, marker) in shown.items():
            axes.plot(frame["epoch"], 100 * frame[name], line, color=color, marker=marker, markevery=every, label=label)
        axes.set(ylabel="accuracy (%)", ylim=(0, 102))
        _mark(axes, marks)
        legend(axes)
        alt = f"Clean and robust accuracy over {len(frame) - 1} epochs; the numbers are in the table below."
        return Figure(image(), alt, "Accuracy of each epoch, on training images and on all validation images.")


def _line(frame: pandas.DataFrame, names: list[str], marks: dict[str, Any]) -> Figure | None:
    names = [name for name in names if frame[name].notna().any()]
    if not names:
        return None
    with drawn(height=2.5) as (axes, image):
        for name, line in zip(names, ["-", "--", "-.", ":"] * len(names), strict=False):
            axes.plot(frame["epoch"], frame[name], line, label=name.removeprefix("train/").replace("_", " "))
        axes.set(ylabel="loss terms as weighted")
        _mark(axes, marks)
        legend(axes)
        listed = ", ".join(name.removeprefix("train/").replace("_", " ") for name in names)
        alt = f"Terms of the training loss over {len(frame) - 1} epochs: {listed}."
        return Figure(image(), alt, "Terms of the training loss, means over each epoch.")


def ramped_epsilon(settings: Mapping[str, Any], epochs: Sequence[float]) -> list[float | None] | None:
    """Return the training attack's epsilon at the end of each epoch, None where no ramp of nsr changes it."""
    callbacks, attack = settings.get("callbacks") or {}, settings.get("train_attack") or {}
    for ramp in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if str(ramp.get("_target_")) == RAMP and ramp.get("of") == "train_attack" and "epsilon" in attack:
            start, initial, radius = (
                ramp.get("start", 0),
                ramp.get("initial", 0),
                fraction("epsilon", attack["epsilon"]),
            )
            progress = [min(1.0, max(0.0, (epoch - start) / ramp["epochs"])) for epoch in epochs]
            scales = [initial + (1 - initial) * done for done in progress]
            return [radius * scale if epoch else None for epoch, scale in zip(epochs, scales, strict=True)]
    return None


def _steps(frame: pandas.DataFrame, values: Any, label: str, marks: dict[str, Any]) -> Figure | None:
    found = pandas.Series(values, frame.index, dtype=float)
    if not found.notna().any():
        return None
    with drawn(height=1.8) as (axes, image):
        axes.step(frame["epoch"], found, where="mid", color=OTHER)
        axes.set(ylabel=label, ylim=(0, None))
        _mark(axes, marks)
        when = "at the beginning" if label == "learning rate" else "at the end"
        name = f"{label[0].upper()}{label[1:]}"
        return Figure(image(), f"{name} of each epoch.", f"{name} {when} of each epoch.")


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
