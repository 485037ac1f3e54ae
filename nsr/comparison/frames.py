"""Runs as a data frame, one row per run, grouped by method; runs that differ in data or threat model are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas

from nsr.comparison.labels import method_labels, setting_name, setting_text, table_order
from nsr.comparison.reading import Run, evaluate_command, read_run
from nsr.comparison.settings import ABSENT, Flat, Identity, differing, flat, images_and_ball, text_key
from nsr.errors import InputError
from nsr.run.commands import override
from nsr.run.directory import find_runs

MEASURES = ("absolute", "relative", "mean_activation")
STRONG = "autoattack"  # expected in published tables; where it is missing the command that measures it is shown
# the test attacks that need no further settings, so that a command can ask for them
STANDARD = ("fgsm", "mifgsm", "pgd", "pgd100", "apgd_ce", "apgd_dlr", "cw", "square", "uniform", STRONG)
UNKNOWN = "?"  # of a run whose settings cannot be read


def read_runs(places: Iterable[str | Path], *, allow_different: bool = False) -> pandas.DataFrame:
    """Read one row per run; see `nsr.compare.read_runs`."""
    runs = [read_run(directory) for directory in find_runs(places)]
    known = {run.directory: run.identity for run in runs if run.identity is not None}
    records = {directory: _condition_record(own) for directory, own in known.items()}
    typed = {name for own in known.values() for name in own.typed}
    different = differing(list(records.values()), preferred=typed, absent_counts=False)
    if different and not allow_different:
        raise InputError(_refusal(records, different))
    labels = _labels(known, {directory: _picked(record, different) for directory, record in records.items()})
    attacks = _attacks(runs)
    rows = []
    for run in runs:
        named = [name for name in different if name in records.get(run.directory, {})]
        text = ", ".join(setting_text(name, records[run.directory][name]) for name in named)
        rows.append({**_row(run, attacks), "method": labels.get(run.directory, UNKNOWN), "conditions": text})
    rows.sort(key=lambda row: (*table_order(row["objective"], row["stabilized"], row["method"]), row["seed"]))
    return with_types(pandas.DataFrame(rows))


def with_types(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Use whole-number types where some are missing, and put the columns that describe a run before its metrics."""
    for name in frame.columns.intersection(["seed", "epoch", "best_epoch"]):
        frame[name] = frame[name].astype("Int64")
    first = ["run", "method", "objective", "stabilized", "adversarial", "seed", "status", "detail", "conditions"]
    first = [name for name in first if name in frame]
    return frame[[*first, *frame.columns.drop(first)]]


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
    means = {f"{name}{suffix}": fmean(layer[place] for layer in layers.values()) for place, name in enumerate(MEASURES)}
    each = {
        f"{name}{suffix}/{layer}": values[place]
        for place, name in enumerate(MEASURES)
        for layer, values in layers.items()
    }
    return means | each


def _condition_record(run: Identity) -> dict[str, Any]:
    chosen = {name: value for name, value in run.choices.items() if name != "choices.experiment"}
    return {**run.conditions, **chosen}


def _picked(record: Flat, names: Sequence[str]) -> dict[str, Any]:
    return {name: record.get(name, ABSENT) for name in names}


def _refusal(records: Mapping[Path, Flat], different: Sequence[str]) -> str:
    name = different[0]
    (first, value), *others = [(directory, record[name]) for directory, record in records.items() if name in record]
    second, other = next(holder for holder in others if text_key(holder[1]) != text_key(value))
    more = f" (so do {', '.join(map(setting_name, different[1:]))})" if different[1:] else ""
    return (
        f"the runs differ in data or threat model: {setting_name(name)} is {value!r} in {first} and {other!r} in "
        f"{second}{more}; compare them separately, or show them together with --allow-different "
        "(allow_different=True)"
    )


def _labels(runs: Mapping[Path, Identity], conditions: Mapping[Path, Flat]) -> dict[Path, str]:
    """Return the method of each run: runs of one label differ in nothing but the seed, and what only measures."""
    keys = {directory: text_key({**run.method, **conditions[directory]}) for directory, run in runs.items()}
    first: dict[str, Path] = {}
    for directory, key in keys.items():
        first.setdefault(key, directory)
    labels = method_labels(
        {key: runs[directory] for key, directory in first.items()},
        {key: conditions[directory] for key, directory in first.items()},
    )
    return {directory: labels[key] for directory, key in keys.items()}


def _attacks(runs: Sequence[Run]) -> list[str]:
    """List the attacks that every run is expected to have: those that any of them has, and AutoAttack."""
    measured = {name.removesuffix("_accuracy") for run in runs for name in run.metrics}
    return [name for name in STANDARD if name in measured or name == STRONG]


def _row(run: Run, attacks: Sequence[str]) -> dict[str, Any]:
    own, sensitivity = run.identity, run.sensitivity
    return {
        "run": str(run.directory),
        "objective": own.objective if own else UNKNOWN,
        "stabilized": bool(own and own.stabilizer),
        "adversarial": bool(own and own.is_adversarial),
        "seed": own.seed if own else -1,
        "status": run.status,
        "detail": run.detail,
        "epoch": run.epoch,
        "best_epoch": run.best_epoch,
        "evaluation": ", ".join(run.sources),
        "worst_case_of": ", ".join(run.measured.get("worst_case_of", [])),
        "command": run.command or _command_for_missing(run, attacks),
        **run.metrics,
        **(sensitivity_columns(sensitivity["best"]) if sensitivity.get("best") else {}),
        **(sensitivity_columns(sensitivity["before"], "_before") if sensitivity.get("before") else {}),
    }


def _command_for_missing(run: Run, attacks: Sequence[str]) -> str:
    """Return the command that measures the missing attacks, on the images and with the radius of those it has."""
    missing = [name for name in attacks if f"{name}_accuracy" not in run.metrics]
    if run.status != "finished" or run.is_evaluated or not missing:
        return ""
    own, measured = flat(run.settings), images_and_ball(run.measured)
    overrides = [override("test_attacks", ["clean", *missing])]
    overrides += [override(name, measured[name]) for name in ("norm", "epsilon") if measured[name] != own.get(name)]
    if measured["n_examples"]:
        overrides += [override(f"evaluation.{name}", measured[name]) for name in ("n_examples", "subset")]
    return evaluate_command(run.directory, run.settings, *overrides)
