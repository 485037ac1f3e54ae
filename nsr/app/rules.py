"""Rules of single settings that no constructor checks, applied before torch is loaded.

A rule belongs to a setting of the framework (`RULES`, by dotted name) or to a `_target_` of another library whose own
errors come late or say little (`TARGET_RULES`). A class that nsr does not ship has no rule but the preflight's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nsr.errors import InputError, check_amount, check_choice, check_epsilon, check_layers, check_number
from nsr.run.rows import NORMS

Rule = Callable[[str, Any], Any]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
# docs/checks.md; their thresholds are in nsr.callbacks.training_checks and nsr.evaluation.masking_checks
TRAINING_CHECKS = ("catastrophic_overfitting", "robust_overfitting", "single_class", "collapsed_network")
MASKING_CHECKS = (
    *("convergence", "fgsm_stronger_than_pgd", "square_stronger_than_pgd", "random_stronger_than_pgd"),
    *("unbounded_attack_fails", "zero_gradients", "nondeterministic", "adaptive_stronger_than_autoattack"),
)


def number(**limits: Any) -> Rule:
    """Allow a number within limits."""
    return lambda name, value: check_number(name, value, **limits)


def choice(*allowed: Any) -> Rule:
    """Allow one of a few values."""
    return lambda name, value: check_choice(name, value, allowed)


def optional(rule: Rule) -> Rule:
    """Allow null too."""
    return lambda name, value: None if value is None else rule(name, value)


def list_of(entry: Rule, example: str, *, filled: bool = False) -> Rule:
    """Allow a list whose entries the rule allows; `filled`: not the empty one."""

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, list) or (filled and not value):
            raise InputError(f"{name} is {value!r}; it must be a list such as {example}")
        return [entry(f"{name} entry", each) for each in value]

    return rule


def refused(why: str, *, but: Any = None) -> Rule:
    """Allow only `but`, the value without effect: the setting would not work here."""

    def rule(name: str, value: Any) -> Any:
        if value is not but:
            raise InputError(f"{name} is {value!r}; {why}")
        return value

    return rule


def fraction_or_count(name: str, value: Any) -> Any:
    """Allow a float in (0, 1] or a whole number from 1."""
    return check_amount(name, value, of="")


def devices(name: str, value: Any) -> Any:
    """Allow 'auto', a count, or a list of device numbers."""
    if isinstance(value, list) and value:
        return list_of(number(lowest=0, whole=True), "[0, 1]")(name, value)
    return value if value == "auto" else check_number(name, value, lowest=1, whole=True, advice="or auto, or a list")


def text(name: str, value: Any, *, longest: int = 128, without: str = "") -> str:
    """Allow a text of 1 to `longest` characters, none of them in `without`; a typed `1` is one too."""
    is_text = isinstance(value, (str, int)) and not isinstance(value, bool)
    if not is_text or not 0 < len(str(value)) <= longest or set(str(value)) & set(without):
        further = f", without any of {' '.join(without)}" if without else ""
        raise InputError(f"{name} is {value!r}; it must be a text of 1 to {longest} characters{further}")
    return str(value)


def word(name: str, value: Any, form: str = "a name") -> str:
    """Allow a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} is {value!r}; it must be {form}")
    return value


def is_dotted(text: str) -> bool:
    """Return whether a text is a dotted name."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def trusted_name(name: str, value: Any) -> str:
    """Allow the dotted name of a class or function, or all names of a package, PACKAGE.*."""
    if not isinstance(value, str) or not is_dotted(value.removesuffix(".*") + ".any" * value.endswith(".*")):
        raise InputError(f"{name} is {value!r}; it must be a class or function, package.module.Name, or package.*")
    return value


def dotted(name: str, value: Any) -> str:
    """Allow the dotted name of a class or function, not a pattern."""
    if not isinstance(value, str) or not is_dotted(value):
        raise InputError(f"{name} is {value!r}; it must be a class or function, package.module.Name")
    return value


def milestones(name: str, value: Any) -> Any:
    """Allow a rising list of epochs."""
    epochs = list_of(COUNT, "[30, 45]", filled=True)(name, value)
    if epochs != sorted(epochs):
        raise InputError(f"{name} is {value!r}; it must rise, such as {sorted(epochs)}")
    return epochs


def steps(name: str, value: Any) -> Any:
    """Allow a count of steps, or -1 for no limit."""
    return value if value == -1 else check_number(name, value, lowest=1, whole=True, advice="or -1: no limit")


def duration(name: str, value: Any) -> Any:
    """Allow a time above 0: DD:HH:MM:SS, or the arguments of a timedelta such as {hours: 2}."""
    parts = str(value).split(":") if isinstance(value, str) else []
    numbers = [float(part) for part in parts if part.isdecimal()] if len(parts) == 4 else []
    if isinstance(value, dict) and set(value) <= {"weeks", "days", "hours", "minutes", "seconds"}:
        numbers = [entry for entry in value.values() if isinstance(entry, (int, float)) and 0 <= entry < float("inf")]
        parts = list(value.values())
    if value is not None and (len(numbers) < len(parts) or not any(numbers)):
        raise InputError(f"{name} is {value!r}; it must be a time above 0: 00:02:30:00, DD:HH:MM:SS, or {{hours: 2}}")
    return value


def once_an_epoch(name: str, value: Any) -> Any:
    """Allow the whole epoch between two validations; 1 is a batch for Lightning."""
    if value is None or (isinstance(value, float) and value == 1):
        return value
    advice = "an int counts batches, a float is a fraction, and each epoch is validated once, at its end"
    raise InputError(f"{name} is {value!r}; it must be 1.0 or null: {advice}")


def overfitting(name: str, value: Any) -> Any:
    """Allow 0 for none, else a fraction or a count of batches."""
    return value if type(value) in (int, float) and value == 0 else fraction_or_count(name, value)


def strategy(name: str, value: Any) -> Any:
    """Allow strategies but those that start processes with copies of the run's objects."""
    if isinstance(value, str) and any(word in value for word in ("spawn", "fork", "notebook")):
        raise InputError(f"{name} is {value!r}; it copies the objects of a run to its processes; give trainer=ddp")
    return value


