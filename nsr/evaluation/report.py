"""The tables and files of a finished run or evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from nsr.evaluation.corrupted import CorruptionAccuracy
from nsr.evaluation.curve import expanded
from nsr.evaluation.outcomes import CURVE, WORST, SuiteResult, distinct, with_interval
from nsr.evaluation.threat_models import row_epsilon, row_threat_model
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.plots.style import NORMS
from nsr.run.checks import Check
from nsr.run.commands import command, override
from nsr.run.directory import shown
from nsr.run.files import (
    SENSITIVITIES,
    SENSITIVITY_COLUMNS,
    layer_means,
    sensitivity_file,
    write_json,
    write_rows,
    write_sensitivities,
)
from nsr.run.plain_text import lines
from nsr.run.tables import screen_table
from nsr.sensitivity import most_sensitive

CAUTION = "before: initial weights, no reference for robustness; absolute sensitivity rises with the activations"


def titles(settings: Mapping[str, Any], suite: Any, *, of: str = "") -> dict[str, str]:
    """Return {row: its title in a table}; an attack without `title` is called by its name in the configuration.

    Rows of equal titles have their names beside them.

    Args:
        settings: of the command.
        suite: the AttackSuite, for the attack objects.
        of: the word before a radius, which tables leave out.
    """
    found, balls = {"clean": "clean"}, {"clean": ""}
    for name, own in expanded(settings["test_attacks"]).items():
        if own is not None:
            attack = suite.attacks[name]
            norm, _ = row_threat_model(name, attack, settings)
            epsilon = row_epsilon(name, attack, settings)
            radius = f"{epsilon:.4g}" if isinstance(epsilon, float) else str(epsilon)
            prefix = "curve: " if name.startswith(CURVE) else ""
            bf16 = " (search in bf16)" * (getattr(suite.search, "precision", "") == "bf16")
            balls[name] = f"{NORMS.get(norm, norm)} {of}{radius}"
            found[name] = f"{prefix}{getattr(attack, 'title', name)}{bf16}, {balls[name]}"
    of_norms = {row: f"worst case, {balls[rows[-1]]}" for row, rows in suite.worst_cases.items()}
    return distinct(found) | of_norms | ({WORST: "worst case of all norms (union)"} if len(of_norms) > 1 else {})


def accuracy_table(columns: Mapping[str, Mapping[str, float]], attacks: Mapping[str, str]) -> Table:
    """Return a row per attack of {ATTACK: its title}, a column per checkpoint of {heading: its metrics}."""
    rows = (
        [name, *(f"{100 * metrics[f'{attack}_accuracy']:.2f} %" for metrics in columns.values())]
        for attack, name in attacks.items()
    )
    return screen_table("accuracy on the test set", ["attack", *columns], rows)


def evaluation_table(metrics: Mapping[str, float], attacks: Mapping[str, str], which: str) -> Table:
    """Return a row per attack: accuracy over all images, which are described by `which`, and its 95 % interval."""
    rows = []
    for attack, name in attacks.items():
        accuracy, low, high = (100 * value for value in with_interval(metrics, attack))
        rows.append([name, f"{accuracy:.2f} %", f"{low:.1f} to {high:.1f} %"])
    title = f"{which}\nfloat32, eval mode; each attack alone on every image classified correctly without one"
    return screen_table(title, ["attack", "accuracy", "95 % interval"], rows)


def metrics_table(metrics: Mapping[str, float], attacks: Iterable[str]) -> Table | str:
    """Return the user's own metrics, those beside the attacks' accuracies and intervals, a row each; "" without any."""
    known = {f"{row}_{part}" for row in (*attacks, "corruptions") for part in ("accuracy", "low", "high")}
    own = {name: value for name, value in metrics.items() if name not in known}
    rows = [[name, f"{value:.4f}"] for name, value in own.items()]
    return screen_table("further metrics", ["metric", "value"], rows) if rows else ""


def before_after_table(records: Path, best_epoch: int) -> Table:
    """Return each layer's mean sensitivity before training and at the best epoch, from a run's sensitivities."""
    before, after = layer_means(records, 0), layer_means(records, best_epoch)
    names = [name.replace("_", " ") for name in SENSITIVITY_COLUMNS[3:]]
    headings = [f"{name}\n{when}" for name in names for when in ("before", "after")]
    rows = []
    for layer in before:
        pairs = zip(before[layer], after[layer], strict=True)
        rows.append([layer, *(f"{value:.4f}" for pair in pairs for value in pair)])
    title = f"sensitivity under the validation attack, before training and after epoch {best_epoch}"
    table = screen_table(title, ["mean over the layer's neurons", *headings], rows)
    table.caption = CAUTION
    return table


def most_sensitive_table(sensitivities: Mapping[str, LayerSensitivity], *, list_top: int) -> Table:
    """Return each layer's means, and its most sensitive neurons by id with their absolute sensitivity."""
    rows = []
    for layer, metrics in sensitivities.items():
        ids = most_sensitive(metrics.absolute, list_top).tolist()
        named = ", ".join(f"{neuron} ({float(metrics.absolute[neuron]):.3g})" for neuron in ids)
        means = [f"{value:.4f}" for value in metrics.means().values()]
        rows.append([layer, str(len(metrics.absolute)), *means, named])
    headings = ["layer", "neurons", "absolute", "relative", "activation", "most sensitive neurons, id (absolute)"]
    table = screen_table("sensitivity under sensitivity_attack, on the measured test images", headings, rows)
    table.columns[-1].justify = "left"
    return table


