"""From settings to objects: data, network, attacks, module; each is made once, from plain values.

Whatever nsr ships comes through the same doors as a user's own class: a `_target_` from any importable module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment

from nsr import loggers
from nsr.app.attacks import build_attack, build_metrics, build_suite
from nsr.app.instantiation import (
    Settings,
    bound,
    check_arguments,
    chosen,
    in_place,
    instantiate,
    locate,
    make_callable,
    make_one,
    trial,
)
from nsr.app.machine import process_command, processes, shares_batches
from nsr.app.network import build_classifier, check_classifier, example_images
from nsr.app.performance import choose_folding, choose_search, uses_channels_last
from nsr.app.trials import try_training
from nsr.callbacks import WeightAverages
from nsr.compat import leave_signals_alone, start_processes_with
from nsr.data import DataDescription, ImageData, image_data
from nsr.data.corruptions import Corruptions
from nsr.errors import InputError, check_choice, named_arguments
from nsr.layers import find_layers
from nsr.loggers.fault_tolerant import fault_tolerant, starts
from nsr.models import Classifier
from nsr.run.processes import is_started_from_outside, observe
from nsr.training.free import classifier_type
from nsr.training.module import RobustClassifier
from nsr.training.optimizers import grouped


def build_data(settings: Settings, *, splits: tuple[str, ...]) -> ImageData:
    """Make the data module with its files and its description; `splits` are those needed of 'train' and 'test'."""
    not_its = ("_target_", "epsilon", "class_order", "class_names")
    own = {name: value for name, value in settings["data"].items() if name not in not_its}
    if own.get("augmentation") is not None:
        own["augmentation"] = bound(own["augmentation"], "data.augmentation")
    data = image_data(locate(settings["data"], "data"), instantiate(own, "data"))
    if (order := settings["data"].get("class_order")) is not None:
        data.set_class_order(order, ignore=settings["data"].get("class_names") == "ignore")
    data.prepare()
    data.check_splits(splits)
    return data


def build_module(
    settings: Settings, description: DataDescription, *, augment: Any = None, mix: Any = None
) -> RobustClassifier:
    """Make the LightningModule: that of an evaluation where the settings have no objective.

    Args:
        augment, mix: of training alone, see `RobustClassifier`.
    """
    exchange = bool(settings.get("sync_batch_norm")) and shares_batches(settings)
    classifier = build_classifier(settings, description, exchange=exchange)
    check_classifier(classifier, description)  # first: it initializes lazy layers
    if uses_channels_last(settings, classifier):
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    example = example_images(description)
    layers = find_layers(classifier, example, settings["layers"], root=classifier.net)
    kind, training = RobustClassifier, {}
    if "objective" in settings:
        training = _training_parts(settings, classifier, description) | {"augment": augment, "mix": mix}
        kind = classifier_type(training["objective"], training.get("train_attack"))
        training["metrics"] = build_metrics(settings, description)
    own = dict(settings.get("module") or {})
    if own.pop("_target_", None):
        needed, kind = kind, locate(settings["module"], "module")  # type: ignore[assignment]
        if not (isinstance(kind, type) and issubclass(kind, needed)):
            name = "nsr.RobustClassifier"
            if needed is not RobustClassifier:
                name = f"{needed.__module__}.{needed.__name__}, which this objective needs"
            raise InputError(f"module._target_ is not a subclass of {name}; it must be one")
    suite = build_suite(settings, classifier, description)
    # nsr's own class needs no trial, and names what is wrong itself
    with trial("module", kind.__name__) if settings.get("module") else nullcontext():
        module = kind(
            classifier,
            layers=layers,
            root=classifier.net,
            classes=description.classes,
            suite=suite,
            seed=settings["seed"],
            **training,
            **own,
        )
    if "objective" in settings:
        try_training(module, settings, example)
        choose_folding(settings, module, example)
    choose_search(settings, module, example)
    return module


def _training_parts(settings: Settings, classifier: Classifier, description: DataDescription) -> dict[str, Any]:
    optimizer, parts = dict(settings["optimizer"]), {"objective": make_callable(settings["objective"], "objective")}
    # unless it is an argument of the user's own class
    groups = None if "groups" in named_arguments(locate(optimizer, "optimizer"))[0] else optimizer.pop("groups", None)
    parts["optimizer"] = make_callable(optimizer, "optimizer")
    if groups is not None:
        parts["optimizer"] = partial(grouped, groups=groups, optimizer=parts["optimizer"])
    for name in ("validation_attack", "train_attack"):
        if (settings.get(name) or {}).get("_target_"):
            parts[name] = build_attack(settings, settings[name], name, classifier, description)
    stabilizer, scheduler = settings.get("stabilizer") or {}, dict(settings.get("scheduler") or {})
    # stepped every step where it asks for the run's steps, else every epoch
    parts["scheduler_interval"] = "step" if "total_steps" in scheduler else "epoch"
    scheduler.pop("total_steps", None)
    parts["stabilizer"] = make_callable(stabilizer, "stabilizer") if stabilizer.get("_target_") else None
    parts["scheduler"] = make_callable(scheduler, "scheduler") if scheduler.get("_target_") else None
    return parts


def max_epochs(settings: Settings) -> int:
    """Return the epochs of the Trainer: free training replays each batch, so takes fewer (Shafahi et al. 2019)."""
    return -(-settings["trainer"]["max_epochs"] // int((settings.get("objective") or {}).get("replays", 1)))


def build_callbacks(settings: Settings, module: RobustClassifier) -> dict[str, pl.Callback]:
    """Make the callbacks of the command; call the `check(module, epochs)` of those that have one."""
    made = {}
    for name, place, own in chosen(settings, "callbacks"):
        callback = make_one(own, place, pl.Callback, "a pytorch_lightning Callback")
        if isinstance(callback, (pl.callbacks.BatchSizeFinder, pl.callbacks.LearningRateFinder)):
            why = "it tries values on the run itself; a sweep compares them, such as -m optimizer.lr=0.001,0.01"
            raise InputError(f"{place} is a {type(callback).__name__}; {why}")
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if mode == "min" and str(monitor).endswith("accuracy"):
            raise InputError(f"{place}.mode is 'min' for {monitor}, of which more is better; give {place}.mode=max")
        if hasattr(callback, "check"):
            with trial(place, "the callback"):
                callback.check(module, max_epochs(settings))
        made[name] = callback
    averaging = [name for name, each in made.items() if isinstance(each, (WeightAveraging, WeightAverages))]
    if len(averaging) > 1:
        fix = "keep one; averages has settings for all: callbacks.averages.decays, callbacks.averages.swa_start"
        raise InputError(f"callbacks has {' and '.join(averaging)}, which would each replace the weights; {fix}")
    if all(type(callback).__module__.startswith(("nsr.", "pytorch_lightning.")) for callback in made.values()):
        _check_monitored(settings, module, made)
    return made


def _check_monitored(settings: Settings, module: RobustClassifier, callbacks: Mapping[str, pl.Callback]) -> None:
    """Raise InputError where a callback monitors what the run does not log; Lightning notices after an epoch."""
    if "objective" not in settings or settings.get("module") or settings.get("metrics"):
        return  # or the user's own classes log further values
    averages = [each.names for each in callbacks.values() if isinstance(each, WeightAverages)]
    known = [*module.validation_metrics.names, *module.train_metrics.names, *chain(*averages)]
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        if monitor is not None or isinstance(callback, pl.callbacks.EarlyStopping):
            check_choice(f"callbacks.{name}.monitor", monitor, known)


def check_loggers(settings: Settings) -> None:
    """Raise InputError where a class is no logger, without making one: most open a file or a connection."""
    for _, place, own in chosen(settings, "logger"):
        kind = locate(own, place)
        if isinstance(kind, type) and not issubclass(kind, Logger):
            raise InputError(f"{place} is a {kind.__name__}; it must be a pytorch_lightning Logger")
        check_arguments(own, place)


def build_loggers(settings: Settings, directory: Path) -> list[Logger]:
    """Make the loggers of the command; one whose signature names `save_dir` gets the run directory."""
    made: list[Logger] = []
    try:
        for _, place, own in chosen(settings, "logger"):
            logger = make_one(own, place, Logger, "a pytorch_lightning Logger", save_dir=str(directory))
            if starts(logger):
                made.append(fault_tolerant(logger))
    except InputError:
        loggers.finish(made)
        raise
    return made


def build_trainer(
    settings: Settings, directory: Path, callbacks: Sequence[pl.Callback], *, logger: Any = False, plugins: Any = ()
) -> pl.Trainer:
    """Make Lightning's Trainer for a run directory; signals are left to nsr.run.signals."""
    start_processes_with(process_command, partial(observe, directory=directory))
    if not is_started_from_outside():  # Lightning takes any job of SLURM for several tasks, a single one too
        plugins = [*plugins, LightningEnvironment()]
    further = {"max_epochs": max_epochs(settings)} if "objective" in settings else {}
    for name, kind in (("enable_checkpointing", pl.callbacks.Checkpoint), ("enable_progress_bar", ProgressBar)):
        further[name] = any(isinstance(callback, kind) for callback in callbacks)
    # bound first: Hydra would copy the objects among the arguments into its own lists
    make = instantiate({**settings["trainer"], "_partial_": True}, "trainer")
    try:
        trainer = make(
            default_root_dir=str(directory), logger=logger, callbacks=list(callbacks), plugins=list(plugins), **further
        )
    except Exception as error:  # whatever a flag of the Trainer leads to
        raise InputError(in_place("trainer", error, settings["trainer"])) from error
    if not isinstance(trainer, pl.Trainer):
        target = settings["trainer"]["_target_"]
        raise InputError(f"trainer._target_ is {target}; it must be a pytorch_lightning.Trainer")
    leave_signals_alone(trainer)
    return trainer


