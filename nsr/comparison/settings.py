"""Settings of runs: those that define a method, those that make runs comparable, those in which runs differ.

The label of a method is its objective, its stabilizer and the settings that distinguish it from other methods.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from nsr.errors import InputError, fraction
from nsr.run import directory
from nsr.run.commands import name_of
from nsr.run.rows import without_norm

Flat = Mapping[str, Any]  # {dotted name: value}; a list is a value
ABSENT = "absent"
# the shipped objectives in the order of tables
OBJECTIVES = ("natural", "fast", "nfgsm", "free", "pgd", "alp", "trades", "mart", "ensemble_adversarial")
SHIPPED = (*OBJECTIVES, "sns")
# sections of the machine, the loggers or the measurement, which are no part of a method
NO_METHOD = (
    *("data", "norm", "epsilon", "validation_attack", "test_attacks", "evaluation", "metrics", "logger", "checks"),
    *("name", "seed", "sweep_metrics", "trusted", "resume", "allow_changed_config", "choices", "overrides", "schema"),
    *("data_origin", "config_name", "report", "pictures"),
)
NO_METHOD_NAMES = (
    *("*.seed", "trainer.accelerator", "trainer.enable_*", "trainer.log_every_n_steps", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.strategy.*", "trainer.profiler", "trainer.detect_anomaly"),
)
METHOD_DATA = ("batch_size", "augmentation", "train_crop")
NO_IDENTITY = (*METHOD_DATA, "seed", "evaluation_batch_size", "num_workers", "epsilon", "mean", "std", "class_order")
ORDER = (
    *("experiment", "data", "norm", "epsilon", "evaluation", "trainer", "model", "objective", "stabilizer"),
    *("train_attack", "optimizer"),
)
LENGTHS = ("epsilon", "step_size", "noise")  # numbers that may be given as text


class Identity(NamedTuple):
    """A run in a comparison: its method, and what must agree with other runs."""

    objective: str
    stabilizer: str | None
    is_adversarial: bool  # whether the objective trains on adversarial examples
    seed: int
    method: Flat
    conditions: Flat
    choices: Flat  # {choices.GROUP: name}
    typed: frozenset[str]  # names of the settings in its command line


def identity(settings: Mapping[str, Any], measured: Mapping[str, Any]) -> Identity:
    """Describe a run by its resolved settings.

    Args:
        measured: the settings of the measurement that its accuracies come from, {} where there is none yet.
    """
    choices = settings.get("choices") or {}
    typed = frozenset(name_of(str(override)) for override in settings.get("overrides") or ())
    objective, stabilizer = (_component(settings, group, choices, typed) for group in ("objective", "stabilizer"))
    seed = settings.get("seed")
    return Identity(
        objective=objective or "none",
        stabilizer=stabilizer,
        is_adversarial=objective != "natural" and bool((settings.get("train_attack") or {}).get("_target_")),
        seed=seed if type(seed) is int else -1,
        method=method_settings(settings),
        conditions=conditions(settings, measured),
        choices={f"choices.{group}": name for group, name in choices.items() if group in (*settings, "experiment")},
        typed=typed,
    )


def _component(
    settings: Mapping[str, Any], group: str, choices: Mapping[str, Any], typed: frozenset[str]
) -> str | None:
    """Return the choice of a group, or the class where none was chosen or the choice's class was replaced."""
    target = (settings.get(group) or {}).get("_target_")
    if not target:
        return None
    chosen = choices.get(group)
    is_replaced = f"{group}._target_" in typed or (chosen in SHIPPED and not str(target).startswith("nsr."))
    return str(target).rpartition(".")[2] if is_replaced or chosen in (None, "none") else str(chosen)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted name: value} of every leaf; a list is a leaf, the text 8/255 a number."""
    leaves = {name: value for name, value in directory.flat(settings, prefix) if not isinstance(value, Mapping)}
    for name in leaves:
        if name.rpartition(".")[2] in LENGTHS:
            with suppress(InputError):  # a text that is no number stays a text
                leaves[name] = fraction(name, leaves[name])
    return leaves


def method_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that define a run's method: all but seeds, the data and the measurement."""
    kept = flat({name: value for name, value in settings.items() if name not in NO_METHOD})
    kept = {name: value for name, value in kept.items() if not any(fnmatchcase(name, no) for no in NO_METHOD_NAMES)}
    return kept | flat({name: value for name, value in settings["data"].items() if name in METHOD_DATA}, "data.")


