"""What a finished run or an evaluation shows: figures, tables, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from nsr.callbacks.records import SENSITIVITY_COLUMNS, write_sensitivities
from nsr.evaluation.corrupted import CorruptionAccuracy
from nsr.evaluation.masking_checks import Alarm
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.run.files import append_rows, layer_means, write_json, write_rows
from nsr.sensitivity import most_sensitive
from nsr.training.module import RobustClassifier


def test(trainer: pl.Trainer, module: RobustClassifier, data: pl.LightningDataModule, *, name: str) -> dict[str, float]:
    """Measures `module` as it is on the test set: {name/ATTACK_accuracy: ..., and _low and _high, its interval}."""
    module.test_name = name
    trainer.test(module, datamodule=data, verbose=False)
    return module.figures["test"]


def accuracy_table(title: str, columns: Mapping[str, Mapping[str, float]], attacks: Mapping[str, str]) -> Table:
    """A row an attack, a column a checkpoint.

    Args:
        columns: {heading: {ATTACK_accuracy: fraction}}.
        attacks: {ATTACK: how it is called on the screen}.
    """
    table = Table(title=title)
    table.add_column("attack")
    for heading in columns:
        table.add_column(heading, justify="right")
    for attack, shown in attacks.items():
        table.add_row(shown, *(f"{100 * figures[f'{attack}_accuracy']:.2f} %" for figures in columns.values()))
    return table


def evaluation_table(figures: Mapping[str, float], attacks: Mapping[str, str], which: str) -> Table:
    """A row an attack: accuracy over all images and its 95 % interval.

    Args:
        figures: {ATTACK_accuracy, ATTACK_low, ATTACK_high: fraction}.
        attacks: {ATTACK: how it is called on the screen}.
        which: the images, in words.
    """
    table = Table(title=f"{which}\nfloat32, eval mode; each attack alone on every image right without one")
    table.add_column("attack")
    for heading in ("accuracy", "95 % interval"):
        table.add_column(heading, justify="right")
    for attack, shown in attacks.items():
        accuracy, low, high = (100 * figures[f"{attack}_{what}"] for what in ("accuracy", "low", "high"))
        table.add_row(shown, f"{accuracy:.2f} %", f"{low:.1f} to {high:.1f} %")
    return table


def before_after_table(records: Path, best_epoch: int) -> Table:
    """Mean sensitivity of each layer before training and at the best epoch, from a run's sensitivity.csv."""
    means = {epoch: layer_means(records, epoch) for epoch in (0, best_epoch)}
    table = Table(title=f"sensitivity under the validation attack, before training and after epoch {best_epoch}")
    table.add_column("mean over the layer's neurons")
    for figure in SENSITIVITY_COLUMNS[3:]:
        for when in ("before", "after"):
            table.add_column(f"{figure.replace('_', ' ')}\n{when}", justify="right")
    for layer, before in means[0].items():
        pairs = zip(before, means[best_epoch][layer], strict=True)
        table.add_row(layer, *(f"{value:.4f}" for pair in pairs for value in pair))
    return table


