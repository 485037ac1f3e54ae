"""From a configuration to a run or an evaluation, and its results."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from nsr import __version__, loggers
from nsr.app.build import (
    build_analyses,
    build_callbacks,
    build_corruptions,
    build_data,
    build_module,
    build_trainer,
    instantiate,
)
from nsr.app.checkpoints import load_network, take_over_checkpoint
from nsr.app.command_line import run_directory
from nsr.app.composition import plain, plain_value
from nsr.app.configuration import unusual_epsilon
from nsr.app.preflight import check_machine
from nsr.callbacks import ProgressLine, RunRecords, SensitivityLogger, TrainingAlarms
from nsr.callbacks.checkpoints import PLACE, Checkpoints, Interruption, PlainCheckpointIO
from nsr.data import ImageData
from nsr.errors import InputError
from nsr.evaluation import report
from nsr.evaluation.cache import Chunks, fingerprint, images_fingerprint, network_fingerprint
from nsr.evaluation.corrupted import corruption_figures, measure_corruptions
from nsr.evaluation.curve import expand_curve, write_curve
from nsr.evaluation.masking_checks import alarms, stop_where_raised
from nsr.evaluation.naming import shown_attacks
from nsr.evaluation.probes import PROBES
from nsr.interventions.command import run_interventions
from nsr.models.weights import read_checkpoint
from nsr.run.directory import read_json
from nsr.run.files import validated, write_json
from nsr.run.processes import global_rank, leave_processes, see_devices_again
from nsr.run.resumption import OWN, Earlier, begin_anew, earlier_run, readable_checkpoint
from nsr.run.signals import Interrupted, Signals, interruptible
from nsr.run.status import leaves_status
from nsr.training.compilation import Compilation
from nsr.training.module import RobustClassifier

log = logging.getLogger(__name__)


@leaves_status("train.py")
def train(config: DictConfig) -> float | tuple[float, ...]:
    """Trains, tests best and last checkpoint, writes and prints the results; returns what config.optimize names.

    A run that was interrupted goes on where config.resume says so; one that is finished only tells its result.
    """
    _log_to_hydra()
    directory = run_directory()
    see_devices_again()
    check_machine(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    expand_curve(config)
    _tell_epsilon(config)
    module = build_module(config, data)
    settings = {name: value for name, value in plain(config).items() if name not in OWN}
    _divide_epochs(config)
    earlier = _earlier(config, directory, settings)
    if earlier.results is not None:
        print(f"finished already: {directory}", flush=True)
        return _told_to_a_sweeper(config, earlier.results)
    if global_rank() == 0:
        OmegaConf.save(OmegaConf.create(settings), directory / "config.yaml")
    if earlier.checkpoint is not None:
        _check_epochs(config, earlier.checkpoint)
    with interruptible() as signals:
        results = _train(config, directory, data, module, settings, earlier.checkpoint, signals)
    return _told_to_a_sweeper(config, results)


def _told_to_a_sweeper(config: DictConfig, results: Mapping[str, Any]) -> float | tuple[float, ...]:
    """Validated accuracies of the best epoch, which the first process alone has."""
    values = tuple(float(results.get(f"validation/{name}", 0.0)) for name in config.optimize)
    return values if len(values) > 1 else values[0]


def _train(
    config: DictConfig,
    directory: Path,
    data: ImageData,
    module: RobustClassifier,
    settings: dict[str, Any],
    checkpoint: Path | None,
    signals: Signals,
) -> dict[str, float]:
    results: dict[str, float] = {}
    trainer, orderly = None, False
    logger = instantiate(config.logger, save_dir=str(directory))
    try:
        loggers.log_settings(logger, settings)
        signs = TrainingAlarms(directory, stop_on=config.alarms.stop_on)
        checkpoints = Checkpoints(directory / "checkpoints")
        callbacks = [
            checkpoints,
            *([Compilation()] if config.compile else []),
            *build_callbacks(config),
            *(RunRecords(directory, settings), SensitivityLogger(directory=directory), ProgressLine(), signs),
            Interruption(signals, checkpoints),
        ]
        trainer = build_trainer(config, directory, logger=logger, callbacks=callbacks, plugins=[PlainCheckpointIO()])
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        results = test_best_and_last(trainer, module, data, directory / "checkpoints")
        if trainer.is_global_zero:
            results = validated(directory / "metrics.csv", results["best_epoch"]) | results
            loggers.log_results(logger, results, step=trainer.global_step)
            report.write_outcomes(directory / "images.csv", module.suite.outcomes)  # of the best checkpoint
            write_curve(directory, results, config)
            write_json(directory / "metrics.json", results)  # last: with it the run is finished
            report.show_run(directory, results, shown_attacks(config), signs.judged())
        orderly = True
    except Interrupted:
        orderly = signals.received != 0  # every process ends by itself
        raise
    finally:
        loggers.finish(logger)
        leave_processes(trainer, orderly=orderly)
    return results


def _earlier(config: DictConfig, directory: Path, settings: dict[str, Any]) -> Earlier:
    """What there is to go on from. The first process judges it; the others may find what it has just written."""
    if global_rank() != 0:
        return Earlier(readable_checkpoint(directory) if config.resume else None, read_json(directory / "metrics.json"))
    earlier = earlier_run(directory, settings, resume=config.resume, changed=config.resume_changed)
    if earlier is None:
        return Earlier(None, None)
    if earlier.checkpoint is not None:
        print(f"going on with {directory} from {earlier.checkpoint.name}", flush=True)
    elif earlier.results is None:
        print(f"beginning {directory} anew: it has no checkpoint yet", flush=True)
        begin_anew(directory)
    return earlier


def _check_epochs(config: DictConfig, checkpoint: Path) -> None:
    """A run is not resumed for fewer epochs than it has."""
    epochs = read_checkpoint(checkpoint)[PLACE]["epochs"]
    if epochs > config.trainer.max_epochs:
        raise InputError(
            f"trainer.max_epochs is {config.trainer.max_epochs}, but {checkpoint} is already of epoch {epochs}; give "
            "at least as many"
        )


def _divide_epochs(config: DictConfig) -> None:
    """Free training replays each batch, and so takes that much fewer epochs (Shafahi et al. 2019)."""
    replays = config.objective.get("replays", 1)
    if replays > 1:
        epochs = config.trainer.max_epochs
        config.trainer.max_epochs = -(-epochs // replays)
        log.info("objective=free: %d epochs of %d replays for %d", config.trainer.max_epochs, replays, epochs)


def test_best_and_last(
    trainer: pl.Trainer, module: RobustClassifier, data: ImageData, checkpoints: Path
) -> dict[str, float]:
    """{test/..., test_last/..., best_epoch, last_epoch}; one measurement where best is last."""
    best, last = (read_checkpoint(checkpoints / name) for name in ("best.ckpt", "last.ckpt"))
    results: dict[str, float] = {"best_epoch": best[PLACE]["epochs"], "last_epoch": last[PLACE]["epochs"]}
    # the best one last, so that it is what the module is left with
    if results["last_epoch"] != results["best_epoch"]:
        load_network(module.net, last, checkpoints / "last.ckpt")
        results |= report.test(trainer, module, data, name="test_last")
    load_network(module.net, best, checkpoints / "best.ckpt")
    tested = report.test(trainer, module, data, name="test")
    if results["last_epoch"] == results["best_epoch"]:
        results |= {name.replace("test/", "test_last/"): value for name, value in tested.items()}
    return results | tested


@leaves_status("evaluate.py")
def evaluate(config: DictConfig) -> None:
    """Tests a checkpoint or somebody's weights; table, JSON and CSV."""
    _log_to_hydra()
    with interruptible():
        _evaluate(config, run_directory())