def conditions(settings: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must agree for metrics to be comparable: data, threat model, attacks that measure."""
    threat_model = {name: settings.get(name) for name in ("norm", "epsilon", "validation_attack")}
    found = flat({"data": _data_identity(settings["data"]), **threat_model})
    if measured:
        found |= {f"evaluation.{name}": value for name, value in images_and_ball(measured).items()}
        attacks = measured.get("test_attacks") or {}
        found |= flat({"test_attacks": {name: attack for name, attack in attacks.items() if attack}})
    return {name: value for name, value in found.items() if not name.endswith(".seed")}


def images_and_ball(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the measurements in one row must share: the test images, the norm and the radius."""
    evaluation = measured.get("evaluation") or {}
    count = evaluation.get("n_examples")
    ball = {name: measured.get(name) for name in ("norm", "epsilon")}
    found = flat({"data": _data_identity(measured.get("data") or {}), **ball})
    found |= {"n_examples": count, "subset": evaluation.get("subset") if count else None}
    limit = (measured.get("trainer") or {}).get("limit_test_batches")
    is_whole = limit is None or repr(limit) == "1.0"  # 1 is one batch
    size = (measured.get("data") or {}).get("evaluation_batch_size")
    return found | {"limit_test_batches": None if is_whole else f"{limit}, batches of {size}"}


def radius_of(settings: Any) -> float | None:
    """Return the epsilon of the threat model as a number, None where it is none."""
    try:
        return float(fraction("epsilon", settings.get("epsilon")))
    except (InputError, TypeError, ValueError):
        return None


def ball_of(row: str, settings: Any) -> tuple[str, float | None]:
    """Return the norm and the radius of a row of a test: its attack's own, else its threat model's."""
    given, models = settings.get("test_attacks"), settings.get("threat_models")
    own = given.get(row) if isinstance(given, Mapping) else None
    own, models = (found if isinstance(found, Mapping) else {} for found in (own, models))
    suffix = row.removeprefix(without_norm(row)).removeprefix("_")
    norm = own.get("norm") or suffix or settings.get("norm")
    return str(norm), radius_of({"epsilon": own.get("epsilon", models.get(norm, settings.get("epsilon")))})


def in_threat_model(row: str, settings: Any) -> bool:
    """Return whether a row of a test has a norm and a radius of the measurement's threat models."""
    norm, radius = ball_of(row, settings)
    models = settings.get("threat_models")
    models = models if isinstance(models, Mapping) else {str(settings.get("norm")): settings.get("epsilon")}
    return norm in models and radius == radius_of({"epsilon": models[norm]})


def text_key(value: Any) -> str:
    """Return a text that is equal for equal settings."""
    return repr(sorted(value.items()) if isinstance(value, Mapping) else value)


def differing(records: Sequence[Flat], *, preferred: Iterable[str] = (), absent_counts: bool = True) -> list[str]:
    """Return the fewest names that distinguish records: choices, then preferred names, then others where needed.

    Args:
        records: settings, with `choices.GROUP` among them.
        preferred: settings to name wherever they differ.
        absent_counts: whether a name that a record lacks differs from one that it has.
    """

    def differs(name: str, among: Sequence[Flat] = records) -> bool:
        values = {text_key(record.get(name, ABSENT)) for record in among if absent_counts or name in record}
        return len(values) > 1

    def is_needed(name: str) -> bool:
        """Return whether records that agree in the kept names differ in this one."""
        alike: dict[str, list[Flat]] = {}
        for record in records:
            alike.setdefault(text_key([record.get(other, ABSENT) for other in kept]), []).append(record)
        return any(differs(name, group) for group in alike.values())

    names = sorted(dict.fromkeys(name for record in records for name in record), key=_importance)
    names = [name for name in names if differs(name)]
    groups, preferred = {name.partition(".")[0] for name in names}, set(preferred)
    kept = [name for name in names if name.startswith("choices.") and name.partition(".")[2] in groups]
    kept += [name for name in names if name in preferred and f"choices.{name}" not in kept]
    others = [name for name in names if name not in kept and not name.startswith("choices.")]
    if "choices.experiment" in names and any(map(is_needed, others)):
        kept.append("choices.experiment")
    for name in others:
        kept += [name] if is_needed(name) else []
    return sorted(kept, key=_importance)


def refusal(records: Mapping[Path, Flat], name: str, further: Sequence[str]) -> str:
    """Return the message on runs that cannot be compared, as they differ in the setting `name`, and in further ones."""
    (first, value), *others = [(directory, record[name]) for directory, record in records.items() if name in record]
    second, other = next(holder for holder in others if text_key(holder[1]) != text_key(value))
    name, *more = (each.removeprefix("choices.") for each in (name, *further))
    so_do = f" (so do {', '.join(more)})" if more else ""
    return (
        f"the runs differ in data or threat model: {name} is {value!r} in {first} and {other!r} in "
        f"{second}{so_do}; compare them separately, or show them together with --allow-different (allow_different=True)"
    )


def method_labels(
    runs: Mapping[Path, Identity], records: Mapping[Path, Flat], different: Sequence[str]
) -> dict[Path, str]:
    """Return the label of each run's method: runs of one label differ in nothing but the seed and the measurement.

    A label is as long as it takes to distinguish the methods.

    Args:
        records: {run: its further settings}.
        different: names of further settings in which runs differ; those that differ are of different methods.
    """
    further = {run: {name: records[run].get(name, ABSENT) for name in different} for run in runs}
    keys = {run: text_key({**own.method, **further[run]}) for run, own in runs.items()}
    methods: dict[str, Path] = {}  # {key: its first run}
    for run, key in keys.items():
        methods.setdefault(key, run)
    bases = {key: " + ".join(filter(None, [runs[run].objective, runs[run].stabilizer])) for key, run in methods.items()}
    labels: dict[str, str] = {}
    for base in dict.fromkeys(bases.values()):
        alike = {key: run for key, run in methods.items() if bases[key] == base}
        settings = {key: {**runs[run].method, **runs[run].choices, **further[run]} for key, run in alike.items()}
        preferred = [*different, *(name for run in alike.values() for name in runs[run].typed)]
        names = differing(list(settings.values()), preferred=preferred)
        for key, values in settings.items():
            label = _label(base, {name: values[name] for name in names if name in values})
            again = sum(other.partition(" #")[0] == label for other in labels.values())
            labels[key] = f"{label} #{again + 1}" if again else label
    return {run: labels[key] for run, key in keys.items()}


def setting_text(name: str, value: Any) -> str:
    """Return a setting as it is read: 'test_attacks.pgd.steps=40', 'model=resnet18', 'model=MyNetwork'."""
    if name.endswith("_target_"):
        return f"{name.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{name.removeprefix('choices.')}={_text(value)}"


def table_order(objective: str, stabilized: bool, label: str) -> tuple[Any, ...]:
    """Return a key to sort methods by: shipped objectives first, without the stabilizer first, then the label."""
    known = OBJECTIVES.index(objective) if objective in OBJECTIVES else len(OBJECTIVES)
    words = re.split(r"(\d+(?:\.\d+)?)", label)  # every second one a number: 2 before 16
    return known, objective, stabilized, [float(word) if place % 2 else word for place, word in enumerate(words)]


def _data_identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data's settings that decide which images there are; the place of a shipped download is not one."""
    target = str(data.get("_target_", ""))
    is_download = target.startswith("nsr.data.") and target != "nsr.data.ImageFolder"
    left_out = (*NO_IDENTITY, "root") if is_download else NO_IDENTITY
    return {name: value for name, value in data.items() if name not in left_out}


def _importance(name: str) -> tuple[int, int, bool]:
    section = name.removeprefix("choices.").partition(".")[0]
    place = ORDER.index(section) if section in ORDER else len(ORDER)
    return place, name.count("."), not name.endswith("_target_")


def _label(base: str, values: Mapping[str, Any]) -> str:
    """Return 'pgd(clean_weight=0.5) + sns(weight=2) max_epochs=20 + awp'."""
    objective, plus, stabilizer = base.partition(" + ")
    parts: dict[str, list[str]] = {"objective": [], "stabilizer": [], "": []}
    for name, value in values.items():
        section, _, leaf = name.partition(".")
        if section == "callbacks" and leaf.endswith("._target_"):
            parts[""].append(f"+ {leaf.removesuffix('._target_')}")
        elif section in parts and leaf != "_target_":
            parts[section].append(setting_text(leaf, value))
        elif name == "choices.train_attack" or (section == "train_attack" and f"objective.{leaf}" not in values):
            parts["objective"].append(setting_text(name if leaf == "_target_" else name.partition(".")[2], value))
        else:
            parts[""].append(setting_text(leaf if section == "trainer" else name, value))
    first, second = (f"({', '.join(parts[part])})" if parts[part] else "" for part in ("objective", "stabilizer"))
    return " ".join([f"{objective}{first}{plus}{stabilizer}{second}", *parts[""]])


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return "1.0" if value == 1 else f"{value:g}"  # 1 is a count and 1.0 all, of neurons or batches
    return f"[{' '.join(map(_text, value))}]" if isinstance(value, list) else str(value)
