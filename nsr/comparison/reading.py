"""The content of one run directory: its settings, its metrics and where they come from."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from nsr.comparison.settings import Identity, identity, images_and_ball, in_threat_model
from nsr.errors import InputError, check_number
from nsr.run.commands import command, override
from nsr.run.directory import process_status, read_checked, read_json, read_settings, read_yaml, run_status
from nsr.run.files import layer_neurons, means_of_neurons, sensitivity_file, whole_rows
from nsr.run.own import is_own

CUT_SHORT = "it is cut short or damaged"
TRAINING_END = "end of training"
WORST = "worst_case_accuracy"
UNREADABLE = Identity("?", None, False, -1, {}, {}, {}, frozenset())


class Measurement(NamedTuple):
    """A finished measurement of best.ckpt on the test set."""

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]


class Run(NamedTuple):
    """The content of a run directory.

    status is finished, running, failed, interrupted, unfinished (it is unknown whether it still runs), no evaluation
    (trained, and the accuracies are missing) or unreadable. metrics are fractions, such as `clean_accuracy`;
    sensitivity is {before or best: {layer: [absolute, relative, mean activation]}} on validation images.
    """

    directory: Path
    status: str
    detail: str
    identity: Identity = UNREADABLE
    settings: Mapping[str, Any] = {}  # {} where they cannot be read
    measured: Mapping[str, Any] = {}  # the settings of the measurement that the accuracies come from
    metrics: Mapping[str, float] = {}
    sources: tuple[str, ...] = ()
    images: int = 0  # test images of the newest measurement; 0 where it is unknown
    sensitivity: Mapping[str, Mapping[str, list[float]]] = {}
    epoch: int = 0
    best_epoch: int | None = None
    is_evaluated: bool = False  # at this moment, by evaluate.py
    command: str = ""  # finishes what is unfinished
    measurements: tuple[Measurement, ...] = ()  # of the newest's threat model and data, oldest first


def read_run(directory: Path) -> Run:
    """Read the files of a run; half-written ones count as missing, damaged ones are named in the detail."""
    try:
        return _read_run(directory)
    except Exception as error:  # one odd run must not hide the others
        return Run(directory, "unreadable", f"{type(error).__name__}: {error}")


def _read_run(directory: Path) -> Run:
    problems: list[str] = []
    attempt = partial(_attempt, problems, directory)
    settings = attempt("config.yaml", read_settings, {})
    final = attempt("metrics.json", read_checked, {})
    is_readable = not problems
    epochs = attempt("metrics.csv", _epochs, [])
    evaluations = _evaluations(directory)
    known = final["best_epoch"] if type(final.get("best_epoch")) is int else None
    best_epoch = _best_epoch(epochs) if known is None else known
    # an extended run may have evaluations of the best epoch of before
    best = best_epoch if any(directory.glob("metrics_epoch*.json")) else known
    measurements = list(_measurements(evaluations, settings, final, best, problems)) if settings else []
    status, detail = run_status(
        directory,
        _progress(settings, epochs),
        is_trained=(directory / "timing.json").exists() or bool(final),  # timing.json ends the last epoch
        is_measured=bool(measurements),
        is_readable=is_readable,
    )
    sensitivity: dict[str, Any] = {}
    if status != "finished":
        best_epoch = None
    if best_epoch is not None:
        sensitivity = attempt(sensitivity_file(directory).name, partial(_sensitivity, best_epoch), {})
    shown = epochs[-1:] if best_epoch is None else [row for row in epochs if row["epoch"] == best_epoch]
    validated = shown[0] if shown else {}
    measured, metrics, sources = _merged(measurements)
    images = images_of(folder_of(directory, measurements[-1]), measurements[-1].metrics) if measurements else 0
    if measurements and not images and (path := folder_of(directory, measurements[-1]) / "images.csv").exists():
        problems.append(f"{path.relative_to(directory)} does not have the reported accuracies: {CUT_SHORT}")
    is_evaluated, missing = _unfinished_evaluation(directory, evaluations)
    if status == "no evaluation" and not is_evaluated:
        missing = evaluate_command(directory)
    elif status in ("failed", "interrupted") and (directory / "status.json").exists():
        missing = command("train", override("resume", directory))
    remarks = ["an evaluation is running" if is_evaluated else "", _triggered(directory, measurements), *problems]
    return Run(
        directory,
        status,
        detail="; ".join(filter(None, [detail, *remarks])),
        identity=identity(settings, measured) if settings else UNREADABLE,
        settings=settings,
        measured=measured,
        metrics=metrics | {name: value for name, value in validated.items() if name != "epoch"},
        sources=sources,
        images=images,
        sensitivity=sensitivity,
        epoch=epochs[-1]["epoch"] if epochs else 0,
        best_epoch=best_epoch,
        is_evaluated=is_evaluated,
        command=missing,
        measurements=tuple(alike(measurements, but=NUMBER)),
    )


def _attempt(problems: list[str], folder: Path, name: str, read: Callable[[Path], Any], default: Any) -> Any:
    """Return the content of a file; the default where it is missing or damaged, which is noted with the reason."""
    if not (folder / name).exists() and name != "config.yaml":
        return default
    try:
        if (folder / name).exists() and not (folder / name).is_file():
            raise InputError(f"{name} is not a file")
        return read(folder / name)
    except InputError as error:
        problems.append(str(error))
    except (KeyError, ValueError, csv.Error) as error:
        problems.append(f"{name} is damaged: {type(error).__name__} {error}")
    return default


def evaluate_command(directory: Path, *overrides: str) -> str:
    """Return the command that evaluates a run's best checkpoint."""
    checkpoint = override("checkpoint", directory / "checkpoints" / "best.ckpt")
    return command("evaluate", checkpoint, *overrides)


