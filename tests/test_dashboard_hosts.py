"""A host that hangs, W&B's own process dead, a full disk, a folder that can only be read: a run goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.hanging_host import host_that_hangs_later, silent_host
from tests.offline_runs import WANDB, offline_history, offline_run
from tests.small_disk import remount
from tests.small_disk import small_disk as small_disk_at

ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


# logs a thousand rows and tells how long it took to begin, to log and to finish
PROGRAM = """
import json, sys, time
from nsr.loggers import finish, log_results
from nsr.loggers import wandb as home
home.FINISH_SECONDS = 5
started = time.monotonic()
logger = home.wandb_logger(save_dir=sys.argv[1])
begun = time.monotonic()
slowest = 0.0
for step in range(1000):
    before = time.monotonic()
    logger.log_metrics({f"figure{number}": step for number in range(50)}, step=step)
    slowest = max(slowest, time.monotonic() - before)
    if step == 500:
        exec(sys.argv[2])
log_results(logger, {"test/clean_accuracy": 0.5}, step=1000)
logged = time.monotonic()
finish(logger)
finished = time.monotonic()
seconds = {"begin": begun - started, "slowest": slowest, "finish": finished - logged, "finished": finished}
print(json.dumps(seconds), flush=True)
"""


def timed(directory: Path, environment: dict[str, str], *, halfway: str = "") -> tuple[dict[str, float], str]:
    """Seconds by part, those after the program's last line as `exit`, and what was told."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(directory), halfway]
    done = subprocess.run(
        command, cwd=ROOT, env={**ONE_THREAD, **environment}, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    ended = time.monotonic()  # the same clock in all processes
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    seconds = json.loads(line)
    return seconds | {"exit": ended - seconds["finished"]}, done.stdout + done.stderr


@pytest.mark.slow
def test_a_host_that_never_answers(tmp_path):
    with silent_host() as (address, connections):
        seconds, told = timed(tmp_path / "run", {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40})
    assert connections  # it was asked
    assert seconds["begin"] < 25
    assert seconds["slowest"] < 1
    assert seconds["finish"] < 15
    assert seconds["exit"] < 15
    assert told.count("this run is recorded offline") == 1
    assert len(offline_history(offline_run(tmp_path / "run"))) == 1000


@pytest.mark.slow
def test_a_host_that_hangs_after_the_run_has_begun(tmp_path):
    with host_that_hangs_later() as (address, asked):
        seconds, told = timed(tmp_path / "run", {"WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40})
    assert any("file_stream" in request for request in asked)
    assert "offline" not in told
    assert seconds["slowest"] < 1
    assert seconds["finish"] < 15
    assert seconds["exit"] < 15
    (segment,) = (tmp_path / "run" / "wandb").glob("run-*")
    (advice,) = re.findall(r"the rest: wandb (sync --include-online .+)", told)
    assert advice.endswith(str(segment))
    listed = subprocess.run(
        [WANDB, *advice.split(), "--dry-run"], env=ONE_THREAD, capture_output=True, text=True, check=True
    )
    assert "Would sync 1 run(s)" in listed.stdout + listed.stderr
    assert len(offline_history(segment)) == 1000


@pytest.mark.slow
def test_a_whole_run_beside_a_host_that_never_answers(tmp_path):
    """Its files are there, and the same as without a dashboard."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY[1:]]
    with silent_host() as (address, _):
        environment = {**ONE_THREAD, "WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40}
        environment.pop("WANDB_MODE", None)
        for logger in ("wandb", "csv"):
            directory = tmp_path / logger
            done = subprocess.run(
                [*command, f"logger={logger}", f"hydra.run.dir={directory}"],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert ("this run is recorded offline" in (directory / "train.log").read_text()) is (logger == "wandb")
    for name in ("metrics.json", "metrics.csv", "sensitivity.csv"):
        assert (tmp_path / "wandb" / name).read_bytes() == (tmp_path / "csv" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "slowest"), [("SIGKILL", 1), ("SIGSTOP", 3)], ids=["dies", "hangs"])
def test_the_local_process_of_wandb(tmp_path, ends, slowest):
    """One warning, and the program ends as if nothing had been."""
    halfway = f"""
import os, signal
from tests.test_dashboard_sweeps import children
home.HANG_SECONDS = 2.0
os.kill(children(os.getpid())[0], signal.{ends})  # the others of W&B end with it
time.sleep(1)
"""
    seconds, told = timed(tmp_path / "run", {"WANDB_MODE": "offline"}, halfway=halfway)
    assert told.count("the run goes on") == 1
    assert seconds["slowest"] < slowest
    assert seconds["finish"] < 15
    assert seconds["exit"] < 15


@pytest.fixture(params=["wandb"])
def small_disk(tmp_path, request):
    """A file system of four megabytes, twice what a thousand rows take, at RUN/wandb or as the test says."""
    with small_disk_at(tmp_path / "run" / request.param, "4m") as folder:
        yield folder


@pytest.mark.slow
def test_a_full_disk(small_disk):
    filler = str(small_disk / "filler")  # after the second within which W&B has written what was logged
    halfway = f"time.sleep(2.5); open({filler!r}, 'wb', buffering=0).write(bytes(2 ** 22))"
    seconds, _ = timed(small_disk.parent, {"WANDB_MODE": "offline"}, halfway=halfway)
    assert seconds["slowest"] < 1
    assert seconds["finish"] < 15
    assert len(offline_history(offline_run(small_disk.parent))) >= 500  # what was logged before is there


@pytest.mark.slow
def test_a_folder_that_can_only_be_read(small_disk):
    remount(small_disk, "ro")
    seconds, told = timed(small_disk.parent, {"WANDB_MODE": "offline"})
    assert seconds["finish"] < 15
    assert told.count("this run goes without") == 1


TENSORBOARD = """
import sys
from nsr.loggers import finish, log_results
from nsr.loggers.tensorboard import tensorboard_logger
logger = tensorboard_logger(save_dir=sys.argv[1])
for step in range(20000):
    logger.log_metrics({f"figure{number}": step for number in range(5)}, step=step)
logger.finalize("success")
log_results(logger, {"test/clean_accuracy": 0.5}, step=1000)
finish(logger)
print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["tensorboard"], indirect=True)
def test_tensorboard_on_a_full_disk(small_disk):
    command = [sys.executable, "-c", TENSORBOARD, str(small_disk.parent)]
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ended"
    assert done.stderr.count("the run goes on") == 1
