"""One training run: train, test the best and the last checkpoint, write and print the results."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor, ProgressBar

from nsr import loggers
from nsr.app import pictures
from nsr.app.build import build_loggers, build_trainer
from nsr.app.job import Job, progress, run_test, started_job, where_given, write_config, write_machine
from nsr.app.network import load_network
from nsr.callbacks import RunRecords, SensitivityLogger, TrainingChecks, averages
from nsr.callbacks.checkpoints import PLACE, Checkpoints, Continuation, Interruption, PlainCheckpointIO
from nsr.data.summary import summary
from nsr.evaluation import report
from nsr.evaluation.curve import write_curve
from nsr.evaluation.image_table import write_images
from nsr.models.weights import read_checkpoint
from nsr.report import automatic
from nsr.run.directory import changes, flat, read_json, read_yaml
from nsr.run.files import SCHEMA, validated, write_json
from nsr.run.plain_text import printable
from nsr.run.processes import global_rank, leave_processes
from nsr.run.resumption import Earlier, extensions, readable_checkpoint, remove_records
from nsr.run.signals import Interrupted, Signals, interruptible
from nsr.training.compilation import Compilation

log = logging.getLogger(__name__)


def train(config: DictConfig) -> float | tuple[float, ...]:
    """Train, test and report; return the validated accuracies that config.sweep_metrics names.

    An interrupted run is resumed where config.resume says so; a finished one only has its result reported.
    """
    with started_job(config, "train") as (job, directory):
        earlier = _earlier(job, directory)
        if earlier.results is not None:
            print(f"finished already: {printable(directory)}", flush=True)
            return _for_a_sweeper(job.settings, earlier.results)
        if global_rank() == 0:
            write_config(directory, job, earlier)
        with interruptible() as signals:
            return _for_a_sweeper(job.settings, _train(job, directory, earlier, signals))


def _for_a_sweeper(settings: Mapping[str, Any], results: Mapping[str, Any]) -> float | tuple[float, ...]:
    """Validated accuracies of the best epoch, which the first process alone has."""
    values = tuple(float(results.get(f"validation/{name}", 0.0)) for name in settings["sweep_metrics"])
    return values if len(values) > 1 else values[0]


def _train(job: Job, directory: Path, earlier: Earlier, signals: Signals) -> dict[str, Any]:
    results: dict[str, Any] = {}
    trainer, orderly = None, False
    made = build_loggers(job.settings, directory)
    try:
        loggers.log_settings(made, dict(flat(job.record)))
        checks = TrainingChecks(directory, stop_on=job.settings["checks"]["stop_on"])
        checkpoints = Checkpoints(directory / "checkpoints")
        callbacks = [checkpoints, *_callbacks(job, directory), checks, Interruption(signals, checkpoints)]
        trainer = build_trainer(job.settings, directory, callbacks, logger=made, plugins=[PlainCheckpointIO()])
        trainer.precision_plugin.convert_module(job.module)  # before weight averaging copies it
        if global_rank() == 0:
            _summarize(job, trainer.world_size)
            write_machine(directory, trainer.strategy.root_device, trainer.world_size)
        warnings.filterwarnings("ignore", "A `OneCycleLR` scheduler is using 'interval': 'epoch'")  # as configured
        trainer.fit(job.module, datamodule=job.data, ckpt_path=earlier.checkpoint, weights_only=True)
        results = test_best_and_last(trainer, job, directory / "checkpoints")
        if trainer.is_global_zero:
            results = validated(directory / "metrics.csv", results["best_epoch"]) | results
            loggers.log_results(made, results, step=trainer.global_step)
            _report(job, directory, results, checks)
            device = trainer.strategy.root_device
            drawn = pictures.write_or_warn(job, directory, device, epoch=results["best_epoch"])
            pictures.log_pictures(made, drawn, job, directory, step=trainer.global_step)
            if job.settings["report"]:
                automatic.write_or_warn(directory)
        orderly = True
    except Interrupted:
        orderly = signals.received != 0  # every process ends by itself
        raise
    finally:
        loggers.finish(made)
        leave_processes(trainer, orderly=orderly)
    return results


def _summarize(job: Job, processes: int) -> None:
    """Print the splits of the data, and log them."""
    job.data.setup("fit")
    job.data.setup("test")
    lines, warnings = summary(job.data, processes=processes)
    for line in lines:
        log.info(line)
        print(printable(line), flush=True)
    for line in warnings:
        log.warning(line)


def _callbacks(job: Job, directory: Path) -> list[pl.Callback]:
    """Those between the checkpoints, which come first, and the checks."""
    return [
        Continuation(extensions(directory), job.record),
        *([Compilation()] if job.settings["compile"] else []),
        *([LearningRateMonitor("epoch")] if any(job.settings.get("logger") or {}) else []),
        *job.callbacks.values(),
        RunRecords(directory, job.record),
        SensitivityLogger(directory=directory),
        *([] if any(isinstance(each, ProgressBar) for each in job.callbacks.values()) else [progress()]),
    ]


def _report(job: Job, directory: Path, results: Mapping[str, Any], checks: TrainingChecks) -> None:
    """Write the results of a run, metrics.json last: with it the run is finished."""
    suite: Any = job.suite
    # of the best checkpoint
    write_images(directory / "images.csv", suite.result, job.description.class_names, job.data.file_names("test"))
    write_curve(directory, results, job.settings)
    write_json(directory / "metrics.json", {"schema": SCHEMA, **results})
    with where_given():  # paths and commands are pasted there
        report.show_run(directory, results, report.titles(job.settings, suite), checks.results())


def _earlier(job: Job, directory: Path) -> Earlier:
    """Find what there is to resume. The first process decides; the others may find what it has just written."""
    if global_rank() != 0:
        recorded = read_yaml(directory / "config.yaml")  # before metrics.json, which the first process moves before it
        checkpoint = readable_checkpoint(directory) if job.settings["resume"] else None
        is_extended = recorded is not None and changes(recorded, job.record)
        return Earlier(checkpoint, None if is_extended else read_json(directory / "metrics.json"))
    earlier = job.earlier(directory, HydraConfig.get().overrides.task)
    if earlier is None:
        return Earlier(None)
    if (epoch := earlier.extended_from) is not None:
        kept = directory / f"metrics_epoch{epoch}.json"
        os.replace(directory / "metrics.json", kept)
        (directory / "timing.json").unlink(missing_ok=True)  # the last epoch has not ended any more
        print(f"extending {printable(directory)} from epoch {epoch}; its first result is in {kept.name}", flush=True)
    elif earlier.checkpoint is not None:
        print(f"resuming {printable(directory)} from {earlier.checkpoint.name}", flush=True)
    elif earlier.results is None:
        print(f"restarting {printable(directory)}: it has no checkpoint yet", flush=True)
        remove_records(directory)
    return earlier


def test_best_and_last(trainer: pl.Trainer, job: Job, checkpoints: Path) -> dict[str, Any]:
    """Return {test/..., test_last/..., best_epoch, last_epoch}; one measurement where best is last."""
    net = job.module.net
    best, last = (read_checkpoint(checkpoints / name) for name in ("best.ckpt", "last.ckpt"))
    results: dict[str, Any] = {"best_epoch": best[PLACE]["epochs"], "last_epoch": last[PLACE]["epochs"]}
    # the best one last, so that it is what the module is left with
    if results["last_epoch"] != results["best_epoch"]:
        load_network(net, last, checkpoints / "last.ckpt")
        results |= run_test(trainer, job, name="test_last")
    load_network(net, best, checkpoints / "best.ckpt")
    if averages.KEY in best and trainer.is_global_zero:
        print(f"best.ckpt holds {best[averages.KEY]['chosen']} of epoch {results['best_epoch']}", flush=True)
    tested = run_test(trainer, job, name="test")
    if results["last_epoch"] == results["best_epoch"]:
        results |= {name.replace("test/", "test_last/"): value for name, value in tested.items()}
    return results | tested
