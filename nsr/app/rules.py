"""What every single setting of conf/ may be, checked before torch is loaded.

A rule is a pattern of dotted names and a check that raises InputError. tests/test_configuration.py holds every number
of conf/ against this list, so that no setting goes unchecked.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from nsr.errors import InputError, check_choice, check_epsilon, check_number, check_top, fraction

Check = Callable[[str, Any], Any]
NORMS = ("linf", "l2", "l1")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
# docs/alarms.md; their thresholds are in nsr.callbacks.training_checks and nsr.evaluation.masking_checks
TRAINING_ALARMS = ("catastrophic_overfitting", "robust_overfitting", "one_class", "constant")
EVALUATION_ALARMS = ("steps", "one_step", "square", "uniform", "unbounded", "zero_gradients", "unsteady", "adaptive")


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


def milestones(name: str, value: Any) -> Any:
    """A list of epochs."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} is {value!r}; it must be a list of epochs, such as [30, 45]")
    return [check_number(f"{name} entry", epoch, lowest=1, whole=True) for epoch in value]


def checkpoints(name: str, value: Any) -> Any:
    """A list of files."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry for entry in value):
        raise InputError(f"{name} is {value!r}; it must be a list of checkpoints, [RUN/checkpoints/best.ckpt]")
    return value


def names(name: str, value: Any) -> Any:
    """A list of texts."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry for entry in value):
        raise InputError(f"{name} is {value!r}; it must be a list of names, such as [fog, snow]")
    return value


def numbers(**limits: Any) -> Check:
    """A rule for a list of numbers within limits."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
            raise InputError(f"{name} is {value!r}; it must be a list of different numbers")
        return [check_number(f"{name} entry", entry, **limits) for entry in value]

    return check


def shares(name: str, value: Any) -> Any:
    """A list of shares in (0, 1]."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} is {value!r}; it must be a list of shares of a layer's neurons, such as [0.1, 0.5]")
    return [check_number(f"{name} entry", entry, above=0, highest=1) for entry in value]


