"""A whole configuration, checked before torch is loaded and before a run directory is made.

What a single setting may be is in nsr.app.rules; here is what settings may be together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log
from typing import Any

from nsr.app.rules import EVALUATION_ALARMS, TRAINING_ALARMS, rule_of
from nsr.errors import InputError, check_choice, check_epsilon, fraction

FAR = 3  # times the customary radius, or a third of it


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; a list is a leaf."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def check_settings(settings: Mapping[str, Any]) -> None:
    """InputError, in one line, for the first setting of a resolved configuration that cannot be used."""
    # the shortest names first: epsilon itself, before the attacks that take it over
    leaves = dict(sorted(flat(settings), key=lambda leaf: leaf[0].count(".")))
    for name, value in leaves.items():
        if value == "???":
            raise InputError(f"{name} is missing; give it on the command line: {name}=...")
    for name, value in leaves.items():
        if name == "epsilon" or name.endswith(".epsilon"):
            norm = leaves.get(f"{name.removesuffix('epsilon')}norm") or "linf"
            if value is not None and not isinstance(value, Mapping):
                check_epsilon(name, value, norm=norm, pixels=_pixels(leaves))
        elif (check := rule_of(name)) is not None:
            check(name, value)
    _check_pairs(settings, leaves)
    _check_alarms(settings)


def unusual_epsilon(norm: str, epsilon: Any, customary: Mapping[str, Any]) -> str | None:
    """One line where a radius is far from the customary one of its norm and near another norm's; else None.

    Args:
        epsilon, customary: a radius, and {norm: radius}; numbers or text such as '8/255'.
    """
    radius, usual = fraction("epsilon", epsilon), {name: fraction(name, value) for name, value in customary.items()}
    if norm not in usual or min(radius, *usual.values()) <= 0:
        return None
    away = {name: abs(log(radius / value)) for name, value in usual.items()}
    nearest = min(away, key=lambda name: away[name])
    if nearest == norm or away[norm] < log(FAR):
        return None
    return (
        f"epsilon={epsilon} is customary in {nearest}, but norm is {norm}, where these data usually have "
        f"{customary[norm]}: is it the norm that was meant?"
    )


def _check_pairs(settings: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Choices that have no meaning together."""
    objective, attack = (str(leaves.get(f"{part}._target_", "")).rpartition(".")[2] for part in ("objective", "attack"))
    if (objective == "Free") != (attack == "KeptPerturbation") and objective and attack:
        raise InputError(
            "objective=free trains on the perturbation it keeps and takes no other attack; leave attack out"
            if objective == "Free"
            else f"attack=kept belongs to objective=free, not to {objective}; leave attack out, or take another"
        )
    if settings.get("compile") is True and settings.get("sync_batch_norm") is True:
        raise InputError("compile and sync_batch_norm are both true; layers that exchange are not compiled: choose one")
    if objective and settings.get("corruptions") is not None:
        raise InputError("attacks has corruptions, which training does not measure; give it to evaluate.py")
    callbacks = settings.get("callbacks") or {}
    if "awp" in callbacks and objective == "Free":
        raise InputError("callbacks has awp, which has no meaning with objective=free: leave one of them out")
    stabilizes = bool(leaves.get("stabilizer._target_")) and leaves.get("stabilizer.weight", 0) > 0
    for name, ramp in callbacks.items():
        if ramp.get("_target_") != "nsr.callbacks.Ramp":
            continue
        if ramp["of"] == "stabilizer" and not stabilizes:
            raise InputError(
                f"callbacks has {name}, but there is no weight to ramp: stabilizer is none or its weight 0"
            )
        if ramp["of"] == "attack" and objective == "Natural" and not stabilizes:
            raise InputError(f"callbacks has {name}, but natural training without a stabiliser attacks nothing")
        epochs = -(-leaves["trainer.max_epochs"] // leaves.get("objective.replays", 1))
        if ramp["start"] >= epochs:
            raise InputError(
                f"callbacks.{name}.start is {ramp['start']}; it must be below the {epochs} epochs of the run, or the "
                "ramp never starts"
            )


def _check_alarms(settings: Mapping[str, Any]) -> None:
    """alarms.stop_on names alarms of this command."""
    alarms = settings.get("alarms", {})
    if not isinstance(alarms, Mapping):
        raise InputError(f"alarms is {alarms!r}; its settings are alarms.stop_on and, in an evaluation, alarms.judge")
    stop_on = alarms.get("stop_on", [])
    allowed = TRAINING_ALARMS if "objective" in settings else EVALUATION_ALARMS
    if not isinstance(stop_on, list):
        raise InputError(f"alarms.stop_on is {stop_on!r}; it must be a list, such as [{allowed[0]}]")
    for name in stop_on:
        check_choice("alarms.stop_on entry", name, allowed)
    if stop_on and not alarms.get("judge", True):
        raise InputError(f"alarms.stop_on has {stop_on[0]}, but alarms.judge is false: nothing is judged")


def _pixels(leaves: Mapping[str, Any]) -> int | None:
    channels, size = leaves.get("data.channels"), leaves.get("data.image_size")
    return channels * size * size if isinstance(channels, int) and isinstance(size, int) else None
