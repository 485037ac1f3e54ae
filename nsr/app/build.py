"""From settings to objects: data, networks, attacks, the module; the one file that asks hydra for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from nsr.app.checkpoints import load_network, read_part, read_settings
from nsr.app.composition import plain_value
from nsr.data import ImageData
from nsr.data.corruptions import Corruptions
from nsr.errors import InputError, RunStopped, check_logits
from nsr.evaluation.masking_checks import check_measured
from nsr.evaluation.probes import PROBES
from nsr.evaluation.suite import Suite
from nsr.interventions import Interventions
from nsr.interventions.command import check_interventions
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.models.weights import load_state_dict_file
from nsr.modes import network_mode
from nsr.objectives import Free
from nsr.run.processes import is_started_from_outside, start_processes_of_this_job
from nsr.training.free import FreeClassifier
from nsr.training.module import RobustClassifier

log = logging.getLogger(__name__)


def instantiate(settings: Any, **further: Any) -> Any:
    """Hydra's instantiate, lists and dicts plain, what went wrong in one line."""
    try:
        return utils.instantiate(settings, **further, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (InputError, RunStopped)):
            raise error.__cause__ from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"{settings.get('_target_')} cannot be made: {reason}") from error


def build_data(config: DictConfig) -> ImageData:
    """The data module; what it finds out about its images is written into config.data, where the model looks it up."""
    splits = needed_splits(config)
    settings = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(settings, dict)
    settings.pop("epsilon", None)  # the customary radii of the data set; the attacks look them up
    data = instantiate(settings)
    data.prepare()
    data.check_splits(splits)
    description = data.describe()
    with open_dict(config):
        for name in ("channels", "image_size", "classes", "mean", "std"):
            config.data[name] = description[name]
    return data


def build_corruptions(config: DictConfig, data: ImageData) -> Corruptions | None:
    """The corrupted images of an evaluation that has them among its attacks."""
    if config.get("corruptions") is None:
        return None
    return Corruptions(
        **plain_value(config.corruptions),
        classes=data.describe()["class_names"],
        channels=config.data.channels,
        image_size=config.data.image_size,
        limit=config.limit,
        limit_order=config.limit_order,
        split_seed=data.split_seed,
    )


def needed_splits(config: DictConfig) -> tuple[str, ...]:
    """The parts of the data set that a run or an evaluation takes up."""
    return ("train", "test") if "objective" in config else ("test",)


def build_classifier(config: DictConfig) -> Classifier:
    """The network with its normalisation in front, and somebody's weights in it where model.weights names a file."""
    settings = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(settings, dict)
    normalization, weights = settings.pop("normalization", "data"), settings.pop("weights", None)
    net = instantiate(settings)
    if weights is not None:
        load_state_dict_file(net, weights)
    if config.get("sync_batch_norm") and shares_batches(config):
        # here and not by trainer.sync_batchnorm, which makes new layers after the taps were hooked on the old ones
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    classifier = Classifier(net, *((config.data.mean, config.data.std) if normalization == "data" else ()))
    return classifier.to(memory_format=torch.channels_last) if config.channels_last else classifier  # type: ignore[call-overload]


def build_module(config: DictConfig, data: ImageData, *, saved: Mapping[str, Any] | None = None) -> RobustClassifier:
    """The LightningModule; of an evaluation where the configuration has no objective.

    Args:
        saved: a checkpoint whose network is loaded.
    """
    classifier = build_classifier(config)
    example = torch.zeros(2, config.data.channels, config.data.image_size, config.data.image_size)
    _check_logits(classifier, example, config.data.classes)
    layers = find_layers(classifier, example, plain_value(config.layers), within=classifier.net)
    kind, training = RobustClassifier, {}
    if "objective" in config:
        training = {name: instantiate(config[name]) for name in ("objective", "validation_attack", "optimizer")}
        training |= {
            "attack": build_attack(config, config.attack, "attack", example),
            "stabilizer": _optional(config.stabilizer),
        }
        training |= build_scheduler(config) | {"augment": data.augment}
        kind = FreeClassifier if isinstance(training["objective"], Free) else RobustClassifier
    module = kind(
        classifier,
        layers=layers,
        within=classifier.net,
        classes=config.data.classes,
        suite=build_suite(config, example),
        seed=config.seed,
        **training,
    )
    if module.stabilizer is not None:
        with torch.no_grad(), network_mode(classifier, "eval"):
            module.stabilizer.check_features(module.training_taps(example)[1])
    if saved is not None:
        load_network(module.net, saved, config.checkpoint)
    return module


def build_suite(config: DictConfig, example: torch.Tensor) -> Suite:
    """The attacks of the test; sensitivity is measured in an evaluation alone."""
    names = [str(name) for name, attack in config.suite.items() if attack is not None]
    attacks = {name: build_attack(config, config.suite[name], f"suite.{name}", example) for name in names}
    sensitivity_attack = instantiate(config.sensitivity_attack) if "sensitivity_attack" in config else None
    probes = PROBES if OmegaConf.select(config, "alarms.judge") else None
    if probes is not None:
        check_measured(config.alarms.stop_on, ["clean", *attacks, *probes])
    return Suite(attacks, sensitivity_attack=sensitivity_attack, probes=probes, seed=config.seed)


