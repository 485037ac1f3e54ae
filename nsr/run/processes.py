"""Several processes of one run: their ranks, their start from outside, their end. Loads torch only where needed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGE_PARENT = Path(__file__).resolve().parents[2]  # the folder to import nsr from
OF_A_RUN = ["LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"]
SECONDS_TO_END = 30.0  # for a run one of whose processes has ended


def global_rank() -> int:
    """Return the number of this process among all of the run, also before they are connected."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # in Lightning's order
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def is_started_from_outside() -> bool:
    """Return whether torchrun or srun starts every process; otherwise the first one starts the others."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _is_srun()


def _is_srun() -> bool:
    """Return whether this is one of several tasks of SLURM; the shell of a batch job has the variables, but is none."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return several and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def local_processes(otherwise: Any) -> Any:
    """Return how many processes of the run this machine has, where torchrun or srun decides; else `otherwise`."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) // machines() if _is_srun() else otherwise


def machines() -> int:
    """Return how many machines take part."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) if _is_srun() else 1


def slurm_directory() -> str | None:
    """Return a directory name that all tasks of a SLURM job agree on, also when it is requeued; else None."""
    if not _is_srun():
        return None
    step = os.environ.get("SLURM_STEP_ID", "0")
    return f"slurm_{os.environ['SLURM_JOB_ID']}" + (f"_{step}" if step != "0" else "")


def make_importable() -> None:
    """Let this process and all that it starts import nsr and the modules of the working directory."""
    paths = [str(Path.cwd()), str(PACKAGE_PARENT)]
    sys.path += [path for path in paths if path not in sys.path]
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*known, *(path for path in paths if path not in known)])


class Observer(threading.Thread):
    """Reports that a further process has died, and kills the run if it has not ended 30 seconds later.

    Lightning's own kills the first process at once, and with it a whole sweep, and an error that was about to be shown.
    """

    left = threading.Event()  # set when the run is over

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
                which = ", ".join(f"{pid} with code {code}" for pid, code in failed.items())
                print(f"a process of this run has ended: {which}", file=sys.stderr, flush=True)
                if not left.wait(SECONDS_TO_END):
                    for process in self.processes:
                        process.kill()
                    os.kill(os.getpid(), signal.SIGKILL)
            if all(code is not None for code in codes.values()):
                return


def observe(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Watch the further processes of this run."""
    Observer(processes).start()


def leave_processes(trainer: Any, *, orderly: bool) -> None:
    """End the processes that a run has started: the next job of a sweep starts its own.

    Args:
        trainer: of the run; None where it was not made.
        orderly: wait for the others to end by themselves; else they are killed.
    """
    from pytorch_lightning.utilities.rank_zero import rank_zero_only
    from torch import distributed

    Observer.left.set()
    launched = list(getattr(getattr(getattr(trainer, "strategy", None), "launcher", None), "procs", []))
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
    """Raise RuntimeError where a process has other settings than the first, which alone knows its sweep's group."""
    compared = {name: value for name, value in settings.items() if name != "logger"}
    mine = hashlib.sha256(json.dumps(compared, sort_keys=True, default=str).encode()).hexdigest()
    if strategy.broadcast(mine) != mine:
        raise RuntimeError(f"process {strategy.global_rank} has other settings than the first; nothing was trained")
