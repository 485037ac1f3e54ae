"""Checks of a whole configuration before torch is loaded and before a run directory is made.

The rules of single settings are in nsr.app.rules; what only a class, the data or the network can say comes in the
preflight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import log
from typing import Any

from nsr.app.rules import (
    MASKING_CHECKS,
    NORMS,
    RULES,
    TARGET_RULES,
    TRAINING_CHECKS,
    as_list,
    choice,
    dotted,
    list_of,
    radii,
)
from nsr.errors import InputError, check_epsilon, did_you_mean, fraction
from nsr.run.directory import flat

FAR = 3  # times the customary radius, or a third of it
REQUIRED = {
    "train": ("data", "model", "objective", "validation_attack", "optimizer", "trainer"),
    "evaluate": ("sensitivity_attack", "trainer"),
}
NEEDED = {
    "train": ("seed", "norm", "epsilon", "checks", "test_attacks", "sweep_metrics"),
    "evaluate": ("seed", "norm", "epsilon", "checks", "test_attacks", "evaluation"),
}


def check_settings(settings: Mapping[str, Any], program: str) -> None:
    """Check a resolved configuration of plain values; InputError for the first setting that cannot be used."""
    # the shortest names first: epsilon itself, before the attacks that take it over
    leaves = dict(sorted(flat(settings), key=lambda leaf: leaf[0].count(".")))
    for name, value in leaves.items():
        if value == "???":
            raise InputError(f"{name} is missing; give it on the command line: {name}=...")
    for name, value in leaves.items():
        inside = [rule for rule in RULES if rule.startswith(f"{name}.")]
        if inside and not isinstance(value, Mapping) and (value is not None or name in NEEDED[program]):
            raise InputError(f"{name} is {value!r}; it must be settings such as {inside[0]}")
    _check_parts(settings, program)
    for name, value in leaves.items():
        if name in RULES:
            RULES[name](name, value)
        elif f".{name}".endswith(".epsilon") and not isinstance(value, Mapping) and value is not None:
            norm = leaves.get(f"{name.removesuffix('epsilon')}norm") or settings.get("norm")
            check_epsilon(name, value, norm=norm if norm in NORMS else "linf")
    for place, part in sorted(targets(settings), key=lambda found: found[0] != "trainer"):
        for key, rule in TARGET_RULES.get(part["_target_"], {}).items():
            if key in part:
                rule(f"{place}.{key}", part[key])
    _check_checks(settings["checks"], TRAINING_CHECKS if program == "train" else MASKING_CHECKS)
    if settings.get("compile") is True and settings.get("sync_batch_norm") is True:
        raise InputError("compile and sync_batch_norm are both true; layers that exchange are not compiled: choose one")
    least, most = (settings["trainer"].get(name) for name in ("min_epochs", "max_epochs"))
    if isinstance(least, int) and isinstance(most, int) and least > most:
        raise InputError(f"trainer.min_epochs is {least}; it must be at most trainer.max_epochs, which is {most}")
    if settings.get("threat_models") is not None:
        radii("threat_models", settings["threat_models"])
    _check_parts_of_test(settings)
    if program == "train" and settings.get("corruptions") is not None:
        raise InputError("test_attacks has corruptions, which training does not measure; give it to evaluate.py")


def _check_parts_of_test(settings: Mapping[str, Any]) -> None:
    """Check that a part of the test set is measured alone."""
    images = any(isinstance(entry, int) for entry in as_list(settings.get("only")))
    parts = {"shard": settings.get("shard"), "merge": settings.get("merge"), "only": images or None}
    given = [name for name, value in parts.items() if value]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given; they exclude each other: give one")
    if images and any(isinstance(entry, str) for entry in as_list(settings["only"])):
        raise InputError(f"only is {settings['only']!r}; it must be names of rows or indices of images")
    further = [name for name in ("corruptions", "analysis") if settings.get(name)]
    limit = settings["trainer"].get("limit_test_batches")
    if given and limit is not None and (isinstance(limit, int) or limit < 1):
        raise InputError(f"{given[0]} is a part of the whole test set; leave trainer.limit_test_batches={limit} out")
    if given and given[0] != "merge" and further:
        raise InputError(f"{given[0]} measures a part of the test set, {further[0]} needs all of it; leave it out")


def check_complete(settings: Mapping[str, Any], program: str) -> None:
    """Check that every setting and part that the command needs is there; their interpolations may not resolve yet."""
    for name in NEEDED[program]:
        if name not in settings:
            raise InputError(f"{name} is missing; {program}.py needs it: leave ~{name} out")
    for name in REQUIRED[program]:
        part = settings.get(name)
        if not isinstance(part, Mapping) or not part.get("_target_"):
            got = "missing" if part is None or part == {} else f"{part!r}"
            raise InputError(f"{name} is {got}; it must be a choice such as {name}=NAME, or +{name}._target_=CLASS")


def mappings(value: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (dotted place, mapping) of every mapping at any depth, the outermost first."""
    if isinstance(value, Mapping):
        yield place, value
        for key, entry in value.items():
            yield from mappings(entry, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from mappings(entry, f"{place}[{index}]")


def targets(settings: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (dotted place, mapping) of every mapping with a `_target_`."""
    return [(place, part) for place, part in mappings(settings) if part.get("_target_")]


def _check_parts(settings: Mapping[str, Any], program: str) -> None:
    """Every part that is there names a class."""
    module = settings.get("module")
    if module is not None and not isinstance(module, Mapping):
        raise InputError(f"module is {module!r}; it must be null, or have a _target_: +module._target_=CLASS")
    for name in ("test_attacks", "callbacks", "logger", "metrics"):
        parts = settings.get(name) or {}
        if not isinstance(parts, Mapping):
            raise InputError(f"{name} is {parts!r}; it must be a list of choices, {name}=[NAME], or NAME: settings")
        for key, part in parts.items():
            if part is not None and (not isinstance(part, Mapping) or not part.get("_target_")) and key != "curve":
                raise InputError(f"{name}.{key} is {part!r}; it must have a _target_, or be null")
    for place, part in targets(settings):
        dotted(f"{place}._target_", part["_target_"])
        if part.get("_partial_") and place in ("data", "model", "trainer"):
            raise InputError(f"{place}._partial_ is true; {place} must be made, not its constructor: leave it out")
    if not settings["test_attacks"] and not settings.get("corruptions"):
        raise InputError("test_attacks is []; it must name what is tested, such as [clean] or [clean,pgd]")


def _check_checks(checks: Any, allowed: tuple[str, ...]) -> None:
    """checks.stop_on names checks of this command."""
    if not isinstance(checks, Mapping):
        raise InputError(f"checks is {checks!r}; its settings are checks.stop_on and, in an evaluation, checks.enabled")
    stop_on = list_of(choice(*allowed), f"[{allowed[0]}]")("checks.stop_on", checks.get("stop_on", []))
    if stop_on and not checks.get("enabled", True):
        raise InputError(f"checks.stop_on has {stop_on[0]}, but checks.enabled is false: no check is evaluated")


def unusual_epsilon(norm: str, epsilon: Any, customary: Mapping[str, Any]) -> str | None:
    """Return one line where a radius is far from the customary one of its norm and near another norm's; else None.

    Args:
        epsilon, customary: a radius, and {norm: radius}; numbers or text such as '8/255'.
    """
    value, usual = fraction("epsilon", epsilon), {name: fraction(name, entry) for name, entry in customary.items()}
    if norm not in usual or min(value, *usual.values()) <= 0:
        return None
    away = {name: abs(log(value / entry)) for name, entry in usual.items()}
    nearest = min(away, key=lambda name: away[name])
    if nearest == norm or away[norm] < log(FAR):
        return None
    return (
        f"epsilon={epsilon} is customary in {nearest}, but norm is {norm}, whose customary value for these "
        f"data is {customary[norm]}: is the norm right?"
    )


def check_names(settings: Mapping[str, Any], known: Iterable[str], text: str, program: str) -> None:
    """Raise InputError for a top-level setting that neither the command nor another setting reads.

    Args:
        known: the settings of the command without overrides.
        text: the unresolved configuration, in which `${NAME}` looks a setting up.
    """
    allowed = {*known, "data", "model", "train_attack", "callbacks", "logger", "corruptions", "analysis"}
    for name in settings:
        if name not in allowed and f"${{{name}" not in text:
            other = {"train": "evaluate", "evaluate": "train"}[program]
            hint = did_you_mean(name, allowed) or f"; `{program}.py --cfg job` prints all of them"
            if name == "experiment":
                hint += "; a file of experiment/ begins with the line # @package _global_"
            raise InputError(f"{name}: there is no such setting{hint}; {other}.py may have it")
