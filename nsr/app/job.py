"""What the two commands share: the folder, status, log and processes of one job."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd

from nsr.app.configuration import unusual_epsilon
from nsr.app.preflight import Job, quiet_lightning
from nsr.run.commands import override
from nsr.run.directory import OWN, read_yaml, recorded_status
from nsr.run.files import SCHEMA
from nsr.run.processes import global_rank

log = logging.getLogger(__name__)


def write_config(directory: Path, job: Job, *, extended_from: int | None = None) -> None:
    """Write config.yaml: every setting resolved, what was chosen and typed, the schema, and extensions of the run."""
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
    """Measure the module as it is on the test set: {NAME/ATTACK_accuracy: ..., and _low and _high, its interval}."""
    job.module.test_name = name
    trainer.test(job.module, datamodule=job.data, verbose=False)
    return {f"{name}/{key}": value for key, value in job.module.suite.metrics.items()}  # type: ignore[union-attr]


def on_terminal() -> bool:
    """Return whether a progress bar can be shown."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextlib.contextmanager
def status_of(directory: Path, program: str) -> Iterator[None]:
    """Keep the status.json of a job; of several processes the first writes it."""
    if global_rank() != 0:
        yield
        return
    with recorded_status(directory, program, list(HydraConfig.get().overrides.task)):
        yield


@contextlib.contextmanager
def in_folder_of_the_command() -> Iterator[None]:
    """Resolve relative paths where the command was given, also with hydra.job.chdir=true."""
    here = Path.cwd()
    os.chdir(get_original_cwd())
    try:
        yield
    finally:
        os.chdir(here)


def process_command(local_rank: int) -> tuple[list[str], str]:
    """Return the command of a further process of this job, in its own run directory, and the folder to start it in."""
    hydra = HydraConfig.get()
    program = hydra.job.name.partition("_")[0]
    overrides = [row for row in hydra.overrides.task if not row.startswith("hydra")]
    beside = [override("hydra.run.dir", hydra.runtime.output_dir), f"hydra.job.name={program}_process_{local_rank}"]
    if hydra.searchpath:
        beside.append(override("hydra.searchpath", list(hydra.searchpath)))
    name = ["--config-name", hydra.job.config_name] if hydra.job.config_name else []
    command = [sys.executable, "-m", "nsr.app.main", program, *name, *overrides, *beside]
    return command, get_original_cwd()


def report_unusual_epsilon(settings: Mapping[str, Any]) -> None:
    """Log one line where the radius is customary in another norm."""
    customary = settings["data"].get("epsilon") or {}
    if (warning := unusual_epsilon(settings["norm"], settings["epsilon"], customary)) is not None:
        log.warning(warning)


def log_to_hydra() -> None:
    """Let Hydra's handlers alone write the run's log, and keep the screen readable."""
    quiet_lightning()
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
