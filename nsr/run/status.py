"""status.json of a run or an evaluation: running, finished, interrupted or failed, and its command."""

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
def recorded_status(directory: Path, program: str, overrides: Sequence[str]) -> Iterator[None]:
    """Write status.json as the block begins and as it ends; a process killed outright leaves `running`.

    Args:
        program: 'train.py' or 'evaluate.py'.

    Errors:
        InputError: a living process writes into the directory.
    """
    path = directory / "status.json"
    check_unused(directory)
    origin = {"program": program, "overrides": list(overrides), "process": os.getpid(), "host": socket.gethostname()}
    write_json(path, {"status": "running", **origin, "job": job_of_slurm()})
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
    try:
        yield
    except Interrupted as interruption:
        write_json(path, {"status": "interrupted", "reason": str(interruption), **origin})
        raise
    except BaseException as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        with suppress(OSError):  # a full disk is the error that is shown
            write_json(path, {"status": "failed", "reason": reason, **origin})
        raise
    else:
        write_json(path, {"status": "finished", **origin})
    finally:
        ended.set()


def _touch(path: Path, ended: threading.Event) -> None:
    """Touch the file each minute, a sign of life, until the event is set."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)