def build_attack(config: DictConfig, attack: DictConfig, place: str, example: torch.Tensor) -> Any:
    """The attack of the configuration's `place`; other networks that it needs are built from their checkpoints."""
    settings = OmegaConf.to_container(attack, resolve=True)
    assert isinstance(settings, dict)
    if "checkpoints" not in settings:
        return instantiate(settings)
    if settings["_target_"].endswith("TransferAttack"):  # said once more for the table; the attack within has its own
        settings = {key: value for key, value in settings.items() if key not in ("norm", "epsilon")}
    networks = []
    for path in settings.pop("checkpoints"):
        saved, source = read_settings(path)
        # its own normalisation, none of its weight files
        model = read_part("model", source, path, trusted=config.trusted) | {"weights": None}
        description = source.get("data") or {}
        own = {"model": model, "data": {name: description.get(name) for name in ("mean", "std")}}
        network = build_classifier(OmegaConf.create({**own, "channels_last": False}))
        load_network(network, saved, path)
        try:
            _check_logits(network, example, config.data.classes)
        except InputError as error:
            raise InputError(f"{place}.checkpoints: {str(path)!r} cannot be used on these data: {error}") from error
        networks.append(network)
    return instantiate(settings, networks=networks)


def build_scheduler(config: DictConfig) -> dict[str, Any]:
    """The learning rate's schedule, stepped every step where its settings ask for the run's steps, else every epoch."""
    settings = OmegaConf.to_container(config.scheduler, resolve=True)
    assert isinstance(settings, dict)
    interval = "step" if "total_steps" in settings else "epoch"
    settings.pop("total_steps", None)
    return {"scheduler": _optional(settings), "scheduler_interval": interval}


def build_trainer(config: DictConfig, directory: Path, **further: Any) -> pl.Trainer:
    """Lightning's Trainer; further processes of it get the job at hand, and signals are left to nsr.run.signals."""
    start_processes_of_this_job()
    plugins = list(further.pop("plugins", ()))
    if not is_started_from_outside():  # Lightning takes any job of SLURM for several tasks, a single one too
        plugins.append(LightningEnvironment())
    trainer = instantiate(config.trainer, default_root_dir=str(directory), plugins=plugins, **further)
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def build_callbacks(config: DictConfig) -> list[pl.Callback]:
    """Those of the command."""
    return [instantiate(settings) for settings in (config.get("callbacks") or {}).values()]


def _check_logits(classifier: Classifier, example: torch.Tensor, classes: int) -> None:
    """InputError where the network cannot take images of this size, or has other classes."""
    try:
        with torch.no_grad(), network_mode(classifier, "eval"):
            logits = classifier(example)
    except (RuntimeError, AssertionError) as error:
        kind, size = type(classifier.net).__name__, " x ".join(map(str, example.shape[1:]))
        raise InputError(
            f"{kind} takes no images of {size}: {' '.join(str(error).split())}; take another model, or a folder of "
            "images with another data.image_size"
        ) from error
    check_logits(logits, torch.zeros(len(example), dtype=torch.int64), classes=classes)


def build_analyses(
    config: DictConfig, module: RobustClassifier, *, images: int | None = None
) -> dict[str, Interventions]:
    """{name: analysis} of an evaluation, checked against the tapped layers and the number of test images, if known."""
    chosen = config.get("analysis") or {}
    if chosen and several_devices(config):
        raise InputError(
            f"trainer.devices is {config.trainer.devices}; analyses work on one: give trainer.devices=1, the attacks "
            "that are finished are not measured again"
        )
    analyses = {str(name): instantiate(settings) for name, settings in chosen.items()}
    for analysis in analyses.values():
        check_interventions(analysis, module, images)
    return analyses


def several_devices(config: DictConfig) -> bool:
    """Whether a run or an evaluation is dealt out to several processes."""
    return processes(config) > 1


def processes(config: DictConfig) -> int:
    """How many processes a run has, on all machines."""
    devices, accelerator = plain_value(config.trainer.devices), config.trainer.accelerator
    if devices == "auto":
        devices = max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu") else 1
    count = len(devices) if isinstance(devices, list) else devices
    return int(count) * int(config.trainer.get("num_nodes", 1))


def shares_batches(config: DictConfig) -> bool:
    """Whether several processes, each with a GPU, train on a batch together.

    Errors:
        InputError: they have none, and sync_batch_norm asks for it.
    """
    if not several_devices(config):
        return False
    if config.sync_batch_norm and not on_gpus(config):
        raise InputError("sync_batch_norm is true; torch's SyncBatchNorm needs GPUs: leave it out on the CPU")
    return True


def on_gpus(config: DictConfig) -> bool:
    """Whether the Trainer takes GPUs of CUDA."""
    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def _optional(settings: Any) -> Any:
    """The object, None where the choice is `none`."""
    return instantiate(settings) if settings.get("_target_") else None
