"""The devices and the precision that a command asks for, and whether this machine has them."""

from __future__ import annotations

import os

import torch

from nsr.app.instantiation import Settings
from nsr.errors import InputError


def processes(settings: Settings) -> int:
    """Return how many processes a run has, on all machines."""
    devices, accelerator = settings["trainer"].get("devices", 1), settings["trainer"].get("accelerator", "auto")
    if devices == "auto":
        devices = max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu") else 1
    count = len(devices) if isinstance(devices, list) else devices
    return int(count) * int(settings["trainer"].get("num_nodes", 1))


def shares_batches(settings: Settings) -> bool:
    """Return whether several processes, each with a GPU, train on a batch together.

    Errors:
        InputError: they have none, and sync_batch_norm asks for it.
    """
    if processes(settings) == 1:
        return False
    if settings["sync_batch_norm"] and not on_gpus(settings):
        raise InputError("sync_batch_norm is true; torch's SyncBatchNorm needs GPUs: leave it out on the CPU")
    return True


def on_gpus(settings: Settings) -> bool:
    """Return whether the Trainer takes GPUs of CUDA."""
    accelerator = settings["trainer"].get("accelerator", "auto")
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def check_machine(settings: Settings) -> None:
    """Check that this machine has the devices and the precision that are asked for.

    Errors:
        InputError: it lacks them; Lightning would take another precision, or a much slower one.
    """
    _check_devices(settings)
    trainer = settings["trainer"]
    precision, accelerator = trainer.get("precision", "32-true"), trainer.get("accelerator", "auto")
    on_mps = accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available())
    if precision == "64-true" and on_mps and not on_gpus(settings):
        raise InputError("trainer.precision is 64-true, which mps does not have; trainer.accelerator=cpu does")
    if precision == "16-mixed" and not on_gpus(settings) and not on_mps:
        raise InputError("trainer.precision is 16-mixed, which needs a GPU; bf16-mixed works on a CPU")
    if precision == "bf16-mixed" and on_gpus(settings) and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"trainer.precision is bf16-mixed, which {torch.cuda.get_device_name()} does not have; 16-mixed works there"
        )


def _check_devices(settings: Settings) -> None:
    accelerator, devices = settings["trainer"].get("accelerator", "auto"), settings["trainer"].get("devices", 1)
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
