"""What every setting of conf/ may be, checked before torch is loaded and before a run directory is made.

A rule is a pattern of dotted names and a check that raises InputError. tests/test_configuration.py holds every number
of conf/ against this list, so that no setting goes unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from nsr.errors import (
    InputError,
    check_choice,
    check_epsilon,
    check_number,
    check_top,
    fraction,
)

Check = Callable[[str, Any], Any]
NORMS = ("linf", "l2")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def number(**limits: Any) -> Check:
    """A rule for a number within limits."""
    return lambda name, value: check_number(name, value, **limits)


def choice(*allowed: Any) -> Check:
    """A rule for one of a few values."""
    return lambda name, value: check_choice(name, value, allowed)


def optional(check: Check) -> Check:
    """A rule that also allows null."""
    return lambda name, value: None if value is None else check(name, value)


def share_or_count(name: str, value: Any) -> Any:
    """A float in (0, 1] or a whole number from 1."""
    if isinstance(value, float):
        return check_number(name, value, above=0, highest=1, advice="a float is a share, an int a count")
    return check_number(name, value, lowest=1, whole=True, advice="an int is a count, a float a share")


def devices(name: str, value: Any) -> Any:
    """'auto', a count, or a list of device numbers."""
    if isinstance(value, list) and value:
        return [check_number(f"{name} entry", device, lowest=0, whole=True) for device in value]
    return value if value == "auto" else check_number(name, value, lowest=1, whole=True, advice="or auto, or a list")


def step_size(name: str, value: Any) -> Any:
    """A positive number or fraction."""
    return check_number(name, fraction(name, value), above=0, got=value)


def constants(name: str, value: Any) -> Any:
    """A list of numbers, one a channel."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} is {value!r}; it must be a list of numbers, one a channel")
    return [check_number(name, entry, lowest=0, highest=1, advice="pixels are in [0, 1]") for entry in value]


def patterns(name: str, value: Any) -> Any:
    """A name or a list of names."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise InputError(f"{name} is {value!r}; it must be a layer's name or pattern or a list of them, ['layer1.*']")
    return value


WHOLE: dict[str, Any] = {"whole": True}
TRUTH = choice(True, False)
RULES: dict[str, Check] = {  # the first that matches counts
    "logger.mode": optional(choice("online", "offline")),
    "norm": optional(choice(*NORMS)),
    "seed": number(lowest=0, highest=2**32 - 1, **WHOLE),
    "layers": optional(patterns),
    "channels_last": TRUTH,
    "top": number(lowest=1, **WHOLE),
    "*.channels": optional(number(lowest=1, **WHOLE)),
    "*.image_size": optional(number(lowest=1, **WHOLE)),
    "*.classes": optional(number(lowest=2, **WHOLE)),
    "data.mean": optional(constants),
    "data.std": optional(constants),
    "data.batch_size": number(lowest=2, **WHOLE),
    "data.evaluation_batch_size": number(lowest=1, **WHOLE),
    "data.validation_images": share_or_count,
    "data.split_seed": number(lowest=0, highest=2**32 - 1, **WHOLE),
    "data.seed": number(lowest=0, highest=2**32 - 1, **WHOLE),
    "data.augmentation": choice("none", "crop_flip"),
    "data.workers": number(lowest=0, **WHOLE),
    "data.download": TRUTH,
    "data.in_memory": optional(TRUTH),
    "data.epsilon.linf": lambda name, value: check_epsilon(name, value, norm="linf"),
    "data.epsilon.l2": lambda name, value: check_epsilon(name, value, norm="l2"),
    "model.width": number(lowest=1, **WHOLE),
    "model.variant": choice("published", "projection_bias"),
    "model.normalization": choice("data", "none"),
    "*.norm": optional(choice(*NORMS)),
    "*.steps": number(lowest=1, **WHOLE),
    "*.step_size": optional(step_size),
    "*.random_start": TRUTH,
    "*.mode": choice("eval", "train"),
    "objective.clean_share": number(lowest=0, highest=1),
    "stabilizer.weight": number(lowest=0),
    "stabilizer.top": check_top,
    "stabilizer.layers": optional(patterns),
    "stabilizer.gradient_through_clean": TRUTH,
    "stabilizer.batch_norm": choice("batch", "frozen", "update"),
    "optimizer.lr": number(above=0),
    "optimizer.weight_decay": number(lowest=0),
    "optimizer.momentum": number(lowest=0, highest=1),
    "optimizer.nesterov": TRUTH,
    "scheduler.T_max": number(lowest=1, **WHOLE),
    "trainer.accelerator": choice("auto", "cpu", "gpu", "mps"),
    "trainer.devices": devices,
    "trainer.precision": choice(*PRECISIONS),
    "trainer.max_epochs": number(lowest=1, **WHOLE),
    "trainer.limit_*_batches": share_or_count,
    "trainer.log_every_n_steps": number(lowest=1, **WHOLE),
    "trainer.num_sanity_val_steps": choice(-1),
    "trainer.inference_mode": choice(False),
    "trainer.use_distributed_sampler": choice(False),
    "trainer.enable_*": TRUTH,
    "trainer.deterministic": TRUTH,
    "trainer.benchmark": TRUTH,
}


def rule_of(name: str) -> Check | None:
    """The check of a dotted name, None where it has none."""
    return next((check for pattern, check in RULES.items() if fnmatchcase(name, pattern)), None)


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
                check_epsilon(name, value, norm=norm, diameter=_diameter(leaves) if norm == "l2" else None)
        elif (check := rule_of(name)) is not None:
            check(name, value)


def _diameter(leaves: Mapping[str, Any]) -> float | None:
    channels, size = leaves.get("data.channels"), leaves.get("data.image_size")
    return (channels * size * size) ** 0.5 if isinstance(channels, int) and isinstance(size, int) else None
