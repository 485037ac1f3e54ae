"""From a configuration to a run: the one file that turns settings into objects."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from nsr import dashboards, evaluation
from nsr.boundary import check_logits
from nsr.callbacks import ProgressLine, RunRecords, SensitivityLogger
from nsr.callbacks.records import write_json
from nsr.checkpoints import load_network, take_over_checkpoint
from nsr.command_line import plain, plain_value, run_directory
from nsr.data import ImageData
from nsr.errors import InputError, RunStopped
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.models.weights import load_state_dict_file, read_checkpoint
from nsr.modes import network_mode
from nsr.training import RobustClassifier


def train(config: DictConfig) -> float:
    """Trains, tests best and last checkpoint, writes and prints the results; returns validated robust accuracy."""
    _log_to_hydra()
    directory = run_directory()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    module = build_module(config, data)
    settings = plain(config)
    if "LOCAL_RANK" not in os.environ or os.environ["LOCAL_RANK"] == "0":
        OmegaConf.save(OmegaConf.create(settings), directory / "config.yaml")
    logger = instantiate(config.logger, save_dir=str(directory))
    try:
        logger.log_hyperparams(settings)
        callbacks = [RunRecords(directory, settings), SensitivityLogger(), ProgressLine(), *_checkpoints(directory)]
        trainer = instantiate(config.trainer, logger=logger, callbacks=callbacks, default_root_dir=str(directory))
        trainer.fit(module, datamodule=data)
        results = test_best_and_last(trainer, module, data, directory / "checkpoints")
        if trainer.is_global_zero:
            results = evaluation.validated(directory / "metrics.csv", results["best_epoch"]) | results
            write_json(directory / "metrics.json", results)
            evaluation.show_run(directory, results, _shown_attacks(config))
    finally:
        dashboards.finish(logger)
    return float(results.get("validation/robust_accuracy", 0.0))  # only the first process has it


def _checkpoints(directory: Path) -> list[ModelCheckpoint]:
    """best.ckpt by validated robust accuracy, the earlier of equals, and last.ckpt of every epoch."""
    folder = directory / "checkpoints"
    best = ModelCheckpoint(
        dirpath=folder, filename="best", monitor="validation/robust_accuracy", mode="max", enable_version_counter=False
    )
    return [best, ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False)]


def test_best_and_last(
    trainer: pl.Trainer, module: RobustClassifier, data: ImageData, checkpoints: Path
) -> dict[str, float]:
    """{test/..., test_last/..., best_epoch, last_epoch}; one measurement where best is last."""
    best, last = (read_checkpoint(checkpoints / name) for name in ("best.ckpt", "last.ckpt"))
    results: dict[str, float] = {"best_epoch": best["epoch"] + 1, "last_epoch": last["epoch"] + 1}
    # the best one last, so that it is what the module is left with
    if results["last_epoch"] != results["best_epoch"]:
        load_network(module.net, last, checkpoints / "last.ckpt")
        results |= evaluation.test(trainer, module, data, name="test_last")
    load_network(module.net, best, checkpoints / "best.ckpt")
    tested = evaluation.test(trainer, module, data, name="test")
    if results["last_epoch"] == results["best_epoch"]:
        results |= {name.replace("test/", "test_last/"): value for name, value in tested.items()}
    return results | tested


def evaluate(config: DictConfig) -> None:
    """Tests a checkpoint or somebody's weights; table, JSON and CSV."""
    _log_to_hydra()
    directory = run_directory()
    saved = take_over_checkpoint(config)
    data = build_data(config)
    module = build_module(config, data, saved=saved)
    trainer = instantiate(config.trainer, logger=False, callbacks=[ProgressLine()], default_root_dir=str(directory))
    figures = evaluation.test(trainer, module, data, name="test")
    if trainer.is_global_zero:
        OmegaConf.save(OmegaConf.create(plain(config)), directory / "config.yaml")
        evaluation.write_evaluation(directory, figures, module.sensitivities)
        evaluation.show_evaluation(directory, figures, module.sensitivities, _shown_attacks(config), top=config.top)


# ---------------------------------------------------------------- parts


def instantiate(settings: Any, **further: Any) -> Any:
    """Hydra's instantiate, lists and dicts plain, what went wrong in one line."""
    try:
        return utils.instantiate(settings, **further, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (InputError, RunStopped)):
            raise error.__cause__ from error
        raise InputError(f"{settings.get('_target_')} cannot be made: {error.__cause__ or error}") from error


def build_data(config: DictConfig) -> ImageData:
    """The data module; what it finds out about its images is written into config.data, where the model looks it up."""
    splits = ("train", "test") if "objective" in config else ("test",)
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


def build_classifier(config: DictConfig) -> Classifier:
    """The network with its normalisation in front, and somebody's weights in it where model.weights names a file."""
    settings = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(settings, dict)
    normalization, weights = settings.pop("normalization", "data"), settings.pop("weights", None)
    net = instantiate(settings)
    if weights is not None:
        load_state_dict_file(net, weights)
    classifier = Classifier(net, *((config.data.mean, config.data.std) if normalization == "data" else ()))
    return classifier.to(memory_format=torch.channels_last) if config.channels_last else classifier  # type: ignore[call-overload]


def build_module(config: DictConfig, data: ImageData, *, saved: Mapping[str, Any] | None = None) -> RobustClassifier:
    """The LightningModule; of an evaluation where the configuration has no objective.

    Args:
        saved: a checkpoint whose network is loaded.
    """
    classifier = build_classifier(config)
    example = torch.zeros(2, config.data.channels, config.data.image_size, config.data.image_size)
    layers = find_layers(classifier, example, plain_value(config.layers), within=classifier.net)
    _check_width(classifier, example, config.data.classes)
    training: dict[str, Any] = {}
    if "objective" in config:
        training = {
            name: instantiate(config[name]) for name in ("objective", "attack", "validation_attack", "optimizer")
        }
        training |= {name: _optional(config[name]) for name in ("stabilizer", "scheduler")} | {"augment": data.augment}
    module = RobustClassifier(
        classifier,
        layers=layers,
        within=classifier.net,
        classes=config.data.classes,
        test_attacks={name: instantiate(attack) for name, attack in config.suite.items() if attack is not None},
        seed=config.seed,
        **training,
    )
    if saved is not None:
        load_network(module.net, saved, config.checkpoint)
    return module


def _check_width(classifier: nn.Module, example: torch.Tensor, classes: int) -> None:
    with torch.no_grad(), network_mode(classifier, "eval"):
        check_logits(classifier(example), torch.zeros(len(example), dtype=torch.int64), classes=classes)


def _shown_attacks(config: DictConfig) -> dict[str, str]:
    """{suite entry: how it is called on the screen}."""
    shown = {}
    for name, attack in config.suite.items():
        if attack is None:
            shown[str(name)] = str(name)
        else:
            kind = "FGSM" if attack.steps == 1 and not attack.random_start else f"PGD-{attack.steps}"
            norm = {"linf": "L-infinity", "l2": "L2"}[attack.norm]
            shown[str(name)] = f"{kind}, {norm} {attack.epsilon}"
    return shown


def _optional(settings: DictConfig) -> Any:
    """The object, None where the choice is `none`."""
    return instantiate(settings) if settings.get("_target_") else None


def _log_to_hydra() -> None:
    """Lightning's own log handler off: hydra's write the run's log, and the screen stays readable."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
