"""Rules of single settings that no constructor checks, applied before torch is loaded.

A rule belongs to a setting of the framework (`RULES`, by dotted name) or to a `_target_` of another library whose own
errors come late or say little (`TARGET_RULES`). A class that nsr does not ship has no rule but the preflight's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nsr.errors import InputError, check_choice, check_number

Rule = Callable[[str, Any], Any]
NORMS = ("linf", "l2", "l1")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
# docs/checks.md; their thresholds are in nsr.callbacks.training_checks and nsr.evaluation.masking_checks
TRAINING_CHECKS = ("catastrophic_overfitting", "robust_overfitting", "single_class", "collapsed_network")
MASKING_CHECKS = (
    *("weak_attack", "fgsm_stronger_than_pgd", "square_stronger_than_pgd", "random_stronger_than_pgd"),
    *("unbounded_attack_fails", "zero_gradients", "nondeterministic", "adaptive_stronger_than_autoattack"),
)
SEED: dict[str, Any] = {"lowest": 0, "highest": 2**32 - 1, "whole": True}
COUNT: dict[str, Any] = {"lowest": 1, "whole": True}


def number(**limits: Any) -> Rule:
    """Allow a number within limits."""
    return lambda name, value: check_number(name, value, **limits)


def choice(*allowed: Any) -> Rule:
    """Allow one of a few values."""
    return lambda name, value: check_choice(name, value, allowed)


def optional(rule: Rule) -> Rule:
    """Allow null too."""
    return lambda name, value: None if value is None else rule(name, value)


def fraction_or_count(name: str, value: Any) -> Any:
    """Allow a float in (0, 1] or a whole number from 1."""
    if isinstance(value, float):
        return check_number(name, value, above=0, highest=1, advice="a float is a fraction, an int a count")
    return check_number(name, value, lowest=1, whole=True, advice="an int is a count, a float a fraction")


def devices(name: str, value: Any) -> Any:
    """Allow 'auto', a count, or a list of device numbers."""
    if isinstance(value, list) and value:
        return [check_number(f"{name} entry", device, lowest=0, whole=True) for device in value]
    return value if value == "auto" else check_number(name, value, **COUNT, advice="or auto, or a list")


def names(example: str, *allowed: str) -> Rule:
    """Allow a list of texts, of the allowed ones where these are given."""

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
            raise InputError(f"{name} is {value!r}; it must be a list such as {example}")
        return [check_choice(f"{name} entry", entry, allowed) for entry in value] if allowed else value

    return rule


def filled(rule: Rule, example: str) -> Rule:
    """Allow no empty list."""

    def checked(name: str, value: Any) -> Any:
        if value == []:
            raise InputError(f"{name} is []; it must be a list such as {example}")
        return rule(name, value)

    return checked


def patterns(name: str, value: Any) -> Any:
    """Allow a layer's name or pattern or a list of them."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise InputError(f"{name} is {value!r}; it must be a layer's name or pattern or a list of them, ['layer1.*']")
    return value


def classes(name: str, value: Any) -> Any:
    """Allow a list of dotted names of classes or functions, none of them a pattern."""
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(entry, str) and is_dotted(entry) for entry in value):
        raise InputError(f"{name} is {value!r}; it must be a list of exact names of classes, [mypackage.Net]")
    return value


def is_dotted(text: str) -> bool:
    """Return whether a text is a dotted name."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def milestones(name: str, value: Any) -> Any:
    """Allow a rising list of epochs."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} is {value!r}; it must be a list of epochs, such as [30, 45]")
    epochs = [check_number(f"{name} entry", epoch, **COUNT) for epoch in value]
    if epochs != sorted(epochs):
        raise InputError(f"{name} is {value!r}; it must rise, such as {sorted(epochs)}")
    return epochs


def text(name: str, value: Any, *, longest: int = 128, without: str = "") -> str:
    """Allow a text of 1 to `longest` characters, none of them in `without`; a typed `1` is one too."""
    is_text = isinstance(value, (str, int)) and not isinstance(value, bool)
    if not is_text or not 0 < len(str(value)) <= longest or set(str(value)) & set(without):
        further = f", without any of {' '.join(without)}" if without else ""
        raise InputError(f"{name} is {value!r}; it must be a text of 1 to {longest} characters{further}")
    return str(value)


