"""The job of a command: what it is made of, and its start."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd
from omegaconf import DictConfig
from pytorch_lightning.callbacks import RichProgressBar

from nsr import __version__
from nsr.app import build
from nsr.app.composition import plain, run_directory
from nsr.app.configuration import unusual_epsilon
from nsr.app.machine import check_machine
from nsr.app.network import load_network, with_checkpoint
from nsr.app.performance import resumed_choice, uses_channels_last
from nsr.callbacks import ProgressRows
from nsr.callbacks.checkpoints import PLACE
from nsr.data import DataDescription, ImageData
from nsr.data.class_order import third_party_classes
from nsr.data.origin import data_origin
from nsr.errors import InputError
from nsr.evaluation.suite import AttackSuite
from nsr.models.build import Allocations
from nsr.models.preprocessing import unlike_published
from nsr.models.weights import read_checkpoint
from nsr.run.commands import name_of
from nsr.run.directory import OWN, read_yaml, recorded_status
from nsr.run.files import SCHEMA, write_json, write_text
from nsr.run.own import commit, remember
from nsr.run.plain_text import printable
from nsr.run.processes import global_rank
from nsr.run.resumption import Earlier, earlier_run, extensions
from nsr.training.module import RobustClassifier

log = logging.getLogger(__name__)
ready: list[Job] = []  # of the preflight in this process, for the job with the same settings


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
    origin: Mapping[str, Any]  # of relative paths of the data of a run, see `data_origin`
    checkpoint_epoch: int | None = None  # of an evaluation: the epochs that its checkpoint was trained

    @property
    def suite(self) -> AttackSuite:
        """The attacks of its test."""
        return self.module.suite  # type: ignore[return-value]

    @property
    def record(self) -> dict[str, Any]:
        """The settings as they are written, with the description of the data."""
        net: Any = self.module.net
        of_data = asdict(self.description)
        names = of_data.pop("class_names")
        of_data |= {name: list(of_data[name]) for name in ("mean", "std")}
        own = {name: value for name, value in self.settings.items() if name not in OWN}
        own["model"] = {**own["model"], "normalization": net.normalization.record}
        own["channels_last"] = uses_channels_last(self.settings, net)  # on another device the same
        return {
            **own,
            "data": {**own["data"], **of_data},
            "class_names": list(names),
            "data_origin": dict(self.origin),
        }

    @property
    def notes(self) -> list[tuple[int, str]]:
        """Levels and lines on how labels and normalization of weights are taken, and on performance."""
        net: Any = self.module.net
        resized = unlike_published(net.published_sizes, getattr(self.data, "preprocess", None))
        lines = [self.data.matched.note, net.normalization.note, resized, self.module.performance_note]
        notes = [(logging.INFO, line) for line in lines if line is not None]
        if self.settings["model"].get("weights") is not None:
            line, is_warning = third_party_classes(self.description.class_names)
            is_warning = is_warning and self.data.class_order is None
            notes.append((logging.WARNING if is_warning else logging.INFO, line))
        return notes

    def earlier(self, directory: Path, overrides: Sequence[str]) -> Earlier | None:
        """Return the run that the directory holds, None where there is none; InputError where it does not fit."""
        resume, changed = self.settings["resume"], self.settings["allow_changed_config"]
        earlier = earlier_run(directory, self.record, resume=resume, changed=changed, overrides=list(overrides))
        if earlier is not None and earlier.checkpoint is not None:
            saved = read_checkpoint(earlier.checkpoint)
            _check_limits(self.settings, saved, earlier.checkpoint, is_extended=earlier.extended_from is not None)
            load_network(self.module.net, saved, earlier.checkpoint)  # fails where a changed setting makes another one
        return earlier


def _check_limits(
    settings: Mapping[str, Any], saved: Mapping[str, Any], checkpoint: Path, *, is_extended: bool
) -> None:
    """Raise InputError where a run is resumed for fewer epochs than it has, or extended within a limit it reached."""
    trainer = settings["trainer"]
    if (epochs := saved[PLACE]["epochs"]) > build.max_epochs(settings):
        wanted = trainer["max_epochs"]
        raise InputError(
            f"trainer.max_epochs is {wanted}, but {checkpoint} is already at epoch {epochs}; give at least as many"
        )
    reached = {"max_steps": trainer.get("max_steps", -1) in range(saved["global_step"] + 1)}
    if (timer := saved["callbacks"].get("Timer")) and trainer.get("max_time") is not None:
        left = pl.callbacks.Timer(trainer["max_time"]).time_remaining() or 0.0
        reached["max_time"] = left <= timer["time_elapsed"]["train"]
    for name in (name for name, is_reached in reached.items() if is_extended and is_reached):
        what = f"trainer.{name} is {trainer[name]}, which {checkpoint} has reached already: no step would be trained"
        raise InputError(f"{what}; give a larger one, +trainer.{name}=...")


def make_job(config: DictConfig, program: str, directory: Path | None = None) -> Job:
    """Make everything that a command needs from its configuration, or take it from the preflight.

    Args:
        directory: of the run, which may hold one to resume.
    """
    settings, saved = with_checkpoint(config) if program == "evaluate" else (plain(config), None)
    if program == "train":
        settings = resumed_choice(settings, None if directory is None else read_yaml(directory / "config.yaml"))
    while ready:
        job = ready.pop()
        if repr(job.settings) == repr(settings):  # 1 is not 1.0
            return job
    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    data = build.build_data(settings, splits=("train", "test") if program == "train" else ("test",))
    description = data.describe()
    with nullcontext() if saved is None else Allocations(saved["state_dict"]):
        module = build.build_module(settings, description, augment=data.augment, mix=data.mix)
    if saved is not None:
        load_network(module.net, saved, settings["checkpoint"], description=description)
    callbacks, analyses = build.build_callbacks(settings, module), build.build_analyses(settings, module)
    corruptions = build.build_corruptions(settings, data)
    origin = data_origin(settings["data"]) if program == "train" else {}
    place = saved.get(PLACE) if saved is not None else None  # there is none in a checkpoint of safetensors
    epoch = place.get("epochs") if isinstance(place, Mapping) else None
    return Job(settings, data, description, module, callbacks, analyses, corruptions, origin, epoch)


def quiet_lightning() -> None:
    """Switch Lightning's own log handlers off."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def write_config(directory: Path, job: Job, earlier: Earlier | None = None) -> None:
    """Write config.yaml: every setting resolved, choices and overrides, the schema, and extensions of the run."""
    hydra = HydraConfig.get()
    extended = extensions(directory)
    if earlier is not None and earlier.extended_from is not None:
        lengths = {"from": earlier.extended_from, "to": job.settings["trainer"]["max_epochs"]}
        extended.append({**lengths, "new_schedule": earlier.new_schedule})
    choices = {group: str(name) for group, name in hydra.runtime.choices.items() if "hydra" not in group and name}
    places = [row for row in hydra.overrides.hydra if row.startswith("hydra.searchpath=")]
    typed = [row for row in [*places, *hydra.overrides.task] if name_of(row) not in OWN]
    named = {"config_name": hydra.job.config_name} if hydra.job.config_name not in (None, "train", "evaluate") else {}
    content = {"schema": SCHEMA, **named, **job.record, "choices": choices, "overrides": typed}
    content |= {"extended": extended} if extended else {}
    content |= {"checkpoint_epoch": job.checkpoint_epoch} if job.checkpoint_epoch is not None else {}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(directory / "config.yaml", text)
    remember(yaml.safe_load(text))  # as it will be read
    remember(job.record)  # of the checkpoints


