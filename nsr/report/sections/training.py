"""Training curves: accuracies, loss terms and learning rate of every epoch, from metrics.csv."""

from __future__ import annotations

from typing import Any

import pandas

from nsr.report.drawing import CLEAN, OTHER, ROBUST, drawn, legend
from nsr.report.files import RunFiles
from nsr.report.numbers import columns_of, percent, rounded
from nsr.report.parts import Cell, Figure, Section, Table

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
    figures = [_accuracy(frame, marks), _line(frame, losses, marks), _rate(frame, marks)]
    paragraphs = [_sentence(frame, marks, run)]
    data = {"epochs": columns_of(frame), **marks}
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
        text += f" The best epoch, {marks['best_epoch']}, has {percent(best.iloc[0][robust])} on validation images,"
        text += f" the last one, {last['epoch']:.0f}, {percent(last[robust])}."
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
        axes.set(ylabel="loss (nats), stabilizer term weighted" if "train/stabilizer" in names else "loss (nats)")
        _mark(axes, marks)
        legend(axes)
        listed = ", ".join(name.removeprefix("train/").replace("_", " ") for name in names)
        alt = f"Terms of the training loss over {len(frame) - 1} epochs: {listed}."
        return Figure(image(), alt, "Terms of the training loss, means over each epoch.")


def _rate(frame: pandas.DataFrame, marks: dict[str, Any]) -> Figure | None:
    if "learning_rate" not in frame or not frame["learning_rate"].notna().any():
        return None
    with drawn(height=1.8) as (axes, image):
        axes.step(frame["epoch"], frame["learning_rate"], where="mid", color=OTHER)
        axes.set(ylabel="learning rate", ylim=(0, None))
        _mark(axes, marks)
        return Figure(image(), "Learning rate of each epoch.", "Learning rate at the beginning of each epoch.")


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
