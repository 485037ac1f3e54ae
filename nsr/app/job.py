"""Shared by the two commands: the start, configuration file, tests and progress of one job."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytorch_lightning as pl
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd
from omegaconf import DictConfig
from pytorch_lightning.callbacks import RichProgressBar

from nsr.app.command_line import run_directory
from nsr.app.composition import plain
from nsr.app.configuration import unusual_epsilon
from nsr.app.machine import check_machine
from nsr.app.preflight import Job, make_job, quiet_lightning
from nsr.callbacks import ProgressRows
from nsr.run.directory import read_yaml
from nsr.run.processes import global_rank
from nsr.run.settings import OWN, SCHEMA
from nsr.run.status import recorded_status

log = logging.getLogger(__name__)


def write_config(directory: Path, job: Job, *, extended_from: int | None = None) -> None:
    """Write config.yaml: every setting resolved, choices and overrides, the schema, and extensions of the run."""
    hydra = HydraConfig.get()
    before = read_yaml(directory / "config.yaml") or {}
    extended = list(before.get("extended", []))
    if extended_from is not None:
        extended.append({"from": extended_from, "to": job.settings["trainer"]["max_epochs"]})
    choices = {group: str(name) for group, name in hydra.runtime.choices.items() if "hydra" not in group and name}
    typed = [row for row in hydra.overrides.task if row.lstrip("+~").partition("=")[0] not in OWN]
    content = {"schema": SCHEMA, **job.record, "choices": choices, "overrides": typed}
    content |= {"extended": extended} if extended else {}
    partial = directory / "config.yaml.partial"
    partial.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    partial.replace(directory / "config.yaml")


def run_test(trainer: pl.Trainer, job: Job, *, name: str) -> dict[str, float]:
    """Test the module as it is; return {NAME/ATTACK_accuracy: fraction, and _low and _high, its interval}."""
    job.module.test_name = name
    trainer.test(job.module, datamodule=job.data, verbose=False)
    return {f"{name}/{key}": value for key, value in job.module.suite.metrics.items()}  # type: ignore[union-attr]


def progress() -> pl.Callback:
    """Return a progress bar, or, where none can be shown, rows of text."""
    return RichProgressBar() if sys.stdout.isatty() and sys.stderr.isatty() else ProgressRows()


@contextmanager
def started_job(config: DictConfig, program: str) -> Iterator[tuple[Job, Path]]:
    """Make the job and yield it with its run directory, whose status.json and log are kept until the end.

    Relative paths start where the command was given, also with hydra.job.chdir=true.
    """
    quiet_lightning()  # Hydra's handlers alone write the run's log
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
    directory, overrides = run_directory(), list(HydraConfig.get().overrides.task)
    # of several processes the first writes the status
    with recorded_status(directory, f"{program}.py", overrides) if global_rank() == 0 else nullcontext():
        here = Path.cwd()
        os.chdir(get_original_cwd())
        try:
            check_machine(plain(config))
            job = make_job(config, program)
        finally:
            os.chdir(here)
        settings = job.settings
        customary = settings["data"].get("epsilon") or {}
        if (warning := unusual_epsilon(settings["norm"], settings["epsilon"], customary)) is not None:
            log.warning(warning)
        yield job, directory