def write_machine(directory: Path, device: torch.device, processes: int) -> None:
    """Write machine.json: the device, the versions, and the commit of nsr where it runs from a checkout."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    software = f"nsr {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    content = {"device": name, "processes": processes, "software": software, "commit": commit()}
    write_json(directory / "machine.json", content)


def run_test(trainer: pl.Trainer, job: Job, *, name: str) -> dict[str, float]:
    """Test the module as it is; return {NAME/ATTACK_accuracy: fraction, and _low and _high, its interval}."""
    job.module.test_name = name
    trainer.test(job.module, datamodule=job.data, verbose=False)
    return {f"{name}/{key}": value for key, value in job.suite.result.metrics.items()}


def progress() -> pl.Callback:
    """Return a progress bar, or, where none can be shown, rows of text."""
    return RichProgressBar() if sys.stdout.isatty() and sys.stderr.isatty() else ProgressRows()


@contextmanager
def where_given() -> Iterator[None]:
    """Work in the folder where the command was given; hydra.job.chdir=true changes to the run directory."""
    here = Path.cwd()
    os.chdir(get_original_cwd())
    try:
        yield
    finally:
        os.chdir(here)


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
        with where_given():
            check_machine(plain(config))
            job = make_job(config, program, directory)
        settings = job.settings
        customary = settings["data"].get("epsilon") or {}
        if (warning := unusual_epsilon(settings["norm"], settings["epsilon"], customary)) is not None:
            log.warning(warning)
        for level, note in job.notes if global_rank() == 0 else ():
            log.log(level, note)
            if level < logging.WARNING:  # the screen has warnings alone
                print(printable(note), flush=True)
        yield job, directory
