"""Several processes of one run: their ranks, their start from outside, their end. Loads torch only where needed."""

from __future__ import annotations

import atexit
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nsr.run.files import write_text

PACKAGE_PARENT = Path(__file__).resolve().parents[2]  # the folder to import nsr from
OF_A_RUN = ["LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"]
DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)  # full, read-only, beyond a quota or ulimit
SECONDS_TO_END = 30.0  # for a run one of whose processes has ended
SECONDS_TO_REPORT = 10.0  # for a process that has lost its connections


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


class ProcessFailed(RuntimeError):
    """Another process of this run has failed; the text is one line."""


def hand_over(directory: Path, message: str) -> None:
    """Leave the error of this process, one line, in the run directory: the first process reports it."""
    with suppress(OSError):
        write_text(_handed_over(directory, global_rank()), message)


def _handed_over(directory: Path, rank: int) -> Path:
    return directory / f"error_of_process_{rank}.txt"


class Observer(threading.Thread):
    """Notices that a further process has failed or is stopped; ends the run if it has not ended 30 seconds later.

    Lightning's own kills the first process at once, and with it a whole sweep, and an error that was about to be shown.

    Args:
        processes: those that the first one has started.
        directory: of the run.
    """

    left = threading.Event()  # set when the run is over
    problem = ""  # in one line

    def __init__(self, processes: Sequence[subprocess.Popen[Any]], directory: Path):
        super().__init__(daemon=True)
        self.processes, self.directory = processes, directory
        self.stopped_since: float | None = None
        Observer.left, Observer.problem = threading.Event(), ""

    def run(self) -> None:
        left = self.left
        while not left.wait(0.5):
            self._look_for_stopped()
            Observer.problem = Observer.problem or failure(self.processes, self.directory)
            if Observer.problem and not left.wait(SECONDS_TO_END):
                os.kill(os.getpid(), signal.SIGTERM)  # raises ProcessFailed in the main thread, see nsr.run.signals
                if left.wait(SECONDS_TO_END / 2):
                    return
                print(f"error: {Observer.problem}", file=sys.stderr, flush=True)  # it waits in a library's code
                for process in self.processes:
                    process.kill()
                os.kill(os.getpid(), signal.SIGKILL)
            if all(process.poll() is not None for process in self.processes):
                return

    def _look_for_stopped(self) -> None:
        """End a process that has been stopped for 30 seconds while this one runs; the others wait for it."""
        stopped = [process for process in self.processes if process.poll() is None and _is_stopped(process.pid)]
        now = time.monotonic()
        if not stopped or self.stopped_since is None:
            self.stopped_since = now if stopped else None
        elif now - self.stopped_since > SECONDS_TO_END:
            pid = stopped[0].pid
            Observer.problem = f"process {pid} of this run was stopped for {SECONDS_TO_END:.0f} s, and is killed"
            for process in stopped:
                process.kill()


def _is_stopped(pid: int) -> bool:
    if not hasattr(os, "waitid"):
        return False
    with suppress(OSError):
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def failure(processes: Sequence[subprocess.Popen[Any]], directory: Path) -> str:
    """Return the error of a process, or one line on those that have ended without one; "" where none has failed."""
    for rank in range(1, len(processes) + 1):
        with suppress(OSError):
            return _handed_over(directory, rank).read_text(encoding="utf-8")
    failed = [f"{each.pid} with code {code}" for each in processes if (code := each.poll())]
    return f"a process of this run has ended: {', '.join(failed)}" if failed else ""


def observe(processes: Sequence[subprocess.Popen[Any]], *, directory: Path) -> None:
    """Watch the further processes of a run, which has this directory."""
    _forget_errors(directory, len(processes))  # of a run that was killed
    Observer(processes, directory).start()


def _forget_errors(directory: Path, processes: int) -> None:
    for rank in range(1, processes + 1):
        with suppress(OSError):
            _handed_over(directory, rank).unlink(missing_ok=True)


def fault(error: BaseException) -> str | None:
    """Return one line for an error whose cause is another process: of the run, or one that loads images; else None."""
    text = str(error)
    if isinstance(error, ProcessFailed):
        return text
    if "DataLoader worker" in text:
        first = text.partition(". ")[0]
        return f"{first}; killed, or out of memory: data.num_workers=0 loads the images without further processes"
    if any(mark in text for mark in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")):
        return Observer.problem or f"another process of this run has ended ({text.splitlines()[0][:200]})"
    return None


def leave_processes(trainer: Any, *, orderly: bool) -> None:
    """End the processes that a run has started: the next job of a sweep starts its own.

    Args:
        trainer: of the run; None where it was not made.
        orderly: wait for the others to end by themselves; else they are killed.
    """
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    launched = list(getattr(getattr(getattr(trainer, "strategy", None), "launcher", None), "procs", []))
    if not orderly and launched and (error := sys.exc_info()[1]) is not None and fault(error) is not None:
        directory = Path(trainer.default_root_dir)
        deadline = time.monotonic() + SECONDS_TO_REPORT  # its connections close before it has reported
        while not (found := Observer.problem or failure(launched, directory)) and time.monotonic() < deadline:
            time.sleep(0.05)
        Observer.problem = found
    Observer.left.set()
    for process in launched:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END if orderly else 0)
        process.kill()
        process.wait()
    if launched:
        _forget_errors(Path(trainer.default_root_dir), len(launched))
    if is_started_from_outside():
        if orderly:  # else others may still wait for this process, and it for them
            atexit.register(_leave_group)  # not before: the next job of a sweep takes the same group
        return
    _leave_group()
    if launched:
        for name in OF_A_RUN:
            os.environ.pop(name, None)
        rank_zero_only.rank = 0  # type: ignore[attr-defined]


def _leave_group() -> None:
    """Leave the process group: gloo's threads end a process that exits in one with an abort, now and then."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class _Tolerant(io.FileIO):
    """A stream whose reader may go away, such as `| head -1` or a closed terminal: what is written then is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, *DISK_ERRORS):
                raise
            return memoryview(data).nbytes


def tolerate_closed_streams() -> None:
    """Let a run continue where nobody reads what it prints, or where a stream was closed before it started (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the free number, which a file of the run would get later
            os.set_inheritable(nowhere, nowhere <= 2)
            setattr(sys, name, open(nowhere, mode, closefd=False))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(AttributeError, OSError, ValueError):  # replaced by a caller, or closed
            raw = _Tolerant(stream.fileno(), "w", closefd=False)
            text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
            setattr(sys, name, text)


def check_same_settings(settings: Mapping[str, Any], strategy: Any) -> None:
    """Raise RuntimeError where a process has other settings than the first, which alone knows its sweep's group."""
    compared = {name: value for name, value in settings.items() if name != "logger"}
    mine = hashlib.sha256(json.dumps(compared, sort_keys=True, default=str).encode()).hexdigest()
    if strategy.broadcast(mine) != mine:
        raise RuntimeError(f"process {strategy.global_rank} has other settings than the first; nothing was trained")
