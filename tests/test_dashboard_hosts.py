"""A server that hangs, W&B's own process dead or stopped, a full disk, a terminal without a key: the run continues."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.failures import host_that_hangs_later, silent_host, small_disk
from tests.offline_runs import WANDB, offline_history, offline_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
WANDB_VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL")
PLAIN = {name: value for name, value in os.environ.items() if name not in WANDB_VARIABLES} | {"OMP_NUM_THREADS": "1"}
KEY = {"WANDB_API_KEY": "k" * 40}


# logs a thousand rows and prints how long it took to start, to log and to finish
PROGRAM = """
import json, sys, time
from nsr.loggers import finish, log_results
from nsr.loggers import wandb as service
from nsr.loggers.fault_tolerant import fault_tolerant
service.FINISH_SECONDS = 5
begun = time.monotonic()
logger = fault_tolerant(service.wandb_logger(save_dir=sys.argv[1]))
started = time.monotonic()
slowest = 0.0
for step in range(1000):
    before = time.monotonic()
    logger.log_metrics({f"metric{number}": step for number in range(50)}, step=step)
    slowest = max(slowest, time.monotonic() - before)
    if step == int(sys.argv[2]):
        exec(sys.argv[3])
log_results([logger], {"test/clean_accuracy": 0.5}, step=1000)
logged = time.monotonic()
finish([logger])
finished = time.monotonic()
seconds = {"start": started - begun, "slowest": slowest, "finish": finished - logged, "finished": finished}
print(json.dumps(seconds), flush=True)
"""


def timed(directory: Path, environment: dict[str, str], *, action: str = "", step: int = 500, slowest: int = 1) -> str:
    """Run PROGRAM with `action` after a step, check its seconds, and return what it printed."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(directory), str(step), action]
    printed = directory / "printed"  # no pipe, which a stopped process would keep open
    with printed.open("w") as file:
        places = {"cwd": ROOT, "env": {**PLAIN, **environment}, "stdout": file, "stderr": file}
        done = subprocess.run(command, **places, timeout=300, check=False)
    ended = time.monotonic()  # the same clock in all processes
    text = printed.read_text()
    assert done.returncode == 0, text
    seconds = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert seconds["slowest"] < slowest
    assert seconds["start"] < 25
    assert seconds["finish"] < 15
    assert ended - seconds["finished"] < 15
    return text


@pytest.mark.parametrize("answers", ["never", "refuses"])
def test_a_key_without_a_network(tmp_path, answers):
    with silent_host() as silent:
        address = silent if answers == "never" else "http://127.0.0.1:9"
        printed = timed(tmp_path, {"WANDB_BASE_URL": address, **KEY})
    assert printed.count("this run is recorded offline") == 1
    assert len(offline_history(offline_run(tmp_path))) == 1000


def test_a_server_that_hangs_after_the_run_has_started(tmp_path):
    with host_that_hangs_later() as (address, asked):
        printed = timed(tmp_path, {"WANDB_BASE_URL": address, **KEY})
    assert any("file_stream" in request for request in asked)
    assert "offline" not in printed
    (segment,) = (tmp_path / "wandb").glob("run-*")
    (advice,) = re.findall(r"upload the rest with: wandb (sync --include-online .+)", printed)
    assert advice.endswith(str(segment))
    listed = subprocess.run([WANDB, *advice.split(), "--dry-run"], env=PLAIN, capture_output=True, text=True)
    assert "Would sync 1 run(s)" in listed.stdout + listed.stderr
    assert len(offline_history(segment)) == 1000


@pytest.mark.parametrize("mode", [None, "online"])
def test_a_terminal_without_a_key_is_asked_nothing(tmp_path, mode):
    """Standard input and output are a terminal, on which W&B would prompt."""
    program = f"""
import sys
from nsr.loggers.wandb import finish, wandb_logger
assert sys.stdin.isatty() and sys.stdout.isatty()
logger = wandb_logger(save_dir={str(tmp_path)!r}, mode={mode!r})
logger.log_metrics({{"metric": 1.0}}, step=0)
finish(logger)
print("ended")
"""
    environment = {**PLAIN, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        assert process.wait(180) == 0
        printed = os.read(ours, 65536).decode().splitlines()
    finally:
        process.kill()
        os.close(ours)
    assert printed[-1] == "ended"
    assert len(printed) == (1 if mode is None else 2)  # that there is no key, where `online` was asked for
    assert len(offline_history(offline_run(tmp_path))) == 1


@pytest.mark.parametrize(
    ("ends", "step", "slowest"),
    [("SIGKILL", 500, 1), ("SIGSTOP", 500, 4), ("SIGSTOP", 999, 1)],
    ids=["dies", "hangs", "hangs at the end"],
)
def test_the_local_process_of_wandb(tmp_path, ends, step, slowest):
    """One line is logged, and the program ends as usual."""
    action = f"""
import os, signal
from pathlib import Path
from tests.offline_runs import children
service.HANG_SECONDS = 2.0
process = children(os.getpid())[0]
Path(sys.argv[1], "process").write_text(str(process))
os.kill(process, signal.{ends})  # the others of W&B end with it
time.sleep(1)
"""
    try:
        printed = timed(tmp_path, {"WANDB_MODE": "offline"}, action=action, step=step, slowest=slowest)
    finally:
        with suppress(OSError):
            os.kill(int((tmp_path / "process").read_text()), signal.SIGKILL)
    assert printed.count("the run continues") == 1


def test_wandb_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "wandb", "4m") as disk:  # a thousand rows take half of it
        filler = str(disk / "filler")  # after the second within which W&B has written what was logged
        action = f"time.sleep(2.5); open({filler!r}, 'wb', buffering=0).write(bytes(2 ** 22))"
        timed(tmp_path, {"WANDB_MODE": "offline"}, action=action)
        assert len(offline_history(offline_run(tmp_path))) >= 500  # what was logged before is there


TENSORBOARD = """
import sys
from nsr.loggers import finish, log_results
from nsr.loggers.fault_tolerant import fault_tolerant
from nsr.loggers.tensorboard import tensorboard_logger
logger = fault_tolerant(tensorboard_logger(save_dir=sys.argv[1]))
for step in range(20000):
    logger.log_metrics({f"metric{number}": step for number in range(5)}, step=step)
logger.finalize("success")
log_results([logger], {"test/clean_accuracy": 0.5}, step=1000)
finish([logger])
print("ended")
"""


def test_tensorboard_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "tensorboard", "4m"):
        command = [sys.executable, "-c", TENSORBOARD, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=PLAIN, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ended"
    assert done.stderr.count("the run continues") == 1