def place(name: str, value: Any) -> Any:
    """Allow null or a text that is not empty, the path of a file or a folder."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"{name} is {value!r}; it must be a path, or null")
    return value


def tags(name: str, value: Any) -> list[str]:
    """Allow a list of different texts, each short enough for W&B."""
    if not isinstance(value, list) or len(set(map(str, value))) < len(value):
        raise InputError(f"{name} is {value!r}; it must be a list of different texts, such as [paper]")
    return [text(f"{name} entry", entry, longest=64) for entry in value]


def refused(why: str) -> Rule:
    """Allow nothing: the setting would not work here."""

    def rule(name: str, value: Any) -> Any:
        raise InputError(f"{name} is {value!r}; {why}")

    return rule


TRUTH = choice(True, False)
ONCE_AN_EPOCH = "nsr validates once at the end of each epoch, which its records and checkpoints rely on; leave it out"
OF_NSR = "nsr sets it; leave it out"
RULES: dict[str, Rule] = {
    "norm": optional(choice(*NORMS)),
    "seed": number(**SEED),
    "layers": optional(patterns),
    "sweep_metrics": filled(names("[robust_accuracy]", "robust_accuracy", "clean_accuracy"), "[robust_accuracy]"),
    "resume": place,
    "allow_changed_config": TRUTH,
    "compile": TRUTH,
    "sync_batch_norm": TRUTH,
    "channels_last": TRUTH,
    "checkpoint": place,
    "trusted": classes,
    "checks.enabled": TRUTH,
    "evaluation.n_examples": optional(number(**COUNT)),
    "evaluation.subset": choice("balanced", "first"),
    "evaluation.list_top": number(**COUNT),
    "evaluation.cache": place,
    "corruptions.root": place,
    "corruptions.names": optional(filled(names("[fog, snow]"), "[fog, snow]")),
    "data.root": place,
    "model.weights": place,
}
TRAINER: dict[str, Rule] = {
    "accelerator": choice("auto", "cpu", "gpu", "mps"),
    "devices": devices,
    "num_nodes": number(**COUNT),
    "precision": choice(*PRECISIONS),
    "max_epochs": number(**COUNT),
    "max_steps": number(lowest=-1, whole=True),
    "limit_train_batches": fraction_or_count,
    "limit_val_batches": fraction_or_count,
    "limit_test_batches": fraction_or_count,
    "accumulate_grad_batches": number(**COUNT),
    "gradient_clip_val": optional(number(above=0)),
    "log_every_n_steps": number(**COUNT),
    "num_sanity_val_steps": choice(-1),
    "inference_mode": choice(False),
    "use_distributed_sampler": choice(False),
    "enable_checkpointing": choice(False),
    "deterministic": choice(True, False, "warn"),
    "benchmark": optional(TRUTH),
    "val_check_interval": choice(1.0, None),
    "check_val_every_n_epoch": choice(1),
    "fast_dev_run": refused(
        "for a short trial give trainer.max_epochs=1 trainer.limit_train_batches=1 trainer.limit_val_batches=1"
    ),
    "barebones": refused(OF_NSR),
    **dict.fromkeys(("logger", "callbacks", "plugins", "default_root_dir"), refused(OF_NSR)),
}
LEARNING_RATE: dict[str, Rule] = {"lr": number(above=0), "weight_decay": number(lowest=0)}
TARGET_RULES: dict[str, dict[str, Rule]] = {
    "nsr.attacks.GradientAttack": {"steps": number(**COUNT)},  # 0 is the library's alone
    "pytorch_lightning.Trainer": TRAINER,
    "torch.optim.Adam": LEARNING_RATE,
    "torch.optim.AdamW": LEARNING_RATE,
    "torch.optim.SGD": {**LEARNING_RATE, "momentum": number(lowest=0, highest=1), "nesterov": TRUTH},
    "torch.optim.lr_scheduler.CosineAnnealingLR": {"T_max": number(**COUNT)},
    "torch.optim.lr_scheduler.MultiStepLR": {"milestones": milestones, "gamma": number(above=0, highest=1)},
    "torch.optim.lr_scheduler.OneCycleLR": {
        "max_lr": number(above=0),
        "pct_start": number(above=0, highest=1),
        "anneal_strategy": choice("linear", "cos"),
    },
    "pytorch_lightning.callbacks.EMAWeightAveraging": {"decay": number(lowest=0, highest=1)},
    "pytorch_lightning.callbacks.EarlyStopping": {"patience": number(**COUNT), "mode": choice("max", "min")},
    "nsr.loggers.wandb.wandb_logger": {
        "mode": choice("online", "offline", None),
        "project": lambda name, value: text(name, value, without="/\\#?%:"),
        **dict.fromkeys(("name", "group", "job_type"), optional(text)),
        "tags": tags,
    },
}