def profiler(name: str, value: Any) -> Any:
    """Allow the profilers that Lightning has by name, or an object."""
    return value if isinstance(value, dict) else check_choice(name, value, ("simple", "advanced", "pytorch", None))


def tags(name: str, value: Any) -> list[str]:
    """Allow a list of different texts, each short enough for W&B."""
    checked = list_of(partial(text, longest=64), "[paper]")(name, value)
    if len(set(checked)) < len(checked):
        raise InputError(f"{name} is {value!r}; it must be a list of different texts, such as [paper]")
    return checked


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, null as the empty one, another value as its only entry."""
    return [] if value is None else value if isinstance(value, list) else [value]


def shard(name: str, value: Any) -> tuple[int, int]:
    """Allow '3/16', the third of 16 parts; return the part's number from 0, and how many there are."""
    number, _, count = str(value).partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"{name} is {value!r}; it must be NUMBER/COUNT from 1/COUNT to COUNT/COUNT, such as 3/16")
    return int(number) - 1, int(count)


def some_of(entry: Rule, example: str) -> Rule:
    """Allow null, a value that the rule allows, or a list of them that is not empty."""

    def rule(name: str, value: Any) -> list[Any]:
        if value == []:
            raise InputError(f"{name} is []; it must be a list such as {example}, or null")
        return [entry(f"{name} entry", each) for each in as_list(value)]

    return rule


def name_or_image(name: str, value: Any) -> Any:
    """Allow the name of a row or the index of an image."""
    return check_number(name, value, lowest=0, whole=True) if isinstance(value, int) else word(name, value)


def radii(name: str, value: Any) -> Any:
    """Allow a list of different norms, or {norm: radius}."""
    norms = list(value) if isinstance(value, (list, dict)) else []
    if not norms or len(set(map(str, norms))) < len(norms):
        raise InputError(f"{name} is {value!r}; it must be a list of different norms, [linf, l2], or {{linf: 8/255}}")
    for norm in norms:
        check_choice(f"{name} entry", norm, NORMS)
        if isinstance(value, dict):
            check_epsilon(f"{name}.{norm}", value[norm], norm=norm)
    return value


