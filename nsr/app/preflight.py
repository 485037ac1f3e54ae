"""Try a job before its run directory is made.

The job takes what the preflight made (data, network, module, callbacks): everything is made once.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nsr.app.build import build_trainer, check_loggers
from nsr.app.composition import plain, selected_directory, without_hydra
from nsr.app.job import make_job, quiet_lightning, ready
from nsr.app.lengths import check_lengths
from nsr.app.machine import check_machine, processes
from nsr.app.parts import check_parts
from nsr.data.batches import check_divides
from nsr.errors import InputError
from nsr.run.files import check_can_be_made

ELSEWHERE = (
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_ray_launcher",
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
    job = make_job(without_hydra(config), program, directory)
    if not is_elsewhere:
        build_trainer(settings, directory, list(job.callbacks.values()))
    if program == "train" and not is_sweep:
        job.earlier(directory, config.hydra.overrides.task)
    splits = ("train", "test") if program == "train" else ("test",)
    job.data.preflight(splits)  # last: it takes the longest
    check_lengths(settings if program == "train" else job.settings, job.data, job.module, splits)
    if program == "evaluate":
        check_parts(job)
    ready.append(job)


def _check_directory(config: DictConfig, program: str, is_sweep: bool) -> Path:
    """Return the run directory; InputError where it cannot be made."""
    name = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    directory = selected_directory(config, name)
    check_can_be_made(name, directory)
    if program == "evaluate" and (directory / "metrics.csv").exists():
        raise InputError(f"{name} is {str(directory)!r}, which already holds a run; give another folder")
    return directory
