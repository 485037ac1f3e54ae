"""One evaluation: the attack suite, masking checks and analyses on a checkpoint or third-party weights.

A shard measures a part of the test set, and a merge reads all shards in place of measuring; both share everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from nsr import loggers
from nsr.app import pictures
from nsr.app.build import build_loggers, build_trainer
from nsr.app.job import Job, progress, run_test, started_job, where_given, write_config, write_machine
from nsr.app.parts import (
    attack_identity,
    cache_folder,
    choose_images,
    identity,
    merged_shards,
    response,
    restarted,
    shard_identity,
    single_images,
)
from nsr.evaluation import report
from nsr.evaluation.cache import ResultCache, fingerprint, fitting_cache
from nsr.evaluation.corrupted import CorruptionAccuracy, corruption_metrics, measure_corruptions
from nsr.evaluation.curve import write_curve, write_distances
from nsr.evaluation.image_table import write_classes, write_images
from nsr.evaluation.masking_checks import evaluate_checks
from nsr.evaluation.outcomes import SuiteResult
from nsr.evaluation.robustbench import write_entry
from nsr.evaluation.shards import write_shard
from nsr.evaluation.threat_models import by_threat_model
from nsr.interventions import AnalysisContext
from nsr.report import automatic
from nsr.run.checks import Check, stop_where_triggered
from nsr.run.commands import command, override
from nsr.run.directory import flat, shown
from nsr.run.files import write_json
from nsr.run.own import own_key
from nsr.run.processes import leave_processes
from nsr.run.signals import interruptible


def evaluate(config: DictConfig) -> None:
    """Measure a checkpoint or third-party weights; write and print the results."""
    with interruptible(), started_job(config, "evaluate") as (job, directory), where_given():
        made, trainer, orderly = build_loggers(job.settings, directory), None, False
        try:
            loggers.log_settings(made, dict(flat(job.record)))
            trainer = build_trainer(job.settings, directory, [progress()], logger=made)
            _measure(job, directory, trainer, made)
            orderly = True
        finally:
            loggers.finish(made)
            leave_processes(trainer, orderly=orderly)


def _measure(job: Job, directory: Path, trainer: pl.Trainer, made: Sequence[Logger]) -> None:
    settings, data, suite = job.settings, job.data, job.suite
    which, images = choose_images(job), single_images(job)
    for analysis in job.analyses.values():
        if hasattr(analysis, "check"):
            analysis.check(job.module.extractor.layers, len(data.test_set))
    suite.cache, suite.restarted = None if images else _cache(job, directory), restarted(job)
    if settings["merge"]:
        suite.start(job.module.extractor.layers, torch.device("cpu"))
        suite.add(merged_shards(job))
        result = suite.finish()
    else:
        run_test(trainer, job, name="test")
        result = suite.result
    if settings["shard"] is not None:
        _end_shard(job, directory, trainer)
        return
    if (count := len(result.labels)) < len(data.test_set):
        which = f"the first {count} of {len(data.test_set)} test images (trainer.limit_test_batches)"
    corrupted = []
    if job.corruptions is not None:
        corrupted = measure_corruptions(trainer, job.module, data, job.corruptions, partial(_cache, job, directory))
    if not trainer.is_global_zero:
        return
    write_config(directory, job)
    write_machine(directory, trainer.strategy.root_device, trainer.world_size)
    names, files = job.description.class_names, data.file_names("test")
    if images:
        write_images(directory / "only.csv", result, names, files)
        report.show_images(directory / "only.csv", result, names)
        return
    write_images(directory / "images.csv", result, names, files)
    write_classes(directory, result, names, suite.worst_cases)
    loggers.log_results(made, _report(job, directory, result, corrupted, which), step=0)
    checks = _checks(job, directory, result)
    for analysis in job.analyses.values():
        report.show(*(analysis.run(_analysis_context(job, directory, trainer.strategy.root_device)) or ()))
    drawn = pictures.write_or_warn(job, directory, trainer.strategy.root_device)
    pictures.log_pictures(made, drawn, job, directory, step=0)
    if settings["report"]:
        automatic.write_or_warn(directory)
    stop_where_triggered(checks, settings["checks"]["stop_on"])


def _end_shard(job: Job, directory: Path, trainer: pl.Trainer) -> None:
    part = job.suite.partial_result()  # in every process
    if not trainer.is_global_zero:
        return
    write_config(directory, job)
    write_shard(directory, job.data.shard, shard_identity(job), part)
    folder, typed = shown(directory.parent), HydraConfig.get().overrides.task
    merged = [row for row in typed if not row.startswith(("shard=", "hydra."))]
    print(f"shard {job.settings['shard']}: {len(job.suite.result.labels)} images, {shown(directory)}")
    print(f"when all are done: {command('evaluate', *merged, override('merge', str(folder)))}", flush=True)


def _report(
    job: Job, directory: Path, result: SuiteResult, corrupted: Sequence[CorruptionAccuracy], which: str
) -> dict[str, float]:
    """Write and print the accuracies, sensitivities and what follows from them; return the metrics."""
    settings, options = job.settings, job.settings["evaluation"]
    metrics: dict[str, Any] = {f"test/{name}": value for name, value in result.metrics.items()} | corruption_metrics(
        corrupted
    )
    label = {"search": "bf16, every success confirmed in float32"} if options["precision"] == "bf16" else {}
    report.write_evaluation(directory, metrics | label, result.sensitivities, corrupted)
    write_curve(directory, metrics, settings)
    write_distances(directory, result.distances, job.suite.attacks)
    write_entry(directory, result.metrics, job.suite.attacks, settings)
    titles = report.titles(settings, job.suite)
    report.show_evaluation(directory, metrics, result.sensitivities, titles, which=which, list_top=options["list_top"])
    report.show_corruptions(corrupted)
    return metrics


def _checks(job: Job, directory: Path, result: SuiteResult) -> list[Check]:
    if not job.settings["checks"]["enabled"]:
        return []
    attacks = by_threat_model(job.suite.attacks, job.settings)
    outcomes = {**result.outcomes, **result.probed}
    checks = evaluate_checks(outcomes, classes=job.description.classes, attacks=attacks)
    write_json(directory / "checks.json", [check._asdict() for check in checks])
    report.show_checks(checks)
    return checks


def _analysis_context(job: Job, directory: Path, device: torch.device) -> AnalysisContext:
    """The inputs of an analysis, on the device to measure on."""
    net, data = job.module.net.to(device), job.data
    return AnalysisContext(
        net=net,
        root=net.net,  # type: ignore[arg-type]
        layers=job.module.extractor.layers,
        labels=data.test_set.labels,
        batches=lambda index: ((images.to(device), labels.to(device)) for images, labels in data.test_batches(index)),
        attack=job.suite.sensitivity_attack,  # type: ignore[arg-type]
        directory=directory,
        settings=job.record,
    )


def _cache(job: Job, directory: Path, part: str = "") -> ResultCache:
    """The cached results of this evaluation, or of a corruption: the same command finds them again."""
    evaluation, attacks, found = identity(job), attack_identity(job), response(job)
    if (folder := cache_folder(job)) is not None:
        return ResultCache(folder / part, evaluation, attacks, found)
    # a run directory may come from anybody, with results that nobody measured
    folder = directory.parent / "cache" / fingerprint(evaluation)[:12]
    return fitting_cache(folder, evaluation, attacks, found, key=own_key())
