"""What makes a method, what makes runs comparable, and the shortest list of settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from nsr.errors import fraction

Flat = Mapping[str, Any]  # {dotted name: value}; a list is a value
ABSENT = "absent"
OBJECTIVES = ("natural", "fast", "nfgsm", "free", "pgd", "alp", "trades", "mart", "eat")  # the order of tables
OWN_NAMES = {"Natural": "natural", "Free": "free", "LogitPairing": "alp", "Trades": "trades", "Mart": "mart"}
# of the machine, the dashboard or the measurement, which are no part of the method; seeds are what is averaged over
NO_METHOD = (
    *("seed", "*.seed", "name", "logger.*", "norm", "epsilon", "suite.*", "validation_attack.*", "data.*"),
    *("trainer.accelerator", "trainer.enable_*", "trainer.log_every_n_steps", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.strategy.*", "optimize", "alarms.*", "trusted"),
)
METHOD_DATA = ("batch_size", "augmentation")
NO_IDENTITY = (*METHOD_DATA, "seed", "evaluation_batch_size", "workers", "epsilon.*", "mean", "std")
# what is told first; later names that only follow from it are left out
SECTIONS = ("data", "norm", "epsilon", "trainer", "model", "objective", "stabilizer", "attack", "optimizer")
SHARED = ("epsilon", "norm", "classes", "channels", "image_size")  # looked up from one place by many
SCALED = ("step_size", "noise")  # multiples of epsilon
LENGTHS = ("epsilon", *SCALED)  # that may be given as text
TIMED = ("T_max", "milestones", "total_steps", "epochs", "start")  # of the number of epochs


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of every leaf; a list is a leaf, the text 8/255 a number."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        is_part = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{name}.") if is_part else {name: fraction(name, value) if key in LENGTHS else value}
    return leaves


def method_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's resolved settings those that make its method: all but seeds, the data, and what only measures."""
    leaves = flat(settings)
    kept = {name: value for name, value in leaves.items() if not _matches(name, NO_METHOD)}
    return kept | {f"data.{name}": leaves[f"data.{name}"] for name in METHOD_DATA if f"data.{name}" in leaves}


def conditions(settings: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for figures of two runs to be of one kind: data, threat model, attacks that measure.

    Args:
        settings: of the run.
        measured: of what its accuracies come from: data, norm, epsilon, limit, limit_order and suite.
    """
    found = {
        **flat(_data_identity(settings["data"]), "data."),
        **flat({name: settings[name] for name in ("norm", "epsilon")}),
        **flat({"validation_attack": settings.get("validation_attack") or {}}),
        **{f"evaluation.{name}": value for name, value in images_and_ball(measured).items()},
        **flat({"suite": {name: attack for name, attack in measured["suite"].items() if attack}}),
    }
    return {name: value for name, value in found.items() if not name.endswith(".seed")}


def images_and_ball(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What measurements of one network must share to stand in one row: the test images, the norm and the radius."""
    limit = f"{measured['limit']} {measured['limit_order']}" if measured.get("limit") else None
    ball = flat({name: measured[name] for name in ("norm", "epsilon")})
    return {**flat(_data_identity(measured["data"]), "data."), **ball, "limit": limit}


def objective_name(settings: Mapping[str, Any]) -> str:
    """The objective as the command line calls it; those that share a class are told apart by their attack."""
    kind = str(settings["objective"]["_target_"]).rpartition(".")[2]
    if kind != "AdversarialTraining":
        return OWN_NAMES.get(kind, kind)
    attack = settings["attack"]
    if str(attack["_target_"]).endswith("EnsembleAttack"):
        return "eat"
    if attack.get("steps", 2) > 1:
        return "pgd"
    if attack.get("noise") is not None:
        return "nfgsm"
    return "fast" if attack.get("random_start") else "fgsm"


def is_stabilized(settings: Mapping[str, Any]) -> bool:
    """Whether a stabiliser is set, of whatever weight."""
    return bool((settings.get("stabilizer") or {}).get("_target_"))


def differing(records: Sequence[Flat], *, absent_counts: bool = True) -> list[str]:
    """The names whose values differ between records, without those that only follow from another one.

    Args:
        absent_counts: whether a name that a record lacks differs from one that it has.
    """
    names = sorted(dict.fromkeys(name for record in records for name in record), key=_importance)
    kept: list[str] = []
    for name in names:
        holders = [record for record in records if absent_counts or name in record]
        values = {json.dumps(record.get(name, ABSENT)) for record in holders}
        if len(values) > 1 and not any(_follows(name, other, holders) for other in kept):
            kept.append(name)
    return kept


def _data_identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of the data's settings those that decide which images there are; a folder's place where it holds them."""
    folder = str(data.get("_target_", "")).endswith("ImageFolder")
    kept = {name: value for name, value in flat(data).items() if not _matches(name, NO_IDENTITY)}
    return {name: value for name, value in kept.items() if name != "root" or folder}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _importance(name: str) -> tuple[int, int, bool]:
    section = name.partition(".")[0]
    place = SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)
    return place, name.count("."), not name.endswith("_target_")


def _follows(name: str, other: str, records: Sequence[Flat]) -> bool:
    """Whether `name` repeats what `other` says: it comes with its class, is looked up there or scaled from it."""
    leaf, source = name.rpartition(".")[2], other.rpartition(".")[2]
    if source == "_target_" and name.startswith(other.removesuffix("_target_")):
        return _decides(other, name, records)
    if leaf in TIMED and other == "trainer.max_epochs":
        return _decides(other, name, records)
    pairs = [(record.get(name, ABSENT), record.get(other, ABSENT)) for record in records]
    if leaf == source and (leaf in SHARED or name == f"evaluation.{other}"):
        return all(value == first for value, first in pairs)
    if leaf in SCALED and source == "epsilon":
        numbers = all(isinstance(entry, (int, float)) and entry > 0 for pair in pairs for entry in pair)
        return numbers and len({round(value / first, 9) for value, first in pairs}) == 1
    return False


def _decides(source: str, name: str, records: Sequence[Flat]) -> bool:
    """Whether records that agree in `source` agree in `name` as well."""
    values: dict[str, set[str]] = {}
    for record in records:
        values.setdefault(json.dumps(record.get(source, ABSENT)), set()).add(json.dumps(record.get(name, ABSENT)))
    return all(len(found) == 1 for found in values.values())
