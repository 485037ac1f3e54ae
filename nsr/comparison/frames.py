"""Runs as a data frame, one row per run, grouped by method; runs that differ in data or threat model are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas

from nsr.comparison.reading import UNREADABLE, Run, evaluate_command, read_run
from nsr.comparison.settings import differing, images_and_ball, method_labels, refusal, setting_text, table_order
from nsr.errors import InputError
from nsr.run.commands import override
from nsr.run.directory import find_runs
from nsr.run.rows import without_norm

MEASURES = ("absolute", "relative", "mean_activation")
STRONG = "autoattack"  # expected in published tables; where it is missing the command that measures it is shown
# the test attacks that need no further settings, so that a command can request them
STANDARD = ("fgsm", "mifgsm", "pgd", "pgd100", "apgd_ce", "apgd_dlr", "cw", "square", "uniform", STRONG)
# the first columns, which there always are
DESCRIPTION = (
    *("run", "method", "objective", "stabilized", "adversarial", "seed", "status", "detail", "conditions"),
    *("epoch", "best_epoch", "data", "norm", "epsilon", "images", "test_attacks", "validation_attack"),
)
WHOLE = ("seed", "epoch", "best_epoch", "images")  # numbers, also where some are missing


def read_runs(*places: str | Path, allow_different: bool = False) -> pandas.DataFrame:
    """Read one row per run: its method, status, accuracies and sensitivities, as they are now.

    Args:
        places: run directories, folders of sweeps, or patterns; runs may still be running.
        allow_different: whether runs may differ in data or threat model; the column `conditions` then lists how.

    Returns:
        Columns run, method (a label, the same for runs that differ in their seed alone), objective, stabilized,
        adversarial (whether the objective trains on adversarial examples), seed, status (finished, running, failed,
        interrupted, unfinished, no evaluation, unreadable), detail (the reason), conditions, epoch, best_epoch;
        data, norm, epsilon, images (their number) and test_attacks (settings as JSON) of the measurement that the
        accuracies are from, validation_attack (JSON) of the sensitivities; evaluation (where the accuracies are from),
        worst_case_of (the attacks of the worst case), command (that finishes what is missing); ATTACK_accuracy of
        best.ckpt on the test set, each from the newest measurement that has it, as a fraction; absolute, relative and
        mean_activation, means over layers at the best epoch on validation images, absolute/LAYER for one layer,
        absolute_before before training.

    Errors:
        InputError: a place is missing or holds no run; runs differ in data or threat model.
    """
    runs = [read_run(directory) for directory in find_runs(places)]
    known = {run.directory: run.identity for run in runs if run.settings}
    records = {directory: {**own.conditions, **own.choices} for directory, own in known.items()}
    for record in records.values():
        record.pop("choices.experiment", None)
    typed = {name for own in known.values() for name in own.typed}
    different = differing(list(records.values()), preferred=typed, absent_counts=False)
    if different and not allow_different:
        raise InputError(refusal(records, different[0], different[1:]))
    labels = method_labels(known, records, different)
    measured = {name.removesuffix("_accuracy") for run in runs for name in run.metrics}
    expected = measured if STRONG in map(without_norm, measured) else {*measured, STRONG}
    attacks = [name for name in STANDARD if name in expected]  # that every run is expected to have
    rows = []
    for run in runs:
        record = records.get(run.directory, {})
        text = ", ".join(setting_text(name, record[name]) for name in different if name in record)
        rows.append(
            {**_row(run, attacks), "method": labels.get(run.directory, UNREADABLE.objective), "conditions": text}
        )
    rows.sort(key=lambda row: (*table_order(row["objective"], row["stabilized"], row["method"]), row["seed"]))
    frame = pandas.DataFrame(rows, columns=list(dict.fromkeys([*DESCRIPTION, *(name for row in rows for name in row)])))
    return frame.astype(dict.fromkeys(WHOLE, "Int64"))


def layers_of(frame: pandas.DataFrame) -> list[str]:
    """List the layers whose sensitivity a frame of runs holds."""
    prefix = f"{MEASURES[0]}/"
    return [name.removeprefix(prefix) for name in frame.columns if name.startswith(prefix)]


def sensitivity_columns(layers: Mapping[str, Sequence[float]], suffix: str = "") -> dict[str, float]:
    """Return {measure: mean over the layers, measure/LAYER: of one}; a relative mean is of the layers' own ratios.

    Args:
        layers: {layer: absolute, relative, mean activation}.
        suffix: of the measure, `_before` for the untrained network.
    """
    if not layers:
        return {}
    names = [f"{name}{suffix}" for name in MEASURES]
    means = {name: fmean(layer[place] for layer in layers.values()) for place, name in enumerate(names)}
    each = {f"{name}/{layer}": layers[layer][place] for place, name in enumerate(names) for layer in layers}
    return means | each


def _row(run: Run, attacks: Sequence[str]) -> dict[str, Any]:
    own = run.identity
    return {
        "run": str(run.directory),
        "objective": own.objective,
        "stabilized": bool(own.stabilizer),
        "adversarial": own.is_adversarial,
        "seed": own.seed,
        "status": run.status,
        "detail": run.detail,
        "epoch": run.epoch,
        "best_epoch": run.best_epoch,
        **_measurement(run),
        "evaluation": ", ".join(run.sources),
        "worst_case_of": ", ".join(run.measured.get("worst_case_of", [])),
        "command": run.command or _command_for_missing(run, attacks),
        **run.metrics,
        **sensitivity_columns(run.sensitivity.get("best", {})),
        **sensitivity_columns(run.sensitivity.get("before", {}), "_before"),
    }


def _measurement(run: Run) -> dict[str, Any]:
    """Return what the accuracies and the sensitivities of a run were measured on and with."""
    attacks = {name: own for name, own in (run.measured.get("test_attacks") or {}).items() if own}
    validation = run.settings.get("validation_attack")
    return {
        "data": str((run.settings.get("choices") or {}).get("data") or ""),
        **{name: run.measured.get(name) for name in ("norm", "epsilon")},
        "images": run.images or (run.measured.get("evaluation") or {}).get("n_examples"),
        "test_attacks": json.dumps(attacks, default=str) if attacks else "",
        "validation_attack": json.dumps(validation, default=str) if validation else "",
    }


def _command_for_missing(run: Run, attacks: Sequence[str]) -> str:
    """Return the command that measures the missing attacks, on the images and with the radius of those it has."""
    missing = [name for name in attacks if f"{name}_accuracy" not in run.metrics and name.isidentifier()]
    if run.status != "finished" or run.is_evaluated or not missing:
        return ""
    own, measured = images_and_ball(run.settings), images_and_ball(run.measured)
    overrides = [override("test_attacks", ["clean", *missing])]
    ball = {name: measured.get(name) for name in ("norm", "epsilon") if measured.get(name) != own.get(name)}
    overrides += [override(name, value) for name, value in ball.items() if isinstance(value, (str, int, float))]
    if measured["n_examples"]:
        overrides += [override(f"evaluation.{name}", measured[name]) for name in ("n_examples", "subset")]
    return evaluate_command(run.directory, *overrides)