def most_sensitive_table(sensitivities: Mapping[str, LayerSensitivity], *, top: int) -> Table:
    """Each layer's means, and its most sensitive neurons by id with their absolute sensitivity."""
    table = Table(title="sensitivity under the attack of sensitivity_attack, all test images")
    for heading in ("layer", "neurons", "absolute", "relative", "activation"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    table.add_column("most sensitive neurons, id (absolute)")
    for layer, figures in sensitivities.items():
        ids = most_sensitive(figures.absolute, top).tolist()
        named = ", ".join(f"{neuron} ({float(figures.absolute[neuron]):.3g})" for neuron in ids)
        means = [f"{value:.4f}" for value in figures.means().values()]
        table.add_row(layer, str(len(figures.absolute)), *means, named)
    return table


def show_run(
    directory: Path, results: Mapping[str, float], attacks: Mapping[str, str], judged: Sequence[Alarm] = ()
) -> None:
    """The end of a training run: alarms, accuracies, sensitivities before and after, where all lies, what to try."""
    if any(alarm.raised for alarm in judged):
        show_alarms(judged, "alarms of this training")
    best, last = int(results["best_epoch"]), int(results["last_epoch"])
    columns = {f"best (epoch {best})": _part(results, "test/"), f"last (epoch {last})": _part(results, "test_last/")}
    checkpoint = directory / "checkpoints" / "best.ckpt"
    show(
        accuracy_table("accuracy on the test set", columns, attacks),
        before_after_table(directory / "sensitivity.csv", best),
        f"\nrun directory  {_relative(directory)}",
        "               metrics.json, metrics.csv, sensitivity.csv, alarms.json, images.csv, config.yaml, checkpoints/",
        f"try next       python evaluate.py checkpoint={_relative(checkpoint)}",
    )


def write_evaluation(
    directory: Path,
    figures: Mapping[str, float],
    sensitivities: Mapping[str, LayerSensitivity],
    outcomes: Mapping[str, Tensor],
    corrupted: Sequence[CorruptionAccuracy] = (),
) -> None:
    """evaluation.json (flat figures), evaluation.csv (a row an attack), sensitivity.csv (a neuron), images.csv.

    corruptions.csv has a row for each corruption and severity, where some were measured.
    """
    write_outcomes(directory / "images.csv", outcomes)
    if corrupted:
        append_rows(directory / "corruptions.csv", CorruptionAccuracy._fields, corrupted)
    write_json(directory / "evaluation.json", dict(figures))
    attacks = [name.removeprefix("test/").removesuffix("_low") for name in figures if name.endswith("_low")]
    rows = [[name, *(figures[f"test/{name}_{what}"] for what in ("accuracy", "low", "high"))] for name in attacks]
    append_rows(directory / "evaluation.csv", ["attack", "accuracy", "low", "high"], rows)
    write_sensitivities(directory / "sensitivity.csv", "", sensitivities)


def show_evaluation(
    directory: Path,
    figures: Mapping[str, float],
    sensitivities: Mapping[str, LayerSensitivity],
    attacks: Mapping[str, str],
    *,
    which: str,
    top: int,
) -> None:
    """The end of an evaluation: accuracies, sensitivities with the most sensitive neurons, where everything lies."""
    show(
        evaluation_table(_part(figures, "test/"), attacks, which),
        most_sensitive_table(sensitivities, top=top) if sensitivities else "",
        f"\nwritten to  {_relative(directory)}  evaluation.json, evaluation.csv, sensitivity.csv, images.csv",
    )


def show_corruptions(rows: Sequence[CorruptionAccuracy]) -> None:
    """A row a corruption, a column a severity, and the mean of all; nothing where none were measured."""
    if not rows:
        return
    severities = sorted({row.severity for row in rows})
    table = Table(title="accuracy on corrupted images, by severity")
    for heading in ("corruption", *map(str, severities), "mean"):
        table.add_column(heading, justify="left" if heading == "corruption" else "right")
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row.corruption, []).append(row.accuracy)
    by_name["mean"] = [fmean(column) for column in zip(*by_name.values(), strict=True)]
    for name, accuracies in by_name.items():
        table.add_row(name, *(f"{100 * value:.2f} %" for value in (*accuracies, fmean(accuracies))))
    show(table)


def show_alarms(judged: Sequence[Alarm], title: str = "alarms: this robustness may not be there") -> None:
    """Those that were raised with what they mean; the others in a line."""
    raised = [alarm for alarm in judged if alarm.raised]
    silent, unjudged = (sum(alarm.raised is state for alarm in judged) for state in (False, None))
    if raised:
        table = Table(title=title)
        for heading in ("alarm", "evidence", "usually means"):
            table.add_column(heading, overflow="fold")
        for alarm in raised:
            told = (f"{alarm.title} ({alarm.name})", alarm.evidence, alarm.meaning)
            table.add_row(*map(escape, told))  # callbacks=[awp] is no markup
        show(table)
    show(f"alarms      {len(raised)} raised, {silent} silent, {unjudged} not judged; alarms.json says why")


def write_outcomes(path: Path, outcomes: Mapping[str, Tensor]) -> None:
    """A CSV file with a row an image, in the order of the data set: 1 where it is right under an attack, else 0."""
    columns = [outcome.tolist() for outcome in outcomes.values()]
    write_rows(path, ["image", *outcomes], [[image, *row] for image, row in enumerate(zip(*columns, strict=True))])


def show(*parts: Any) -> None:
    """Prints tables and lines to standard output; where that is no terminal, as wide as they need."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def _part(results: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
