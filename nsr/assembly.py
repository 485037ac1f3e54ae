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

from nsr import __version__, dashboards
from nsr.boundary import check_logits
from nsr.callbacks import ProgressLine, RunRecords, SensitivityLogger, TrainingAlarms
from nsr.checkpoints import check_source, load_network, read_settings, take_over_checkpoint
from nsr.command_line import plain, plain_value, run_directory
from nsr.data import ImageData
from nsr.errors import InputError, RunStopped
from nsr.evaluation import report
from nsr.evaluation.alarms import alarms, check_measured, stop_where_raised
from nsr.evaluation.chunks import Chunks, fingerprint, images_fingerprint, network_fingerprint
from nsr.evaluation.probes import PROBES
from nsr.evaluation.suite import Suite
from nsr.files import write_json
from nsr.free import FreeClassifier
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.models.weights import load_state_dict_file, read_checkpoint
from nsr.modes import network_mode
from nsr.objectives import Free
from nsr.training import RobustClassifier

log = logging.getLogger(__name__)


def train(config: DictConfig) -> float:
    """Trains, tests best and last checkpoint, writes and prints the results; returns validated robust accuracy."""
    _log_to_hydra()
    directory = run_directory()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    module = build_module(config, data)
    settings = plain(config)
    _divide_epochs(config)
    if "LOCAL_RANK" not in os.environ or os.environ["LOCAL_RANK"] == "0":
        OmegaConf.save(OmegaConf.create(settings), directory / "config.yaml")
    logger = instantiate(config.logger, save_dir=str(directory))
    try:
        logger.log_hyperparams(settings)
        signs = TrainingAlarms(directory, stop_on=config.alarms.stop_on)
        callbacks = [
            *build_callbacks(config),
            *(RunRecords(directory, settings), SensitivityLogger(), ProgressLine(), signs),
            *_checkpoints(directory),
        ]
        trainer = instantiate(config.trainer, logger=logger, callbacks=callbacks, default_root_dir=str(directory))
        trainer.fit(module, datamodule=data)
        results = test_best_and_last(trainer, module, data, directory / "checkpoints")
        if trainer.is_global_zero:
            results = report.validated(directory / "metrics.csv", results["best_epoch"]) | results
            write_json(directory / "metrics.json", results)
            report.write_outcomes(directory / "images.csv", module.suite.outcomes)  # of the best checkpoint
            report.show_run(directory, results, _shown_attacks(config), signs.judged())
    finally:
        dashboards.finish(logger)
    return float(results.get("validation/robust_accuracy", 0.0))  # only the first process has it


