"""From settings to objects: data, network, attacks, module; each is made once, from plain values.

Whatever nsr ships comes through the same doors as a user's own class: a `_target_` from any importable module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from nsr import loggers
from nsr.app.attacks import build_attack, build_metrics, build_suite, try_attack
from nsr.app.instantiation import (
    EXAMPLES,
    Settings,
    in_place,
    instantiate,
    locate,
    make_callable,
    named_arguments,
    trial,
)
from nsr.app.machine import processes, shares_batches
from nsr.app.network import build_classifier, check_classifier, example_images
from nsr.compat import leave_signals_alone, start_processes_with
from nsr.data import DataDescription, ImageData, image_data
from nsr.data.corruptions import Corruptions
from nsr.errors import InputError
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.modes import network_mode
from nsr.objectives import compute_terms
from nsr.run.processes import is_started_from_outside, observe
from nsr.training.free import classifier_type
from nsr.training.module import RobustClassifier, make_optimizer


def build_data(settings: Settings, *, splits: tuple[str, ...]) -> ImageData:
    """Make the data module; its files are there and its description is known.

    Args:
        settings: of the whole command.
        splits: that are needed, of 'train' and 'test'.
    """
    own = {name: value for name, value in settings["data"].items() if name not in ("_target_", "epsilon")}
    data = image_data(locate(settings["data"], "data"), instantiate(own, "data"))
    data.prepare()
    data.check_splits(splits)
    return data


def build_module(settings: Settings, description: DataDescription, *, augment: Any = None) -> RobustClassifier:
    """Make the LightningModule; of an evaluation where the settings have no objective.

    Args:
        settings: of the whole command.
        description: of the data.
        augment: images -> images, in training alone.
    """
    exchange = bool(settings.get("sync_batch_norm")) and shares_batches(settings)
    classifier = build_classifier(settings, description, exchange=exchange)
    check_classifier(classifier, description)
    example = example_images(description)
    layers = find_layers(classifier, example, settings["layers"], root=classifier.net)
    kind, training = RobustClassifier, {}
    if "objective" in settings:
        training = _training_parts(settings, classifier, description) | {"augment": augment}
        kind = classifier_type(training["objective"], training.get("train_attack"))
        training["metrics"] = build_metrics(settings, description)
    own = dict(settings.get("module") or {})
    if own.pop("_target_", None):
        kind = locate(settings["module"], "module")  # type: ignore[assignment]
        if not (isinstance(kind, type) and issubclass(kind, RobustClassifier)):
            raise InputError("module._target_ is no subclass of nsr.RobustClassifier; it must be one")
    with trial("module", kind.__name__):
        module = kind(
            classifier,
            layers=layers,
            root=classifier.net,
            classes=description.classes,
            suite=build_suite(settings, classifier, description),
            seed=settings["seed"],
            **training,
            **own,
        )
    if "objective" in settings:
        _try_training(module, settings, example)
    return module


def _training_parts(settings: Settings, classifier: Classifier, description: DataDescription) -> dict[str, Any]:
    parts = {name: make_callable(settings[name], name) for name in ("objective", "optimizer")}
    parts["validation_attack"] = build_attack(settings, settings["validation_attack"], "validation_attack", description)
    try_attack(parts["validation_attack"], "validation_attack", classifier, description)
    if (settings.get("train_attack") or {}).get("_target_"):
        parts["train_attack"] = build_attack(settings, settings["train_attack"], "train_attack", description)
        try_attack(parts["train_attack"], "train_attack", classifier, description)
    stabilizer = settings.get("stabilizer") or {}
    parts["stabilizer"] = make_callable(stabilizer, "stabilizer") if stabilizer.get("_target_") else None
    return parts | build_scheduler(settings)


def build_scheduler(settings: Settings) -> dict[str, Any]:
    """Make the schedule of the learning rate, stepped every step where it asks for the run's steps, else per epoch."""
    own = dict(settings.get("scheduler") or {})
    interval = "step" if "total_steps" in own else "epoch"
    own.pop("total_steps", None)
    return {
        "scheduler": make_callable(own, "scheduler") if own.get("_target_") else None,
        "scheduler_interval": interval,
    }


def _try_training(module: RobustClassifier, settings: Settings, example: Tensor) -> None:
    """Try objective, stabilizer, optimizer and schedule once; the objective's terms are known afterwards."""
    labels = torch.arange(EXAMPLES)
    net: Any = module.net
    with torch.no_grad(), network_mode(net, "eval"):
        logits, features = module.train_extractor(example)
    values = {"labels": labels, "net": net}
    for view in ("clean", "adversarial"):
        values |= {f"{view}_images": example, f"{view}_logits": logits, f"{view}_features": features}
    with trial("objective", "the objective"), network_mode(net, "eval"):
        terms = compute_terms(module.objective, values)
    module.train_metrics.add_terms([*terms, *(["stabilizer"] if module.stabilizer is not None else [])])
    if module.stabilizer is not None:
        with trial("stabilizer", "the stabilizer"):
            if hasattr(module.stabilizer, "check_features"):
                module.stabilizer.check_features(features)
            else:
                term = module.stabilizer(features, features)
                if not isinstance(term, Tensor) or term.numel() != 1:
                    raise InputError(f"the stabilizer gives {term!r}; it must give a scalar tensor")
    with trial("optimizer", "the optimizer"):
        optimizer = make_optimizer(module.optimizer, net)  # type: ignore[arg-type]
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"optimizer gives a {type(optimizer).__name__}; it must give a torch.optim.Optimizer")
    if module.scheduler is not None:
        with trial("scheduler", "the schedule"):
            module.scheduler(optimizer, **({"total_steps": 10} if module.scheduler_interval == "step" else {}))
    manual = [name for name in ("accumulate_grad_batches", "gradient_clip_val") if settings["trainer"].get(name)]
    manual = [name for name in manual if settings["trainer"][name] != 1 or name == "gradient_clip_val"]
    if manual and not module.automatic_optimization:
        raise InputError(
            f"trainer.{manual[0]} is {settings['trainer'][manual[0]]}; this objective makes its own optimizer steps, "
            "in which it has no meaning: leave it out"
        )


