"""Try everything that can fail before the first step, before a run directory is made.

What is made here (data, network, module, callbacks) is handed to the run: everything is made once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from nsr.app.build import (
    build_analyses,
    build_callbacks,
    build_corruptions,
    build_data,
    build_module,
    build_trainer,
    check_loggers,
)
from nsr.app.checkpoints import load_network, with_checkpoint
from nsr.app.composition import plain, selected_directory, without_hydra
from nsr.app.machine import check_machine, processes
from nsr.data import DataDescription, ImageData
from nsr.data.batches import check_divides
from nsr.errors import InputError
from nsr.run.resumption import earlier_run
from nsr.run.settings import OWN
from nsr.training.module import RobustClassifier

ELSEWHERE = (
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_ray_launcher",
)
LONGEST_NAME = 255  # of a folder, in bytes, on the file systems in use
_ready: list[Job] = []  # of this process, for the job with the same settings


@dataclass(frozen=True)
class Job:
    """The parts of a run or an evaluation."""

    settings: Mapping[str, Any]  # of the command, resolved; never changed
    data: ImageData
    description: DataDescription
    module: RobustClassifier
    callbacks: Mapping[str, pl.Callback]
    analyses: Mapping[str, Any]
    corruptions: Any

    @property
    def record(self) -> dict[str, Any]:
        """The settings as they are written, with the description of the data."""
        of_data = asdict(self.description)
        names = of_data.pop("class_names")
        of_data |= {name: list(of_data[name]) for name in ("mean", "std")}
        own = {name: value for name, value in self.settings.items() if name not in OWN}
        return {**own, "data": {**own["data"], **of_data}, "class_names": list(names)}


def make_job(config: DictConfig, program: str) -> Job:
    """Make everything that a command needs from its configuration, or take it from the preflight."""
    settings, saved = with_checkpoint(config) if program == "evaluate" else (plain(config), None)
    while _ready:
        job = _ready.pop()
        if job.settings == settings:
            return job
    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    data = build_data(settings, splits=("train", "test") if program == "train" else ("test",))
    description = data.describe()
    module = build_module(settings, description, augment=data.augment)
    if saved is not None:
        load_network(module.net, saved, settings["checkpoint"], description=description)
    return Job(
        settings=settings,
        data=data,
        description=description,
        module=module,
        callbacks=build_callbacks(settings, module),
        analyses=build_analyses(settings, module),
        corruptions=build_corruptions(settings, data),
    )


def preflight(config: DictConfig, program: str, *, is_sweep: bool = False) -> None:
    """Try everything that the job of `config`, Hydra's settings included, needs, and keep it for the job.

    Errors:
        InputError: in one line, where the job cannot start.
    """
    quiet_lightning()
    directory = _check_directory(config, program, is_sweep)
    settings = plain(without_hydra(config))
    is_elsewhere = is_sweep and str(config.hydra.launcher._target_).startswith(ELSEWHERE)
    if not is_elsewhere:
        check_machine(settings)  # what other machines have is checked by each job there
    if program == "train":
        check_divides(settings["data"].get("batch_size", 128), processes(settings))
        check_loggers(settings)
    job = make_job(without_hydra(config), program)
    if not is_elsewhere:
        build_trainer(settings, directory, ())
    if program == "train" and not is_sweep:
        overrides = list(config.hydra.overrides.task)
        resume, changed = settings["resume"], settings["allow_changed_config"]
        earlier_run(directory, job.record, resume=resume, changed=changed, overrides=overrides)
    job.data.preflight(("train", "test") if program == "train" else ("test",))  # last: it takes the longest
    _ready.append(job)


def quiet_lightning() -> None:
    """Switch Lightning's own log handlers off."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _check_directory(config: DictConfig, program: str, is_sweep: bool) -> Path:
    """Return the run directory; InputError where it cannot be made."""
    name = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    directory = selected_directory(config, name)
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in directory.parts):
        raise InputError(f"{name} has a folder name of more than {LONGEST_NAME} bytes; give a shorter one")
    try:
        parent = next(folder for folder in (directory, *directory.parents) if folder.exists())
        is_writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InputError(f"{name} is {str(directory)!r}; it cannot be made ({error}): give another folder") from error
    links = [folder for folder in (directory, *directory.parents) if folder.is_symlink()]
    broken = next((link for link in links if not link.exists()), None)
    if not is_writable or broken is not None:
        why = f"{parent} is not writable" if broken is None else f"{broken} is a link to nothing"
        raise InputError(f"{name} is {str(directory)!r}; it cannot be made: {why}; give another folder")
    if program == "evaluate" and (directory / "metrics.csv").exists():
        raise InputError(f"{name} is {str(directory)!r}, which already holds a run; give another folder")
    return directory
