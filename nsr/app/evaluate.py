"""One evaluation: the attack suite, masking checks and analyses on a checkpoint or third-party weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_original_cwd
from omegaconf import DictConfig

from nsr import __version__
from nsr.app.build import build_trainer
from nsr.app.job import Job, progress, run_test, started_job, write_config
from nsr.evaluation import report
from nsr.evaluation.cache import (
    RESPONSE_IMAGES,
    ResultCache,
    by_content,
    fingerprint,
    fitting_cache,
    network_fingerprint,
    network_response,
)
from nsr.evaluation.corrupted import corruption_metrics, measure_corruptions
from nsr.evaluation.curve import expanded, write_curve
from nsr.evaluation.masking_checks import PROBES, evaluate_checks
from nsr.interventions import AnalysisContext
from nsr.run.checks import stop_where_triggered
from nsr.run.files import write_json
from nsr.run.processes import leave_processes
from nsr.run.signals import interruptible


def evaluate(config: DictConfig) -> None:
    """Measure a checkpoint or third-party weights; write and print the results."""
    with interruptible(), started_job(config, "evaluate") as (job, directory):
        trainer, orderly = build_trainer(job.settings, directory, [progress()]), False
        try:
            _measure(job, directory, trainer)
            orderly = True
        finally:
            leave_processes(trainer, orderly=orderly)


def _measure(job: Job, directory: Path, trainer: pl.Trainer) -> None:
    settings, data, options = job.settings, job.data, job.settings["evaluation"]
    suite: Any = job.module.suite
    data.setup("test")
    which = f"all {len(data.test_set)} test images"
    if options["n_examples"] is not None:
        checksum = data.limit_test(options["n_examples"], options["subset"])
        which = f"{len(data.test_set)} test images, {options['subset']}, checksum {checksum}"
    for analysis in job.analyses.values():
        if hasattr(analysis, "check"):
            analysis.check(job.module.extractor.layers, len(data.test_set))
    suite.cache = _cache(job, directory)
    metrics = run_test(trainer, job, name="test")
    outcomes, probed, sensitivities = suite.outcomes, suite.probed, suite.sensitivities
    if (count := len(outcomes["clean"])) < len(data.test_set):
        which = f"the first {count} of {len(data.test_set)} test images (trainer.limit_test_batches)"
    corrupted = []
    if job.corruptions is not None:
        corrupted = measure_corruptions(trainer, job.module, data, job.corruptions, partial(_cache, job, directory))
    if not trainer.is_global_zero:
        return
    write_config(directory, job)
    metrics |= corruption_metrics(corrupted)
    report.write_evaluation(directory, metrics, sensitivities, outcomes, corrupted)
    write_curve(directory, metrics, settings)
    titles = report.titles(settings, suite)
    report.show_evaluation(directory, metrics, sensitivities, titles, which=which, list_top=options["list_top"])
    report.show_corruptions(corrupted)
    checks = []
    if settings["checks"]["enabled"]:
        checks = evaluate_checks({**outcomes, **probed}, classes=job.description.classes)
        write_json(directory / "checks.json", [check._asdict() for check in checks])
        report.show_checks(checks)
    for analysis in job.analyses.values():
        report.show(*(analysis.run(_analysis_context(job, directory, trainer.strategy.root_device)) or ()))
    stop_where_triggered(checks, settings["checks"]["stop_on"])


def _analysis_context(job: Job, directory: Path, device: torch.device) -> AnalysisContext:
    """The inputs of an analysis, on the device to measure on."""
    net, data = job.module.net.to(device), job.data
    return AnalysisContext(
        net=net,
        root=net.net,  # type: ignore[arg-type]
        layers=job.module.extractor.layers,
        labels=data.test_set.labels,
        batches=lambda index: ((images.to(device), labels.to(device)) for images, labels in data.test_batches(index)),
        attack=job.module.suite.sensitivity_attack,  # type: ignore[union-attr]
        directory=directory,
        settings=job.record,
    )


def _cache(job: Job, directory: Path, part: str = "") -> ResultCache:
    """The cached results of this evaluation, or of a corruption: the same command finds them again."""
    settings, images = job.settings, job.data.test_set
    identity = {
        "network": network_fingerprint(job.module.net),
        "seed": settings["seed"],
        "nsr": __version__,
        "layers": [repr(layer) for layer in job.module.extractor.layers],
    }
    ball = {name: settings[name] for name in ("norm", "epsilon")}
    measured = {**expanded(settings["test_attacks"]), "sensitivity": settings["sensitivity_attack"]}
    own = by_content({name: {**ball, **(attack or {})} for name, attack in measured.items()}, Path(get_original_cwd()))
    attacks = {**dict.fromkeys(PROBES), **own, "clean": None}
    first = torch.stack([images[index][0] for index in range(min(RESPONSE_IMAGES, len(images)))])
    response = network_response(job.module.net, first)
    if settings["evaluation"]["cache"] is not None:
        return ResultCache(Path(settings["evaluation"]["cache"]) / part, identity, attacks, response)
    return fitting_cache(directory.parent / "cache" / fingerprint(identity)[:12], identity, attacks, response)