def choices(*allowed: Any) -> Check:
    """A rule for a list of a few values."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, list):
            raise InputError(f"{name} is {value!r}; it must be a list of {', '.join(map(str, allowed))}")
        return [check_choice(f"{name} entry", entry, allowed) for entry in value]

    return check


def exact_names(name: str, value: Any) -> Any:
    """A list of dotted names, none of them a pattern."""
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(entry, str) and _is_dotted(entry) for entry in value):
        raise InputError(f"{name} is {value!r}; it must be a list of exact names of classes, [mypackage.Net]")
    return value


def _is_dotted(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


def resumption(name: str, value: Any) -> Any:
    """null, 'auto' or a run directory."""
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"{name} is {value!r}; it must be auto or a run directory, runs/NAME/DATE")
    return value


def mode(name: str, value: Any) -> Any:
    """online, offline or null."""
    return check_choice(name, value, ("online", "offline", None))


def text(name: str, value: Any, *, longest: int = 128, without: str = "") -> str:
    """A text of 1 to `longest` characters, none of them in `without`; `1` typed on the command line is one too."""
    is_text = isinstance(value, (str, int)) and not isinstance(value, bool)
    if not is_text or not 0 < len(str(value)) <= longest or set(str(value)) & set(without):
        further = f", without any of {' '.join(without)}" if without else ""
        raise InputError(f"{name} is {value!r}; it must be a text of 1 to {longest} characters{further}")
    return str(value)


def project(name: str, value: Any) -> str:
    """A name that W&B allows for a project."""
    return text(name, value, without="/\\#?%:")


def label(name: str, value: Any) -> str | None:
    """A text or null."""
    return None if value is None else text(name, value)


def tags(name: str, value: Any) -> list[str]:
    """A list of different texts, each short enough for W&B."""
    if not isinstance(value, list) or len(set(map(str, value))) < len(value):
        raise InputError(f"{name} is {value!r}; it must be a list of different texts, such as [paper]")
    return [text(f"{name} entry", entry, longest=64) for entry in value]


DASHBOARD_RULES: dict[str, Check] = {
    "logger.mode": mode,
    "logger.project": project,
    "logger.name": label,
    "logger.group": label,
    "logger.job_type": label,
    "logger.tags": tags,
}


RULES: dict[str, Check] = {  # the first that matches counts
    **DASHBOARD_RULES,
    "norm": optional(choice(*NORMS)),
    "optimize": choices("robust_accuracy", "clean_accuracy"),
    "resume": resumption,
    "resume_changed": TRUTH,
    "seed": number(lowest=0, highest=2**32 - 1, **WHOLE),
    "layers": optional(patterns),
    "channels_last": TRUTH,
    "compile": TRUTH,
    "sync_batch_norm": TRUTH,
    "top": number(lowest=1, **WHOLE),
    "limit": optional(number(lowest=1, **WHOLE)),
    "limit_order": choice("balanced", "first"),
    "*.version": choice("standard", "plus", "rand", "custom"),
    "alarms.judge": TRUTH,
    "suite.curve.shares": numbers(above=0),
    "corruptions.names": optional(names),
    "corruptions.severities": numbers(lowest=1, highest=5, whole=True),
    "analysis.*.layers": optional(patterns),
    "analysis.*.shares": shares,
    "analysis.interventions.kinds": choices("restore", "corrupt", "mask_zero", "mask_mean"),
    "analysis.interventions.rankings": choices("activation", "relative", "conductance"),
    "analysis.interventions.draws": number(lowest=2, **WHOLE),
    "analysis.*.replicates": number(lowest=100, **WHOLE),
    "analysis.*.images_at_once": number(lowest=1, **WHOLE),
    "*.draws": number(lowest=1, **WHOLE),
    "*.queries": number(lowest=1, **WHOLE),
    "*.seed": number(lowest=0, highest=2**32 - 1, **WHOLE),
    "optimizer.momentum": number(lowest=0, highest=1),
    "*.momentum": number(lowest=0),
    "suite.*.weight": number(lowest=0),
    "suite.*.top": check_top,
    "*.cross_entropy": TRUTH,
    "*.channels": optional(number(lowest=1, **WHOLE)),
    "*.image_size": optional(number(lowest=1, **WHOLE)),
    "*.classes": optional(number(lowest=2, **WHOLE)),
    "data.mean": optional(constants),
    "data.std": optional(constants),
    "data.batch_size": number(lowest=2, **WHOLE),
    "data.evaluation_batch_size": optional(number(lowest=1, **WHOLE)),
    "data.validation_images": share_or_count,
    "data.split_seed": optional(number(lowest=0, highest=2**32 - 1, **WHOLE)),
    "data.seed": number(lowest=0, highest=2**32 - 1, **WHOLE),
    "data.augmentation": choice("none", "crop_flip"),
    "data.workers": number(lowest=0, **WHOLE),
    "data.download": TRUTH,
    "data.in_memory": optional(TRUTH),
    "data.epsilon.*": lambda name, value: check_epsilon(name, value, norm=name.rpartition(".")[2]),
    "model.width": number(lowest=1, **WHOLE),
    "model.variant": choice("published", "projection_bias"),
    "model.normalization": choice("data", "none"),
    "*.norm": optional(choice(*NORMS)),
    "*.steps": number(lowest=1, **WHOLE),
    "*.step_size": optional(step_size),
    "*.random_start": choice(True, False, "gaussian"),
    "*.noise": optional(step_size),
    "*.projection": TRUTH,
    "*.loss": choice("cross_entropy", "margin", "kl"),
    "*.targeted": choice(False, "least_likely"),  # labels as targets are the library's: a data set has none
    "*.restarts": number(lowest=1, **WHOLE),
    "*.keep_best": TRUTH,
    "*.checkpoints": checkpoints,
    "trusted": exact_names,
    "callbacks.early_stopping.mode": choice("max"),
    "*.mode": choice("eval", "train"),
    "objective.clean_share": number(lowest=0, highest=1),
    "objective.label_smoothing": number(lowest=0, highest=1),
    "objective.weight": number(lowest=0),
    "objective.beta": number(lowest=0),
    "objective.replays": number(lowest=1, **WHOLE),
    "callbacks.awp.gamma": number(lowest=0),
    "callbacks.awp.warmup": number(lowest=0, **WHOLE),
    "callbacks.ema.decay": number(lowest=0, highest=1),
    "callbacks.early_stopping.patience": number(lowest=1, **WHOLE),
    "callbacks.early_stopping.monitor": choice("validation/robust_accuracy", "validation/clean_accuracy"),
    "callbacks.*_ramp.of": choice("attack", "stabilizer"),
    "callbacks.*_ramp.epochs": number(above=0),
    "callbacks.*_ramp.start": number(lowest=0),
    "stabilizer.weight": number(lowest=0),
    "stabilizer.top": check_top,
    "stabilizer.layers": optional(patterns),
    "stabilizer.refresh": choice("batch", "average", "epoch", "once"),
    "stabilizer.decay": number(lowest=0, highest=1),
    "stabilizer.distance": choice("l1", "l2", "cosine"),
    "stabilizer.reduction": choice("mean", "sum"),
    "stabilizer.gradient_through_clean": TRUTH,
    "stabilizer.batch_norm": choice("batch", "frozen", "update"),
    "optimizer.lr": number(above=0),
    "optimizer.weight_decay": number(lowest=0),
    "optimizer.nesterov": TRUTH,
    "scheduler.T_max": number(lowest=1, **WHOLE),
    "scheduler.milestones": milestones,
    "scheduler.gamma": number(above=0, highest=1),
    "scheduler.max_lr": number(above=0),
    "scheduler.pct_start": number(above=0, highest=1),
    "scheduler.anneal_strategy": choice("linear", "cos"),
    "scheduler.cycle_momentum": TRUTH,
    "trainer.accelerator": choice("auto", "cpu", "gpu", "mps"),
    "trainer.devices": devices,
    "trainer.num_nodes": number(lowest=1, **WHOLE),
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