def build_analyses(settings: Settings, module: RobustClassifier) -> dict[str, Any]:
    """Make the analyses of an evaluation, checked against the hooked layers."""
    if settings.get("analysis") and processes(settings) > 1:
        fix = "give trainer.devices=1, the attacks that are finished come from the cache"
        raise InputError(f"trainer.devices is {settings['trainer']['devices']}; analyses work on one: {fix}")
    made = {}
    for name, place, own in chosen(settings, "analysis"):
        made[name] = analysis = instantiate(own, place)
        if not hasattr(analysis, "run"):
            raise InputError(f"{place} is a {type(analysis).__name__}; it must have a method run(context)")
        if hasattr(analysis, "check"):
            analysis.check(module.extractor.layers, (settings.get("evaluation") or {}).get("n_examples"))
    return made


def build_corruptions(settings: Settings, data: ImageData) -> Corruptions | None:
    """Make the corrupted images of an evaluation that has them among its attacks."""
    if settings.get("corruptions") is None:
        return None
    description, evaluation = data.describe(), settings["evaluation"]
    return Corruptions(
        **settings["corruptions"],
        classes=tuple(data.class_names) or description.class_names,  # the data set's own, in its own order
        channels=description.channels,
        image_size=description.image_size,
        n_examples=evaluation["n_examples"],
        subset=evaluation["subset"],
        split_seed=data.split_seed,
    )