def show_run(
    directory: Path,
    results: Mapping[str, float],
    attacks: Mapping[str, str],
    checks: Sequence[Check],
) -> None:
    """Print the end of a training run: triggered checks, accuracies, sensitivities, the files, the next command."""
    if any(check.triggered for check in checks):
        show_checks(checks, "checks of this training")
    best, last = int(results["best_epoch"]), int(results["last_epoch"])
    metrics = _part(results, "test/")
    columns = {f"best (epoch {best})": metrics, f"last (epoch {last})": _part(results, "test_last/")}
    checkpoint = override("checkpoint", str(shown(directory / "checkpoints" / "best.ckpt")))
    show(
        accuracy_table(columns, attacks),
        metrics_table(metrics, attacks),
        before_after_table(sensitivity_file(directory), best),
        f"\nrun directory  {shown(directory)}",
        f"               metrics.json, metrics.csv, {sensitivity_file(directory).name}, checks.json, images.csv, "
        "config.yaml, checkpoints/",
        f"try next       {command('evaluate', checkpoint)}",
    )


def write_evaluation(
    directory: Path,
    metrics: Mapping[str, Any],
    sensitivities: Mapping[str, LayerSensitivity],
    corrupted: Sequence[CorruptionAccuracy] = (),
) -> None:
    """Write evaluation.json (metrics), evaluation.csv (a row per attack), sensitivity.csv (per neuron).

    Where corruptions were measured, corruptions.csv has a row for each corruption and severity.
    """
    if corrupted:
        write_rows(directory / "corruptions.csv", CorruptionAccuracy._fields, corrupted)
    write_json(directory / "evaluation.json", dict(metrics))
    attacks = [name.removeprefix("test/").removesuffix("_low") for name in metrics if name.endswith("_low")]
    rows = [[name, *with_interval(metrics, f"test/{name}")] for name in attacks]
    write_rows(directory / "evaluation.csv", ["attack", "accuracy", "low", "high"], rows)
    (directory / SENSITIVITIES).unlink(missing_ok=True)  # of an earlier evaluation in this folder
    write_sensitivities(directory / SENSITIVITIES, "", sensitivities)


def show_evaluation(
    directory: Path,
    metrics: Mapping[str, float],
    sensitivities: Mapping[str, LayerSensitivity],
    attacks: Mapping[str, str],
    *,
    which: str,
    list_top: int,
) -> None:
    """Print the end of an evaluation: accuracies, sensitivities with the most sensitive neurons, the files."""
    metrics = _part(metrics, "test/")
    show(
        evaluation_table(metrics, attacks, which),
        metrics_table(metrics, attacks),
        most_sensitive_table(sensitivities, list_top=list_top) if sensitivities else "",
        f"\nwritten to  {shown(directory)}",
        "            evaluation.json, evaluation.csv, classes.csv, confusion.csv, images.csv, sensitivity.csv",
    )


def show_images(path: Path, result: SuiteResult, class_names: Sequence[str]) -> None:
    """Print a row for each of a few images: label, and prediction without and under each attack."""

    def named(label: int) -> str:
        return f"{label} {class_names[label]}" if class_names[label] != str(label) else str(label)

    predicted = [classes.tolist() for classes in result.predictions.values()]
    columns = zip(result.places.tolist(), result.labels.tolist(), *predicted, strict=True)
    rows = [[str(place), *map(named, labels)] for place, *labels in columns]
    headings = ["image", "label", *result.predictions]
    show(screen_table("predictions of single test images", headings, rows), f"\nwritten to  {shown(path)}")


def show_corruptions(rows: Sequence[CorruptionAccuracy]) -> None:
    """Print a row per corruption, a column per severity, and the mean of all; nothing where none were measured."""
    if not rows:
        return
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row.corruption, []).append(row.accuracy)
    by_name["mean"] = [fmean(column) for column in zip(*by_name.values(), strict=True)]
    headings = ["corruption", *(str(severity) for severity in sorted({row.severity for row in rows})), "mean"]
    cells = (
        [name, *(f"{100 * value:.2f} %" for value in (*accuracies, fmean(accuracies)))]
        for name, accuracies in by_name.items()
    )
    show(screen_table("accuracy on corrupted images, by severity", headings, cells))


def show_checks(checks: Sequence[Check], title: str = "checks: the measured robustness may not be real") -> None:
    """Print the triggered checks with what they usually mean, the others in a line."""
    triggered = [check for check in checks if check.triggered]
    passed, others = (sum(check.triggered is state for check in checks) for state in (False, None))
    if triggered:
        rows = [[f"{check.title} ({check.name})", check.evidence, check.meaning] for check in triggered]
        show(screen_table(title, ["check", "evidence", "usually means"], rows, texts=3))
    counts = f"{len(triggered)} triggered, {passed} passed, {others} not evaluated"
    show(f"checks      {counts}; checks.json has the evidence")


def show(*parts: Any) -> None:
    """Print tables and lines to standard output; where that is no terminal, as wide as they need."""
    console = Console(highlight=False, markup=False, emoji=False)  # names and paths may hold brackets
    if not console.is_terminal:
        console.width = 160
    for part in filter(None, parts):
        console.print(lines(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))


def _part(results: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}
