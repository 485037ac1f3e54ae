"""status.json of a run or an evaluation: whether it runs, has finished or failed, and the command that it came from."""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig

from nsr.app.command_line import run_directory
from nsr.run.directory import SIGN_SECONDS, job_of_slurm
from nsr.run.files import write_json
from nsr.run.processes import global_rank
from nsr.run.resumption import check_unused
from nsr.run.signals import Interrupted

Result = TypeVar("Result")


def leaves_status(program: str) -> Callable[[Callable[[Any], Result]], Callable[[Any], Result]]:
    """For a job of hydra: its run directory says in status.json how it stands; of many processes the first writes.

    Args:
        program: 'train.py' or 'evaluate.py'.
    """

    def decorate(job: Callable[[Any], Result]) -> Callable[[Any], Result]:
        @functools.wraps(job)
        def recorded(config: Any) -> Result:
            if global_rank() != 0:
                return job(config)
            with recorded_status(run_directory(), program, list(HydraConfig.get().overrides.task)):
                return job(config)

        return recorded

    return decorate


@contextmanager
def signs_of_life(path: Path) -> Iterator[None]:
    """Inside, a thread touches the file each minute."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(SIGN_SECONDS):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def recorded_status(directory: Path, program: str, overrides: list[str]) -> Iterator[None]:
    """Writes status.json as the block begins and as it ends; a process killed outright leaves `running` behind it."""
    path = directory / "status.json"
    check_unused(directory)
    origin = {"program": program, "overrides": overrides, "process": os.getpid(), "host": socket.gethostname()}
    write_json(path, {"status": "running", **origin, "job": job_of_slurm()})
    try:
        with signs_of_life(path):
            yield
    except Interrupted as interruption:
        write_json(path, {"status": "interrupted", "reason": str(interruption), **origin})
        raise
    except BaseException as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        with suppress(OSError):  # a full disk is the error that is told
            write_json(path, {"status": "failed", "reason": reason, **origin})
        raise
    write_json(path, {"status": "finished", **origin})
