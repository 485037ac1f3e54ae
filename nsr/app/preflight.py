"""Everything that can go wrong before the first step, tried before a run directory is made."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from omegaconf import DictConfig

from nsr.app.build import (
    build_analyses,
    build_corruptions,
    build_data,
    build_module,
    needed_splits,
    on_gpus,
    processes,
)
from nsr.app.checkpoints import take_over_checkpoint
from nsr.app.composition import plain, plain_value, without_hydra
from nsr.data.batches import check_divides
from nsr.errors import InputError
from nsr.evaluation.curve import expand_curve
from nsr.run.resumption import OWN, earlier_run

ELSEWHERE = (
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_ray_launcher",
)


def rehearse(config: DictConfig, *, is_sweep: bool = False) -> None:
    """InputError, in one line, where the run or evaluation of `config` (hydra's part among it) cannot begin."""
    config = config.copy()
    directory = _check_directory(config, is_sweep)
    if is_sweep and str(config.hydra.launcher._target_).startswith(ELSEWHERE):
        config.sync_batch_norm = False  # what the machines there have is checked by each job
    else:
        check_machine(config)
    if "objective" in config:
        check_divides(config.data.batch_size, processes(config))
    saved = take_over_checkpoint(config) if "checkpoint" in config else None
    data = build_data(config)
    expand_curve(config)
    module = build_module(config, data, saved=saved)
    build_analyses(config, module, images=config.get("limit"))
    build_corruptions(config, data)
    if "objective" in config and not is_sweep:
        settings = {name: value for name, value in plain(without_hydra(config)).items() if name not in OWN}
        earlier_run(directory, settings, resume=config.resume, changed=config.resume_changed)
    data.rehearse(needed_splits(config))  # last: it takes the longest


def _check_directory(config: DictConfig, is_sweep: bool) -> Path:
    """The run directory, which can be made."""
    directory = Path(str(config.hydra.sweep.dir if is_sweep else config.hydra.run.dir)).absolute()
    parent = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"the run directory {directory} cannot be made: {parent} is not writable; set hydra.run.dir")
    if "objective" not in config and (directory / "metrics.csv").exists():
        raise InputError(f"the run directory {directory} already holds a run; set hydra.run.dir to another")
    return directory


def check_machine(config: DictConfig) -> None:
    """InputError where this machine lacks the devices or the precision that are asked for."""
    _check_devices(config)
    _check_precision(config)


def _check_devices(config: DictConfig) -> None:
    accelerator, devices = config.trainer.accelerator, plain_value(config.trainer.devices)
    gpus = torch.cuda.device_count()
    if accelerator == "gpu" and gpus == 0:
        raise InputError(
            "trainer.accelerator is gpu; there is none that torch can use here, trainer.accelerator=cpu works"
        )
    if accelerator == "mps" or devices == "auto":
        return
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and gpus > 0)
    there_are, kind = (gpus, "GPUs") if on_gpu else (os.cpu_count() or 1, "CPU cores")
    wanted = max(devices) + 1 if isinstance(devices, list) else devices
    if wanted > there_are:
        raise InputError(f"trainer.devices is {devices}; there are {there_are} {kind}")


def _check_precision(config: DictConfig) -> None:
    """trainer.precision is one that the device has: Lightning would take another, or a much slower one."""
    precision, accelerator = config.trainer.get("precision", "32-true"), config.trainer.accelerator
    on_mps = accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available())
    if precision == "64-true" and on_mps and not on_gpus(config):
        raise InputError("trainer.precision is 64-true, which mps does not have; trainer.accelerator=cpu does")
    if precision == "16-mixed" and not on_gpus(config) and not on_mps:
        raise InputError("trainer.precision is 16-mixed, which needs a GPU; bf16-mixed works on a CPU")
    if precision == "bf16-mixed" and on_gpus(config) and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"trainer.precision is bf16-mixed, which {torch.cuda.get_device_name()} does not have; 16-mixed works there"
        )