# ---------------------------------------------------------------- what stands around the module


def max_epochs(settings: Settings) -> int:
    """Return the epochs of the Trainer: free training replays each batch, so takes fewer (Shafahi et al. 2019)."""
    return -(-settings["trainer"]["max_epochs"] // int((settings.get("objective") or {}).get("replays", 1)))


def build_callbacks(settings: Settings, module: RobustClassifier) -> dict[str, pl.Callback]:
    """Make the callbacks of the command; one that has `check(module, epochs)` is asked whether it can work."""
    made = {}
    for name, own in (settings.get("callbacks") or {}).items():
        if own is None:
            continue
        place = f"callbacks.{name}"
        callback = instantiate(own, place)
        if not isinstance(callback, pl.Callback):
            raise InputError(f"{place} is a {type(callback).__name__}; it must be a pytorch_lightning Callback")
        if hasattr(callback, "check"):
            try:
                callback.check(module, max_epochs(settings))
            except InputError as error:
                raise InputError(in_place(place, error)) from error
        made[str(name)] = callback
    return made


def check_loggers(settings: Settings) -> None:
    """Check that what is chosen can be a logger, without making one: most open a file or a connection.

    Errors:
        InputError: it cannot.
    """
    for name, own in (settings.get("logger") or {}).items():
        if own is not None:
            kind = locate(own, f"logger.{name}")
            if isinstance(kind, type) and not issubclass(kind, Logger):
                raise InputError(f"logger.{name} is a {kind.__name__}; it must be a pytorch_lightning Logger")


def build_loggers(settings: Settings, directory: Path) -> list[Logger]:
    """Make the loggers of the command; one whose signature names `save_dir` gets the run directory."""
    made: list[Logger] = []
    try:
        for name, own in (settings.get("logger") or {}).items():
            if own is None:
                continue
            place = f"logger.{name}"
            further = named_arguments(locate(own, place), {} if "save_dir" in own else {"save_dir": str(directory)})
            logger = instantiate(own, place, **further)
            if not isinstance(logger, Logger):
                raise InputError(f"{place} is a {type(logger).__name__}; it must be a pytorch_lightning Logger")
            made.append(logger)
    except InputError:
        loggers.finish(made)
        raise
    return made


def cluster_environments() -> list[LightningEnvironment]:
    """Return the plugin for a Trainer that starts its own processes, else none.

    Lightning takes any job of SLURM for several tasks, a single one too.
    """
    return [] if is_started_from_outside() else [LightningEnvironment()]


def build_trainer(
    settings: Settings, directory: Path, command: Callable[[int], tuple[list[str], str]], **further: Any
) -> pl.Trainer:
    """Make Lightning's Trainer; signals are left to nsr.run.signals.

    Args:
        settings: of the whole command.
        directory: of the run.
        command: rank -> the command and folder of a further process.
        further: arguments of the Trainer.
    """
    start_processes_with(command, observe)
    plugins = [*further.pop("plugins", ()), *cluster_environments()]
    # bound first: Hydra would copy the objects among the arguments into its own lists
    make = instantiate({**settings["trainer"], "_partial_": True}, "trainer")
    trainer = make(default_root_dir=str(directory), plugins=plugins, **further)
    leave_signals_alone(trainer)
    return trainer


def build_analyses(settings: Settings, module: RobustClassifier) -> dict[str, Any]:
    """Make the analyses of an evaluation, checked against the hooked layers."""
    chosen = settings.get("analysis") or {}
    if chosen and processes(settings) > 1:
        raise InputError(
            f"trainer.devices is {settings['trainer']['devices']}; analyses work on one: give trainer.devices=1, the "
            "attacks that are finished come from the cache"
        )
    analyses = {str(name): instantiate(own, f"analysis.{name}") for name, own in chosen.items() if own is not None}
    for name, analysis in analyses.items():
        if not hasattr(analysis, "run"):
            raise InputError(f"analysis.{name} is a {type(analysis).__name__}; it must have a method run(context)")
        if hasattr(analysis, "check"):
            analysis.check(module.extractor.layers, (settings.get("evaluation") or {}).get("n_examples"))
    return analyses


def build_corruptions(settings: Settings, data: ImageData) -> Corruptions | None:
    """Make the corrupted images of an evaluation that has them among its attacks."""
    if settings.get("corruptions") is None:
        return None
    description, evaluation = data.describe(), settings["evaluation"]
    return Corruptions(
        **settings["corruptions"],
        classes=description.class_names,
        channels=description.channels,
        image_size=description.image_size,
        n_examples=evaluation["n_examples"],
        subset=evaluation["subset"],
        split_seed=data.split_seed,
    )
