"""What one run directory holds: its settings, its figures and where they come from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nsr.comparison.settings import images_and_ball
from nsr.run.directory import marked, read_json, read_settings, read_yaml, standing
from nsr.run.files import layer_means, whole_rows

TRAINING_END = "end of training"
WORST = "worst_case_accuracy"


class Run(NamedTuple):
    """What a run directory says.

    status is finished, running, failed, unfinished (nothing says whether it still runs) or no evaluation (trained, and
    the accuracies are missing). figures are fractions by the names of the files, `clean_accuracy`; sensitivity is
    {before or best: {layer: [absolute, relative, mean activation]}} on validation images.
    """

    directory: Path
    status: str
    detail: str
    settings: Mapping[str, Any] | None
    measured: Mapping[str, Any]  # data, norm, epsilon, limit and suite of the accuracies
    figures: Mapping[str, float]
    sources: tuple[str, ...]
    sensitivity: Mapping[str, Mapping[str, list[float]]]
    epoch: int
    best_epoch: int | None
    is_evaluated: bool  # right now, by evaluate.py
    command: str  # that finishes what is unfinished


class Measurement(NamedTuple):
    """A finished measurement of best.ckpt on the test set."""

    name: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float]


def read_run(directory: Path) -> Run:
    """Everything that is there of a run; what is half-written is taken as not there yet."""
    settings = read_settings(directory)
    final = read_json(directory / "metrics.json") or {}
    epochs = list(whole_rows(directory / "metrics.csv")) if (directory / "metrics.csv").exists() else []
    measurements = list(_measurements(directory, settings, final)) if settings else []
    status, detail = standing(directory, settings, epochs, is_measured=bool(measurements))
    best_epoch = final.get("best_epoch", _best_epoch(epochs)) if status == "finished" else None
    measured, figures, sources = _merged(measurements)
    is_evaluated, command = _unfinished_evaluation(directory)
    evaluating = ["an evaluation is running"] if is_evaluated else []
    return Run(
        directory=directory,
        status=status,
        detail="; ".join(filter(None, [detail, *evaluating, *_alarms(directory, measurements)])),
        settings=settings,
        measured=measured,
        figures=figures | _validated(epochs, best_epoch),
        sources=sources,
        sensitivity=_sensitivity(directory / "sensitivity.csv", best_epoch),
        epoch=int(epochs[-1]["epoch"]) if epochs else 0,
        best_epoch=best_epoch,
        is_evaluated=is_evaluated,
        command=_command(directory, status, is_evaluated, command),
    )


def _command(directory: Path, status: str, is_evaluated: bool, otherwise: str) -> str:
    """What finishes a run."""
    if status == "no evaluation" and not is_evaluated:
        return evaluate_command(directory)
    if status in ("failed", "interrupted") and (directory / "status.json").exists():
        return shlex.join(["python", "train.py", f"resume={directory}"])
    return otherwise


def evaluate_command(directory: Path, *overrides: str) -> str:
    """What measures a run's best checkpoint."""
    return shlex.join(["python", "evaluate.py", f"checkpoint={directory / 'checkpoints' / 'best.ckpt'}", *overrides])


def _measurements(directory: Path, settings: Mapping[str, Any], final: Mapping[str, float]) -> Iterator[Measurement]:
    """The finished ones of best.ckpt, oldest first: the run's own at its end, then those of evaluate.py."""
    if final:
        yield Measurement(TRAINING_END, settings, _test_figures(final))
    for folder in _evaluations(directory):
        figures, own = read_json(folder / "evaluation.json"), read_yaml(folder / "config.yaml")
        if figures and own and Path(str(own.get("checkpoint"))).name == "best.ckpt":
            yield Measurement(folder.name, own, _test_figures(figures))


def _evaluations(directory: Path) -> list[Path]:
    """By name, which is their date; chunks are kept among them."""
    folder = directory / "evaluations"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in entries if entry.is_dir() and entry.name != "chunks"]


def _merged(measurements: list[Measurement]) -> tuple[dict[str, Any], dict[str, float], tuple[str, ...]]:
    """Each attack from the newest measurement that has it, of those of the newest's threat model and images.

    The worst case is the newest's own, over the attacks of that one.
    """
    if not measurements:
        return {}, {}, ()
    newest = measurements[-1]
    same = images_and_ball(newest.settings)
    alike = [one for one in measurements if images_and_ball(one.settings) == same]
    suite = {name: attack for one in alike for name, attack in one.settings["suite"].items()}
    figures = {name: value for one in alike for name, value in one.figures.items() if name != WORST}
    if WORST in newest.figures:
        figures[WORST] = newest.figures[WORST]
    source = {name: one.name for one in alike for name in one.figures}
    measured = {**newest.settings, "suite": suite, "worst_case_of": sorted(newest.settings["suite"])}
    return measured, figures, tuple(dict.fromkeys(source.values()))


def _test_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """{ATTACK_accuracy: fraction}."""
    return {
        name.removeprefix("test/"): value
        for name, value in figures.items()
        if name.startswith("test/") and name.endswith("_accuracy")
    }


def _validated(epochs: list[dict[str, str]], best_epoch: int | None) -> dict[str, float]:
    """Validated accuracies of the best epoch, of the latest one while there is none."""
    row = next((row for row in epochs if row["epoch"] == str(best_epoch)), epochs[-1] if epochs else {})
    names = ("clean_accuracy", "robust_accuracy")
    return {f"validation_{name}": float(row[f"validation/{name}"]) for name in names if row.get(f"validation/{name}")}


def _best_epoch(epochs: list[dict[str, str]]) -> int | None:
    """By validated robust accuracy, the earlier of equals, as checkpoints are chosen; epoch 0 is before training."""
    trained = [row for row in epochs if row["epoch"] != "0"]
    best = max(trained, key=lambda row: float(row["validation/robust_accuracy"]), default=None)
    return None if best is None else int(best["epoch"])


def _sensitivity(records: Path, best_epoch: int | None) -> dict[str, dict[str, list[float]]]:
    if best_epoch is None or not records.exists():
        return {}
    return {"before": layer_means(records, 0), "best": layer_means(records, best_epoch)}


def _alarms(directory: Path, measurements: list[Measurement]) -> Iterator[str]:
    """Those that the newest evaluation raised."""
    if measurements and measurements[-1].name != TRAINING_END:
        alarms = read_json(directory / "evaluations" / measurements[-1].name / "alarms.json") or []
        raised = [str(alarm["name"]) for alarm in alarms if alarm.get("raised")]
        if raised:
            yield f"alarms raised: {', '.join(raised)}"


def _unfinished_evaluation(directory: Path) -> tuple[bool, str]:
    """Whether the newest evaluation of best.ckpt still runs; its command where it ended without a result."""
    evaluations = _evaluations(directory)
    if not evaluations or (evaluations[-1] / "evaluation.json").exists():
        return False, ""
    marker = read_json(evaluations[-1] / "status.json") or {}
    overrides = [str(override) for override in marker.get("overrides", [])]
    if any(override.endswith("last.ckpt") for override in overrides):
        return False, ""
    if marked(evaluations[-1] / "status.json")[0] == "running":
        return True, ""
    return False, shlex.join(["python", "evaluate.py", *overrides]) if overrides else evaluate_command(directory)