def _evaluate(config: DictConfig, directory: Path) -> None:
    saved = take_over_checkpoint(config)
    data = build_data(config)
    expand_curve(config)
    _tell_epsilon(config)
    module = build_module(config, data, saved=saved)
    trainer, orderly = build_trainer(config, directory, logger=False, callbacks=[ProgressLine()]), False
    try:
        _measure(config, directory, data, module, trainer)
        orderly = True
    finally:
        leave_processes(trainer, orderly=orderly)


def _measure(
    config: DictConfig, directory: Path, data: ImageData, module: RobustClassifier, trainer: pl.Trainer
) -> None:
    data.setup("test")
    which = f"all {len(data.test_set)} test images"
    if config.limit is not None:
        checksum = data.limit_test(config.limit, config.limit_order)
        which = f"{len(data.test_set)} test images, {config.limit_order}, checksum {checksum}"
    analyses = build_analyses(config, module, images=len(data.test_set))
    module.suite.chunks = _chunks(config, module, data, directory)
    figures = report.test(trainer, module, data, name="test")
    corrupted = []
    if (corruptions := build_corruptions(config, data)) is not None:
        corrupted = measure_corruptions(
            trainer, module, data, corruptions, lambda name: _chunks(config, module, data, directory, part=name)
        )
    if not trainer.is_global_zero:
        return
    OmegaConf.save(OmegaConf.create(plain(config)), directory / "config.yaml")
    figures |= corruption_figures(corrupted)
    report.write_evaluation(directory, figures, module.sensitivities, module.suite.outcomes, corrupted)
    write_curve(directory, figures, config)
    shown = shown_attacks(config)
    report.show_evaluation(directory, figures, module.sensitivities, shown, which=which, top=config.top)
    report.show_corruptions(corrupted)
    judged = []
    if config.alarms.judge:
        judged = alarms({**module.suite.outcomes, **module.suite.probed}, classes=config.data.classes)
        write_json(directory / "alarms.json", [alarm._asdict() for alarm in judged])
        report.show_alarms(judged)
    for analysis in analyses.values():
        device = trainer.strategy.root_device
        run_interventions(analysis, module, data, directory, settings=plain(config), device=device)
    stop_where_raised(judged, config.alarms.stop_on)


def _tell_epsilon(config: DictConfig) -> None:
    if (warning := unusual_epsilon(config.norm, config.epsilon, config.data.get("epsilon") or {})) is not None:
        log.warning(warning)


def _chunks(
    config: DictConfig, module: RobustClassifier, data: ImageData, directory: Path, *, part: str = ""
) -> Chunks:
    """Where the finished parts of this evaluation, or of a corruption, are kept: the same command finds them again."""
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
    folder = directory.parent / "chunks" / fingerprint(identity)[:12]
    if config.chunks is not None:
        folder = Path(config.chunks) / part
    return Chunks(folder, identity, attacks)


def _log_to_hydra() -> None:
    """Lightning's own log handler off: hydra's write the run's log, and the screen stays readable."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