def _measurements(
    evaluations: Sequence[Path],
    settings: Mapping[str, Any],
    final: Mapping[str, Any],
    best: int | None,
    problems: list[str],
) -> Iterator[Measurement]:
    """Yield the finished ones of best.ckpt, oldest first: the run's own at its end, then those of evaluate.py.

    Those of an earlier best.ckpt, of a run that trained on or was extended, are left out and noted.
    """
    if final:
        yield Measurement(TRAINING_END, settings, accuracies(final, settings))
    for folder in evaluations:
        own = read_yaml(folder / "config.yaml") or {}
        if not own and (folder / "evaluation.json").exists():
            problems.append(f"evaluation {folder.name} has no readable config.yaml: left out")
        is_best = Path(str(own.get("checkpoint"))).name == "best.ckpt"
        epoch = own.get("checkpoint_epoch")
        if is_best and None not in (epoch, best) and epoch != best:
            problems.append(f"evaluation {folder.name} is of epoch {epoch}, best.ckpt of epoch {best}: left out")
            continue
        metrics = _attempt(problems, folder, "evaluation.json", read_checked, {}) if is_best else {}
        if found := accuracies(metrics, own):
            yield Measurement(folder.name, own, found)


def _evaluations(directory: Path) -> list[Path]:
    """List them by name, which is their date; without the folder of the result cache, shards and single images."""
    folder = directory / "evaluations"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    begun = [entry for entry in entries if any((entry / name).exists() for name in EVALUATION_FILES)]
    parts = [entry for entry in begun if (entry / "shard.pt").exists() or (entry / "only.csv").exists()]
    return [entry for entry in begun if entry not in parts]


def _merged(measurements: list[Measurement]) -> tuple[dict[str, Any], dict[str, float], tuple[str, ...]]:
    """Take each attack from the newest measurement that has it, of those of the newest's threat model and images.

    The worst case is the newest's own, over the attacks of that one's threat models.
    """
    if not measurements:
        return {}, {}, ()
    newest, same = measurements[-1], alike(measurements)
    attacks = [one.settings.get("test_attacks") or {} for one in same]
    merged = {name: attack for own in attacks for name, attack in own.items()}
    rows = [row for row, own in attacks[-1].items() if own is not None and row != "curve"]
    counted = ["clean", *(row for row in rows if row != "clean" and in_threat_model(row, newest.settings))]
    measured = {**newest.settings, "test_attacks": merged, "worst_case_of": sorted(counted)}
    metrics = {name: value for one in same for name, value in one.metrics.items() if name != WORST}
    metrics |= {name: value for name, value in newest.metrics.items() if name == WORST}
    sources = {name: one.name for one in same for name in one.metrics}
    return measured, metrics, tuple(dict.fromkeys(sources.values()))


EVALUATION_FILES = ("config.yaml", "status.json", "evaluation.json")
NUMBER = ("n_examples", "subset")  # which of the test images


def alike(measurements: Sequence[Measurement], *, but: Collection[str] = ()) -> list[Measurement]:
    """Return those of the newest's threat model and images, oldest first, whatever their settings in `but`."""
    shared = [
        {name: value for name, value in images_and_ball(one.settings).items() if name not in but}
        for one in measurements
    ]
    return [one for one, own in zip(measurements, shared, strict=True) if own == shared[-1]]


