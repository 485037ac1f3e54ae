"""status.json of a run or an evaluation: running, finished, interrupted or failed, and the command it came from."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nsr.run.directory import HEARTBEAT_SECONDS, job_of_slurm
from nsr.run.files import write_json
from nsr.run.resumption import check_unused
from nsr.run.signals import Interrupted


@contextmanager
def signs_of_life(path: Path) -> Iterator[None]:
    """Touch the file each minute, from a thread, while the block runs."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def recorded_status(directory: Path, program: str, overrides: Sequence[str]) -> Iterator[None]:
    """Write status.json as the block begins and as it ends; a process killed outright leaves `running` behind it.

    Args:
        directory: of the run.
        program: 'train.py' or 'evaluate.py'.
        overrides: of the command.

    Errors:
        InputError: a living process writes into the directory.
    """
    path = directory / "status.json"
    check_unused(directory)
    origin = {"program": program, "overrides": list(overrides), "process": os.getpid(), "host": socket.gethostname()}
    write_json(path, {"status": "running", **origin, "job": job_of_slurm()})
    try:
        with signs_of_life(path):
            yield
    except Interrupted as interruption:
        write_json(path, {"status": "interrupted", "reason": str(interruption), **origin})
        raise
    except BaseException as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        with suppress(OSError):  # a full disk is the error that is shown
            write_json(path, {"status": "failed", "reason": reason, **origin})
        raise
    write_json(path, {"status": "finished", **origin})