COUNT = number(lowest=1, whole=True)
TRUTH = choice(True, False)
PLACE = optional(partial(word, form="a path, or null"))
CHECKPOINTS = list_of(partial(word, form="a path"), "[RUN/checkpoints/best.ckpt]", filled=True)
LONG_TEXT = optional(partial(text, longest=2_000))
OF_NSR = "nsr sets it; leave it out"
RULES: dict[str, Rule] = {
    "name": partial(text, longest=255),
    "norm": optional(choice(*NORMS)),
    "seed": number(lowest=0, highest=2**32 - 1, whole=True),
    "layers": optional(check_layers),
    "sweep_metrics": list_of(choice("robust_accuracy", "clean_accuracy"), "[robust_accuracy]", filled=True),
    **dict.fromkeys(("allow_changed_config", "compile", "sync_batch_norm", "checks.enabled"), TRUTH),
    **dict.fromkeys(("report", "pictures"), TRUTH),
    **dict.fromkeys(("resume", "checkpoint", "evaluation.cache", "corruptions.root", "data.root", "data.extra"), PLACE),
    "channels_last": optional(choice(True, False, "auto")),
    # YAML reads a bare off as false
    "performance": optional(
        lambda name, value: check_choice(name, "off" if value is False else value, ("auto", "off"))
    ),
    "evaluation.precision": choice("float32", "bf16"),
    "model.weights": PLACE,
    "model.weights_prefix": optional(word),
    "model.new_head": optional(TRUTH),
    "data.class_names": optional(choice("ignore")),
    "trusted": list_of(trusted_name, "[mypackage.Net]"),
    **dict.fromkeys(("train_attack.checkpoints", "test_attacks.transfer.checkpoints"), CHECKPOINTS),
    "evaluation.n_examples": optional(COUNT),
    "shard": optional(shard),
    "only": some_of(name_or_image, "[pgd] or [17, 4023]"),
    "merge": some_of(partial(word, form="a folder"), "[FOLDER]"),
    "evaluation.subset": choice("balanced", "first"),
    **dict.fromkeys(("evaluation.list_top", "evaluation.robustbench.number_forward_passes"), COUNT),
    **{f"evaluation.robustbench.{each}": LONG_TEXT for each in ("name", "authors", "link", "venue", "footnote")},
    "corruptions.names": optional(list_of(word, "[fog, snow]", filled=True)),
}
TRAINER: dict[str, Rule] = {
    "accelerator": choice("auto", "cpu", "gpu", "mps"),
    "devices": devices,
    "precision": choice(*PRECISIONS),
    **dict.fromkeys(("num_nodes", "max_epochs", "accumulate_grad_batches", "log_every_n_steps"), COUNT),
    **dict.fromkeys(("min_epochs", "min_steps"), optional(COUNT)),
    "max_steps": steps,
    **dict.fromkeys(("detect_anomaly", "enable_model_summary", "enable_progress_bar"), TRUTH),
    "max_time": duration,
    "enable_autolog_hparams": TRUTH,
    "model_registry": refused("nsr's checkpoints are its own; leave it out"),
    "overfit_batches": overfitting,
    "reload_dataloaders_every_n_epochs": number(lowest=0, whole=True),
    "gradient_clip_algorithm": choice("norm", "value", None),
    "strategy": strategy,
    "profiler": profiler,
    "sync_batchnorm": refused("it would replace layers that are hooked; give sync_batch_norm=true", but=False),
    **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), fraction_or_count),
    "gradient_clip_val": optional(number(above=0)),
    "num_sanity_val_steps": choice(-1),
    **dict.fromkeys(("inference_mode", "use_distributed_sampler", "enable_checkpointing"), choice(False)),
    "deterministic": choice(True, False, "warn"),
    "benchmark": optional(TRUTH),
    "val_check_interval": once_an_epoch,
    "check_val_every_n_epoch": choice(1),
    "fast_dev_run": refused(
        "for a short trial give trainer.max_epochs=1 trainer.limit_train_batches=1 trainer.limit_val_batches=1",
        but=False,
    ),
    "barebones": refused(OF_NSR, but=False),
    **dict.fromkeys(("logger", "callbacks", "plugins", "default_root_dir"), refused(OF_NSR)),
}
LEARNING_RATE: dict[str, Rule] = {"lr": number(above=0), "weight_decay": number(lowest=0)}
TARGET_RULES: dict[str, dict[str, Rule]] = {
    "nsr.attacks.GradientAttack": {"steps": COUNT},  # 0 is the library's alone
    "nsr.attacks.measuring_pgd": {"steps": COUNT},
    "pytorch_lightning.Trainer": TRAINER,
    "torch.optim.Adam": LEARNING_RATE,
    "torch.optim.AdamW": LEARNING_RATE,
    "torch.optim.SGD": {**LEARNING_RATE, "momentum": number(lowest=0, highest=1), "nesterov": TRUTH},
    "torch.optim.lr_scheduler.CosineAnnealingLR": {"T_max": COUNT, "eta_min": number(lowest=0)},
    "torch.optim.lr_scheduler.MultiStepLR": {"milestones": milestones, "gamma": number(above=0, highest=1)},
    "torch.optim.lr_scheduler.OneCycleLR": {
        "max_lr": number(above=0),
        "total_steps": choice(None),
        "pct_start": number(above=0, highest=1),
        "anneal_strategy": choice("linear", "cos"),
    },
    "pytorch_lightning.callbacks.EMAWeightAveraging": {"decay": number(lowest=0, highest=1)},
    "pytorch_lightning.callbacks.EarlyStopping": {
        "patience": COUNT,
        "mode": choice("max", "min"),
        "min_delta": number(lowest=0),
    },
    "nsr.loggers.wandb.wandb_logger": {
        "mode": choice("online", "offline", None),
        "project": partial(text, without="/\\#?%:"),
        **dict.fromkeys(("name", "group", "job_type"), optional(text)),
        "tags": tags,
    },
}
