"""The devices and the precision that a command asks for, whether this machine has them, and further processes."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd

from nsr.app.instantiation import Settings
from nsr.errors import InputError
from nsr.run.commands import override
from nsr.run.processes import is_started_from_outside


def _asked(settings: Settings) -> tuple[str, Any]:
    """(accelerator, devices) of the Trainer."""
    return settings["trainer"].get("accelerator", "auto"), settings["trainer"].get("devices", 1)


def processes(settings: Settings) -> int:
    """Return how many processes a run has, on all machines."""
    accelerator, devices = _asked(settings)
    if devices == "auto":
        devices = max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu") else 1
    count = len(devices) if isinstance(devices, list) else devices
    return int(count) * int(settings["trainer"].get("num_nodes", 1))


def shares_batches(settings: Settings) -> bool:
    """Return whether several processes train on a batch together; InputError where SyncBatchNorm lacks GPUs."""
    if processes(settings) == 1:
        return False
    if settings["sync_batch_norm"] and not on_gpus(settings):
        raise InputError("sync_batch_norm is true; torch's SyncBatchNorm needs GPUs: leave it out on the CPU")
    return True


def on_gpus(settings: Settings) -> bool:
    """Return whether the Trainer takes GPUs of CUDA."""
    accelerator, _ = _asked(settings)
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def check_machine(settings: Settings) -> None:
    """Raise InputError where this machine lacks the devices or the precision; Lightning might take another one."""
    accelerator, _ = _asked(settings)
    _check_devices(settings)
    nodes = settings["trainer"].get("num_nodes", 1)
    if nodes > 1 and not is_started_from_outside() and "NODE_RANK" not in os.environ:
        raise InputError(
            f"trainer.num_nodes is {nodes}; several machines are started by torchrun or srun, docs/scale.md"
        )
    precision = settings["trainer"].get("precision", "32-true")
    on_mps = accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available())
    if precision == "64-true" and on_mps and not on_gpus(settings):
        raise InputError("trainer.precision is 64-true, which mps does not have; trainer.accelerator=cpu does")
    if precision == "16-mixed" and not on_gpus(settings) and not on_mps:
        raise InputError("trainer.precision is 16-mixed, which needs a GPU; bf16-mixed works on a CPU")
    lacks_bf16 = on_gpus(settings) and not torch.cuda.is_bf16_supported(including_emulation=False)
    if lacks_bf16 and settings.get("evaluation", {}).get("precision") == "bf16":
        raise InputError("evaluation.precision is bf16, which this GPU does not have; float32 works there")
    if precision == "bf16-mixed" and lacks_bf16:
        gpu = torch.cuda.get_device_name()
        raise InputError(f"trainer.precision is bf16-mixed, which {gpu} does not have; 16-mixed works there")


def _check_devices(settings: Settings) -> None:
    accelerator, devices = _asked(settings)
    gpus = torch.cuda.device_count()
    if accelerator == "gpu" and gpus == 0:
        fix = "trainer.accelerator=cpu works"
        raise InputError(f"trainer.accelerator is gpu; there is none that torch can use here, {fix}")
    if accelerator == "mps" or devices == "auto":
        return
    there_are, kind = (gpus, "GPUs") if on_gpus(settings) else (os.cpu_count() or 1, "CPU cores")
    wanted = max(devices) + 1 if isinstance(devices, list) else devices
    if wanted > there_are:
        raise InputError(f"trainer.devices is {devices}; there are {there_are} {kind}")


def process_command(local_rank: int) -> tuple[list[str], str]:
    """Return the command of a further process of this job, in its own run directory, and the folder to start it in."""
    hydra = HydraConfig.get()
    program = hydra.job.name.partition("_")[0]
    overrides = [row for row in hydra.overrides.task if not row.startswith("hydra")]
    beside = [override("hydra.run.dir", hydra.runtime.output_dir), f"hydra.job.name={program}_process_{local_rank}"]
    if hydra.searchpath:
        beside.append(override("hydra.searchpath", list(hydra.searchpath)))
    name = ["--config-name", hydra.job.config_name] if hydra.job.config_name else []
    return [sys.executable, "-m", "nsr.app.main", program, *name, *overrides, *beside], get_original_cwd()
