"""Signals that ask a run to end: it ends where it can be resumed, and its exit code names the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nsr.run.plain_text import printable
from nsr.run.processes import Observer, ProcessFailed

HANGUP = getattr(signal, "SIGHUP", None)  # a terminal or an ssh session closes; Windows has none
REQUEUE = signal.SIGUSR1  # that SLURM is asked to send ahead of the time limit: #SBATCH --signal=USR1@120


class Interrupted(BaseException):
    """A signal ends the run; no Exception, so that a sweep ends with it."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """The exit code of a shell: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


def requeue() -> None:
    """Ask SLURM to start this job, or this task of an array, again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    print(printable(f"job {job} is not requeued: {problem}" if problem else f"job {job} is requeued"), file=sys.stderr)


class Signals:
    """The signal received: once `patient`, the first one is kept; the second one, or one before, ends at once."""

    def __init__(self) -> None:
        self.patient = False
        self.received = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Receive a signal."""
        if number == HANGUP and self.received:
            return  # a shell and the system both send it as a terminal closes
        if number == signal.SIGTERM and Observer.problem:
            raise ProcessFailed(Observer.problem)  # this step would never end
        if not self.patient or self.received:
            raise Interrupted(number)
        self.received = number
        if os.environ.get("LOCAL_RANK", "0") == "0":
            text = (
                f"{signal.Signals(number).name}: finishing this step, then a checkpoint; a second signal ends at once"
            )
            print(text, file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[Signals]:
    """Turn SIGTERM, SIGHUP, Ctrl-C and, in a SLURM job, SIGUSR1 into Interrupted; no effect outside the main thread.

    SIGHUP is left alone where it is ignored already, by nohup.
    """
    signals, Observer.problem = Signals(), ""
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    wanted = [signal.SIGTERM, signal.SIGINT, *([REQUEUE] if "SLURM_JOB_ID" in os.environ else [])]
    if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
        wanted.append(HANGUP)
    before = {number: signal.signal(number, signals.handle) for number in wanted}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