def _divide_epochs(config: DictConfig) -> None:
    """Free training replays each batch, and so takes that much fewer epochs (Shafahi et al. 2019)."""
    replays = config.objective.get("replays", 1)
    if replays > 1:
        epochs = config.trainer.max_epochs
        config.trainer.max_epochs = -(-epochs // replays)
        log.info("objective=free: %d epochs of %d replays for %d", config.trainer.max_epochs, replays, epochs)


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
        results |= report.test(trainer, module, data, name="test_last")
    load_network(module.net, best, checkpoints / "best.ckpt")
    tested = report.test(trainer, module, data, name="test")
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
    data.setup("test")
    which = f"all {len(data.test_set)} test images"
    if config.limit is not None:
        checksum = data.limit_test(config.limit, config.limit_order)
        which = f"{len(data.test_set)} test images, {config.limit_order}, checksum {checksum}"
    module.suite.chunks = _chunks(config, module, data, directory)
    figures = report.test(trainer, module, data, name="test")
    if trainer.is_global_zero:
        OmegaConf.save(OmegaConf.create(plain(config)), directory / "config.yaml")
        report.write_evaluation(directory, figures, module.sensitivities, module.suite.outcomes)
        shown = _shown_attacks(config)
        report.show_evaluation(directory, figures, module.sensitivities, shown, which=which, top=config.top)
        if config.alarms.judge:
            judged = alarms({**module.suite.outcomes, **module.suite.probed}, classes=config.data.classes)
            write_json(directory / "alarms.json", [alarm._asdict() for alarm in judged])
            report.show_alarms(judged)
            stop_where_raised(judged, config.alarms.stop_on)


def _chunks(config: DictConfig, module: RobustClassifier, data: ImageData, directory: Path) -> Chunks:
    """Where the finished parts of this evaluation are kept: the same command finds them again."""
    identity = {
        "network": network_fingerprint(module.net),
        "images": images_fingerprint(data.test_set),
        "images of a chunk": data.evaluation_batch_size,
        "seed": config.seed,
        "nsr": __version__,
        "layers": plain_value(config.layers),
    }
    settings = plain(config)
    attacks = {
        "clean": None,
        **settings["suite"],
        "sensitivity": settings["sensitivity_attack"],
        **dict.fromkeys(PROBES),
    }
    folder = directory.parent / "chunks" / fingerprint(identity)[:12] if config.chunks is None else Path(config.chunks)
    return Chunks(folder, identity, attacks)


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
    kind, training = RobustClassifier, {}
    if "objective" in config:
        training = {name: instantiate(config[name]) for name in ("objective", "validation_attack", "optimizer")}
        training |= {"attack": build_attack(config, "attack", example), "stabilizer": _optional(config.stabilizer)}
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
    attacks = {name: build_attack(config, f"suite.{name}", example) for name in names}
    sensitivity_attack = instantiate(config.sensitivity_attack) if "sensitivity_attack" in config else None
    probes = PROBES if OmegaConf.select(config, "alarms.judge") else None
    if probes is not None:
        check_measured(config.alarms.stop_on, ["clean", *attacks, *probes])
    return Suite(attacks, sensitivity_attack=sensitivity_attack, probes=probes, seed=config.seed)


def build_attack(config: DictConfig, place: str, example: torch.Tensor) -> Any:
    """The attack at that place of the configuration; other networks that it needs are built from their checkpoints."""
    settings = OmegaConf.to_container(OmegaConf.select(config, place), resolve=True)
    assert isinstance(settings, dict)
    if "checkpoints" not in settings:
        return instantiate(settings)
    if settings["_target_"].endswith("TransferAttack"):  # said once more for the table; the attack within has its own
        settings = {key: value for key, value in settings.items() if key not in ("norm", "epsilon")}
    networks = []
    for path in settings.pop("checkpoints"):
        saved, source = read_settings(path)
        check_source("model", source.model, "nsr.models.")
        # its own normalisation, none of its weight files
        own = OmegaConf.create(
            {"model": {**source.model, "weights": None}, "data": source.data, "channels_last": False}
        )
        network = build_classifier(own)
        load_network(network, saved, path)
        try:
            _check_width(network, example, config.data.classes)
        except (InputError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{place}.checkpoints: {str(path)!r} cannot be used on these data: {reason}") from error
        networks.append(network)
    return instantiate(settings, networks=networks)


def build_scheduler(config: DictConfig) -> dict[str, Any]:
    """The learning rate's schedule, stepped every step where its settings ask for the run's steps, else every epoch."""
    settings = OmegaConf.to_container(config.scheduler, resolve=True)
    assert isinstance(settings, dict)
    interval = "step" if "total_steps" in settings else "epoch"
    settings.pop("total_steps", None)
    return {"scheduler": _optional(settings), "scheduler_interval": interval}


def build_callbacks(config: DictConfig) -> list[pl.Callback]:
    """Those of the command."""
    return [instantiate(settings) for settings in (config.get("callbacks") or {}).values()]


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
            norm = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}[attack.norm]
            shown[str(name)] = f"{_kind(attack)}, {norm} {attack.epsilon}"
    return {**shown, "worst_case": "worst case of all"}


def _kind(attack: DictConfig) -> str:
    kind = attack._target_.rpartition(".")[2]
    if kind == "AutoAttack":
        return f"AutoAttack, {attack.version}" if attack.version != "custom" else ", ".join(attack.attacks)
    if kind == "TransferAttack":
        return f"PGD-{attack.attack.steps} from {len(attack.checkpoints)} surrogates"
    if kind == "UniformDraws":
        return f"{attack.draws} uniform draws"
    if kind == "Momentum":
        return f"MI-FGSM-{attack.steps}"
    if kind == "AdaptiveAttack":
        return f"{'adaptive' if attack.cross_entropy else 'feature'} PGD-{attack.steps}"
    if attack.steps == 1 and not attack.random_start:
        return "FGSM"
    loss = {"cross_entropy": "", "margin": " on the margin", "kl": " on KL"}[attack.loss]
    restarts = f", {attack.restarts} restarts" if attack.restarts > 1 else ""
    return f"PGD-{attack.steps}{loss}{restarts}"


def _optional(settings: Any) -> Any:
    """The object, None where the choice is `none`."""
    return instantiate(settings) if settings.get("_target_") else None


def _log_to_hydra() -> None:
    """Lightning's own log handler off: hydra's write the run's log, and the screen stays readable."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
