"""Several processes of one run: which this is, how further ones are started, what they leave behind.

Lightning's DDP does the work. What it gets wrong under hydra is mended here: it starts a further process with the
command line of the first, which in a sweep is the whole sweep (Lightning #18175, open), so that processes of one run
trained with different settings. This file loads neither torch, Lightning nor hydra before it needs them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsr.errors import InputError

PROGRAMS = Path(__file__).resolve().parents[2]  # the folder of train.py and evaluate.py
OF_A_RUN = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)
DEVICES_OF_SWEEP, ALL = "NSR_DEVICES_OF_SWEEP", "all"
SECONDS_TO_MEET = 300.0  # for processes that several machines start
SECONDS_TO_END = 30.0  # for a run one of whose processes has ended


def global_rank() -> int:
    """The number of this process among all of the run, known before any of them has met another."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):  # as Lightning looks
        if name in os.environ:
            return int(os.environ[name])
    return 0


def is_started_from_outside() -> bool:
    """Whether torchrun or srun starts every process, and not the first one the others."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _is_srun()


def _is_srun() -> bool:
    """Several tasks of SLURM; a shell of a batch job has the variables too, but no task to be."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return several and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def local_processes(otherwise: Any) -> Any:
    """How many processes of the run this machine has, where torchrun or srun has decided; else `otherwise`."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if _is_srun():
        return int(os.environ["SLURM_NTASKS"]) // machines()
    return otherwise


def machines() -> int:
    """How many machines take part."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) if _is_srun() else 1


def slurm_directory() -> str | None:
    """The name of a run directory that all tasks of a SLURM job, also when it is requeued, call the same."""
    if not _is_srun():
        return None
    step = os.environ.get("SLURM_STEP_ID", "0")
    return f"slurm_{os.environ['SLURM_JOB_ID']}" + (f"_{step}" if step != "0" else "")


def agreed(first: Callable[[], str]) -> str:
    """Of the processes of torchrun, what the first one says; the others wait for it."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise InputError("torchrun keeps no store here, so its processes cannot agree; give hydra.run.dir=FOLDER")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=SECONDS_TO_MEET)
    store = TCPStore(address, port, is_master=False, timeout=limit, wait_for_workers=False)
    name = f"nsr/{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if global_rank() == 0:
        store.set(name, first())
    return str(store.get(name).decode())


def remember_devices() -> None:
    """Keeps for the jobs of a sweep which GPUs the command sees; submitit's local jobs would see none."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ALL)
    if seen:
        os.environ[DEVICES_OF_SWEEP] = seen


def see_devices_again() -> None:
    """In a local job of submitit that was given no GPUs of its own: those of the command."""
    is_hidden = os.environ.get("SUBMITIT_EXECUTOR") == "local" and os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if is_hidden and DEVICES_OF_SWEEP in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[DEVICES_OF_SWEEP]
        if os.environ[DEVICES_OF_SWEEP] == ALL:
            del os.environ["CUDA_VISIBLE_DEVICES"]


# ---------------------------------------------------------------- processes that the first one starts


def start_processes_of_this_job() -> None:
    """From here on a further process of Lightning's DDP gets the job at hand, not the command line of the sweep."""
    from pytorch_lightning.strategies.launchers import subprocess_script

    subprocess_script._hydra_subprocess_cmd = _command
    subprocess_script._launch_process_observer = lambda child_processes: Observer(child_processes).start()


class Observer(threading.Thread):
    """Tells that a further process has died; kills the run where it does not end of that.

    Lightning's own kills the first process at once, and with it a whole sweep, and an error that was about to be told.
    """

    left = threading.Event()  # set where the run is over

    def __init__(self, processes: Sequence[subprocess.Popen[Any]]):
        super().__init__(daemon=True)
        self.processes = processes
        Observer.left = threading.Event()

    def run(self) -> None:
        left = self.left
        while not left.wait(0.5):
            codes = {process.pid: process.poll() for process in self.processes}
            failed = {pid: code for pid, code in codes.items() if code}
            if failed and not left.is_set():
                told = ", ".join(f"{pid} with code {code}" for pid, code in failed.items())
                print(f"a process of this run has ended: {told}", file=sys.stderr, flush=True)
                if not left.wait(SECONDS_TO_END):
                    for process in self.processes:
                        process.kill()
                    os.kill(os.getpid(), signal.SIGKILL)
            if all(code is not None for code in codes.values()):
                return


def _command(local_rank: int) -> tuple[list[str], str]:
    """The job at hand once more, in its own run directory; as Lightning's function of that name."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_original_cwd

    job = HydraConfig.get()
    overrides = [override for override in job.overrides.task if not override.startswith("hydra")]
    return [
        *(sys.executable, str(PROGRAMS / f"{job.job.config_name}.py"), *overrides),
        *(f"hydra.run.dir='{job.runtime.output_dir}'", f"hydra.job.name={job.job.config_name}_process_{local_rank}"),
    ], get_original_cwd()


def leave_processes(trainer: Any, *, orderly: bool) -> None:
    """Ends what a run of several processes leaves in this one: the next job of a sweep starts its own.

    Args:
        orderly: whether the others come to their end by themselves; else they are killed.
    """
    from pytorch_lightning.utilities.rank_zero import rank_zero_only
    from torch import distributed

    Observer.left.set()
    launched = list(getattr(getattr(trainer, "strategy", None) and trainer.strategy.launcher, "procs", []))
    for process in launched:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END if orderly else 0)
        process.kill()
        process.wait()
    if is_started_from_outside():
        return
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    if launched:
        for name in OF_A_RUN:
            os.environ.pop(name, None)
        rank_zero_only.rank = 0  # type: ignore[attr-defined]


def check_same_settings(settings: Mapping[str, Any], strategy: Any) -> None:
    """RuntimeError where the processes of a run have different settings; the first alone knows of its sweep's group."""
    compared = {name: value for name, value in settings.items() if name != "logger"}
    mine = hashlib.sha256(json.dumps(compared, sort_keys=True, default=str).encode()).hexdigest()
    if strategy.broadcast(mine) != mine:
        raise RuntimeError(f"process {strategy.global_rank} has other settings than the first; nothing was trained")
