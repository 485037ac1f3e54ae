"""Runs as a data frame, a row a run, grouped by method; runs that differ in data or threat model are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas

from nsr.comparison.labels import method_labels, place_in_tables, told
from nsr.comparison.reading import Run, evaluate_command, read_run
from nsr.comparison.settings import (
    ABSENT,
    conditions,
    differing,
    flat,
    images_and_ball,
    is_stabilized,
    method_settings,
    objective_name,
)
from nsr.errors import InputError
from nsr.run.directory import find_runs

MEASURES = ("absolute", "relative", "mean_activation")
STRONG = "autoattack"  # what published tables ask for; told where it is missing


def read_runs(places: Iterable[str | Path], *, allow_different: bool = False) -> pandas.DataFrame:
    """A row a run; see `nsr.compare.read_runs`."""
    runs = [read_run(directory) for directory in find_runs(places)]
    known = [run for run in runs if run.settings is not None]
    records = [_conditions(run) for run in known]
    different = differing(records, absent_counts=False)
    if different and not allow_different:
        raise InputError(_refusal(known, records, different))
    told_conditions = [
        ", ".join(told(name, record[name]) for name in different if name in record) for record in records
    ]
    labels = _labels(known, records, different)
    wanted = _attacks(known)
    rows = [
        {**_row(run, wanted), "method": label, "conditions": text}
        for run, label, text in zip(known, labels, told_conditions, strict=True)
    ]
    rows += [{**_row(run, wanted), "method": "?"} for run in runs if run.settings is None]
    rows.sort(key=lambda row: (*place_in_tables(row["objective"], row["stabilized"], row["method"]), row["seed"]))
    return with_types(pandas.DataFrame(rows))


def with_types(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Whole numbers as such where some are missing; the columns that tell of a run before its figures."""
    for name in frame.columns.intersection(["seed", "epoch", "best_epoch"]):
        frame[name] = frame[name].astype("Int64")
    first = ["run", "method", "objective", "stabilized", "adversarial", "seed", "status", "detail", "conditions"]
    first = [name for name in first if name in frame]
    return frame[[*first, *frame.columns.drop(first)]]


def layers_of(frame: pandas.DataFrame) -> list[str]:
    """The layers whose sensitivity a frame of runs holds."""
    prefix = f"{MEASURES[0]}/"
    return [name.removeprefix(prefix) for name in frame.columns if name.startswith(prefix)]


def sensitivity_columns(layers: Mapping[str, Sequence[float]], suffix: str = "") -> dict[str, float]:
    """{measure: mean over the layers, measure/LAYER: of one}; a mean of ratios is of the layers' own.

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


def _conditions(run: Run) -> dict[str, Any]:
    """Of a run that has no accuracies yet the part that training decides."""
    assert run.settings is not None
    found = conditions(run.settings, run.measured or run.settings)
    return {
        name: value for name, value in found.items() if run.measured or not name.startswith(("suite.", "evaluation."))
    }


def _refusal(runs: Sequence[Run], records: Sequence[Mapping[str, Any]], different: Sequence[str]) -> str:
    name = different[0]
    holders = [(run, record[name]) for run, record in zip(runs, records, strict=True) if name in record]
    first, value = holders[0]
    second, other = next(holder for holder in holders if json.dumps(holder[1]) != json.dumps(value))
    more = f" (so do {', '.join(different[1:])})" if different[1:] else ""
    return (
        f"the runs differ in data or threat model: {name} is {value!r} in {first.directory} and {other!r} in "
        f"{second.directory}{more}; compare them apart, or show them together with --allow-different "
        "(allow_different=True)"
    )


def _labels(runs: Sequence[Run], records: Sequence[Mapping[str, Any]], different: Sequence[str]) -> list[str]:
    """The method of each run: runs of the same label differ in nothing but the seed, and what only measures."""
    keys, methods, bases = [], {}, {}
    for run, record in zip(runs, records, strict=True):
        assert run.settings is not None
        settings = method_settings(run.settings) | {name: record.get(name, ABSENT) for name in different}
        key = json.dumps(settings, sort_keys=True)
        keys.append(key)
        methods[key] = settings
        bases[key] = f"{objective_name(run.settings)}{' + sns' if is_stabilized(run.settings) else ''}"
    labels = method_labels(methods, bases)
    return [labels[key] for key in keys]


def _attacks(runs: Sequence[Run]) -> list[str]:
    """What a run is expected to have been measured under: what any of them was, and AutoAttack."""
    names = [name.removesuffix("_accuracy") for run in runs for name in run.figures]
    attacks = [name for name in names if not name.startswith("validation_") and name not in ("clean", "worst_case")]
    return list(dict.fromkeys([*attacks, STRONG]))


def _row(run: Run, wanted: Sequence[str]) -> dict[str, Any]:
    settings = run.settings
    objective = objective_name(settings) if settings else "?"
    return {
        "run": str(run.directory),
        "objective": objective,
        "stabilized": bool(settings and is_stabilized(settings)),
        "adversarial": bool(settings) and objective != "natural",
        "seed": settings.get("seed", -1) if settings else -1,
        "status": run.status,
        "detail": run.detail,
        "conditions": "",
        "epoch": run.epoch,
        "best_epoch": run.best_epoch,
        "evaluation": ", ".join(run.sources),
        "worst_case_of": ", ".join(run.measured.get("worst_case_of", [])),
        "command": run.command or _command_for_missing(run, wanted),
        **run.figures,
        **(sensitivity_columns(run.sensitivity["best"]) if run.sensitivity.get("best") else {}),
        **(sensitivity_columns(run.sensitivity["before"], "_before") if run.sensitivity.get("before") else {}),
    }


def _command_for_missing(run: Run, wanted: Sequence[str]) -> str:
    """What measures the attacks that a run lacks, on the images and with the radius of those it has."""
    missing = [name for name in wanted if f"{name}_accuracy" not in run.figures]
    if run.status != "finished" or run.is_evaluated or not missing:
        return ""
    assert run.settings is not None
    own, measured = flat(run.settings), images_and_ball(run.measured)
    overrides = [f"attacks=[clean,{','.join(missing)}]"]
    overrides += [f"{name}={measured[name]}" for name in ("norm", "epsilon") if measured[name] != own[name]]
    if run.measured.get("limit"):
        overrides += [f"limit={run.measured['limit']}", f"limit_order={run.measured['limit_order']}"]
    return evaluate_command(run.directory, *overrides)
