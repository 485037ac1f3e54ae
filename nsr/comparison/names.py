"""Names of attacks and methods as papers spell them; an attack and a method never share one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from nsr.plots.style import NORMS
from nsr.run.rows import without_norm

SPELLED = {"fgsm": "FGSM", "pgd": "PGD", "mifgsm": "MI-FGSM", "apgd_ce": "APGD-CE", "apgd_dlr": "APGD-DLR"} | {
    "apgd_t": "APGD-T",
    "cw": "CW",
    "square": "Square",
    "autoattack": "AutoAttack",
    "fmn": "FMN",
    "ddn": "DDN",
    "uniform": "uniform noise",
    "clean": "no attack",
    "worst_case": "worst case",
}
NO_ATTACK = ("clean", "corruptions", "worst_case")


def attack_heading(row: str, own: Mapping[str, Any]) -> str:
    """Return 'PGD-40' for a row of a test and its attack's settings, {} where they are unknown."""
    name = without_norm(row)
    title = SPELLED.get(name, name.replace("_", " "))
    if str(own.get("_target_")).endswith(".measuring_pgd") and name.startswith("pgd"):
        title = "APGD" if own.get("norm") == "l1" else "PGD"
    if type(steps := own.get("steps")) is int and steps > 1:
        title += f"-{steps}"
    return title


def attack_title(row: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a row of a test with steps, restarts and, where it differs, its radius."""
    attacks = settings.get("test_attacks")
    own = attacks.get(row) if isinstance(attacks, Mapping) else None
    own = own if isinstance(own, Mapping) else {}
    norm = row.rpartition("_")[2] if row.rpartition("_")[2] in NORMS else ""
    title = attack_heading(row, own)
    if (version := own.get("version")) not in (None, "standard"):
        title += f" ({version})"
    if type(restarts := own.get("restarts")) is int and restarts > 1:
        title += f", {restarts} restarts"
    different = {key: own[key] for key in ("norm", "epsilon") if key in own and own[key] != settings.get(key)}
    if norm or different:
        parts = NORMS.get(norm or different.get("norm", "")), f"epsilon {own['epsilon']}" if "epsilon" in own else None
        title += f", {' '.join(filter(None, parts))}"
    return title


def attack_settings(runs: pandas.DataFrame, row: str) -> dict[str, list[str]]:
    """Return {settings of a test attack as JSON: the methods that were measured with them}, of finished runs."""
    found: dict[str, list[str]] = {}
    for run in runs.to_dict("records"):
        attacks = json.loads(run.get("test_attacks") or "{}") if run.get("status") == "finished" else {}
        if attacks.get(row):
            own = {name: value for name, value in attacks[row].items() if name != "seed"}  # the run's
            methods = found.setdefault(json.dumps(own, sort_keys=True), [])
            methods += [run["method"]] if run["method"] not in methods else []
    return found


def attack_names(runs: pandas.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    """Return {accuracy's column: its heading}, such as 'PGD-40': all different, and no method's name.

    Args:
        runs: from `read_runs`; the number of steps is left out where runs differ in it.
    """
    names = {}
    for column in columns:
        row = column.removesuffix("_accuracy")
        settings = list(attack_settings(runs, row))
        own = json.loads(settings[0]) if len(settings) == 1 else {}
        names[column] = "clean" if row == "clean" else attack_heading(row, own)
    counts = Counter(name.casefold() for name in names.values())
    methods = {str(method).casefold() for method in runs["method"]}
    for column, name in names.items():
        if counts[name.casefold()] > 1:
            names[column] = name = f"{name} ({column.removesuffix('_accuracy')})"
        if name.casefold() in methods:
            names[column] = f"{name} attack"
    return names


def method_names(runs: pandas.DataFrame) -> dict[str, str]:
    """Return {method: name} of methods whose objective has an attack's name: 'pgd + sns' becomes 'PGD-AT + sns'."""
    rows = {name.removesuffix("_accuracy") for name in runs if name.endswith("_accuracy")} - {*NO_ATTACK}
    found = {}
    for method, objective in zip(runs["method"], runs["objective"], strict=True):
        if objective in rows and str(method).startswith(objective):
            found[str(method)] = f"{objective.upper()}-AT{str(method).removeprefix(objective)}"
    return found