def accuracies(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, float]:
    """Return {ATTACK_accuracy: fraction} of a metrics.json or evaluation.json; other metrics are the user's own.

    Errors:
        InputError: an accuracy that is no number in [0, 1].
    """
    names = [f"{name}_accuracy" for name in (*(settings.get("test_attacks") or ()), "corruptions")]
    found = {name: metrics[f"test/{name}"] for name in (*names, WORST) if metrics.get(f"test/{name}") is not None}
    return {name: float(check_number(f"test/{name}", value, lowest=0, highest=1)) for name, value in found.items()}


def folder_of(directory: Path, measurement: Measurement) -> Path:
    """Return the folder that a measurement's files are in."""
    return directory if measurement.name == TRAINING_END else directory / "evaluations" / measurement.name


def images_of(folder: Path, metrics: Mapping[str, float]) -> int:
    """Count the test images of a measurement; 0 where images.csv is missing, or its columns have other accuracies."""
    try:
        rows = list(whole_rows(folder / "images.csv"))
        columns = {name: name.removesuffix("_accuracy") for name in metrics}
        known = {name: own for name, own in columns.items() if rows and own in rows[0]}
        means = {name: fmean(float(row[own]) for row in rows) for name, own in known.items()}
    except (OSError, ValueError, csv.Error):
        return 0
    return len(rows) if all(math.isclose(mean, metrics[name], abs_tol=1e-5) for name, mean in means.items()) else 0


def _epochs(path: Path) -> list[dict[str, Any]]:
    """Return the epoch and the validated accuracies of each row of metrics.csv."""
    names = ("clean_accuracy", "robust_accuracy")
    return [
        {"epoch": int(row["epoch"])}
        | {f"validation_{name}": float(row[f"validation/{name}"]) for name in names if row.get(f"validation/{name}")}
        for row in whole_rows(path)
    ]


def _progress(settings: Mapping[str, Any], epochs: list[dict[str, Any]]) -> str:
    """Return 'epoch 3 of 20'; an objective that replays each batch divides max_epochs by its replays."""
    done = f"epoch {epochs[-1]['epoch'] if epochs else 0}"
    wanted, replays = settings.get("trainer", {}).get("max_epochs"), settings.get("objective", {}).get("replays", 1)
    return f"{done} of {-(-wanted // replays)}" if type(wanted) is int and wanted > 0 else done


def _best_epoch(epochs: list[dict[str, Any]]) -> int | None:
    """Find it by validated robust accuracy, the earlier of equals, as checkpoints are chosen; epoch 0 is untrained."""
    name = "validation_robust_accuracy"
    trained = [row for row in epochs if row["epoch"] and name in row]
    return max(trained, key=lambda row: row[name])["epoch"] if trained else None


def _sensitivity(best_epoch: int, records: Path) -> dict[str, dict[str, list[float]]]:
    """Return the means before training and at the best epoch; InputError where neurons of the latter are missing."""
    before, best = layer_neurons(records, 0), layer_neurons(records, best_epoch)
    counts = [{layer: len(rows) for layer, rows in epoch.items()} for epoch in (before, best)]
    if not best or (before and counts[0] != counts[1]):
        raise InputError(f"{records.name} lacks neurons of epoch {best_epoch}, the best one: {CUT_SHORT}")
    return {"before": means_of_neurons(before), "best": means_of_neurons(best)}


def _triggered(directory: Path, measurements: list[Measurement]) -> str:
    """Return a remark on the checks that the newest evaluation triggered, "" where there are none."""
    if not measurements or measurements[-1].name == TRAINING_END:
        return ""
    path = directory / "evaluations" / measurements[-1].name / "checks.json"
    checks = read_json(path)
    if path.exists() and not isinstance(checks, list):
        return f"{path.relative_to(directory)} is damaged"
    checks = [check for check in checks if isinstance(check, dict)] if isinstance(checks, list) else []
    names = [str(check.get("name")) for check in checks if check.get("triggered")]
    return f"checks triggered: {', '.join(names)}" if names else ""


def _unfinished_evaluation(directory: Path, evaluations: Sequence[Path]) -> tuple[bool, str]:
    """Return whether the newest evaluation of best.ckpt still runs, and its command where it ended without a result."""
    if not evaluations or (evaluations[-1] / "evaluation.json").exists():
        return False, ""
    marker = read_json(evaluations[-1] / "status.json")
    recorded = marker.get("overrides") if isinstance(marker, dict) else None
    overrides = [str(entry) for entry in recorded] if isinstance(recorded, list) else []
    if any(entry.rstrip("'\"").endswith("last.ckpt") for entry in overrides):
        return False, ""
    if process_status(evaluations[-1] / "status.json")[0] == "running":
        return True, ""
    if overrides and is_own(["evaluate.py", overrides]):  # text from another's directory is no command to paste
        return False, command("evaluate", *overrides)
    return False, evaluate_command(directory)
