"""No account, no network, a host that hangs, a full disk, a folder that cannot be written: a run goes on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsr.dashboards import finish, log_picture, log_results, log_sensitivities, log_settings
from tests.conftest import TINY
from tests.hanging_host import host_that_hangs_later, silent_host
from tests.offline_runs import offline_history, offline_run

ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


# logs a thousand rows and tells how long it took to begin, to log and to finish
PROGRAM = """
import json, sys, time
from nsr.dashboards import finish, log_results
from nsr.dashboards import wandb as home
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
    assert f"wandb sync {segment}" in told
    assert len(offline_history(segment)) == 1000


@pytest.mark.slow
def test_a_whole_run_beside_a_host_that_never_answers(tmp_path):
    """Its files are there, and the same as without a dashboard."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY[1:], "attacks=[clean]"]
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
def test_the_local_process_of_wandb_dies(tmp_path):
    """One warning, and the program ends as if nothing had been."""
    halfway = """
import os, signal
from tests.test_dashboard_sweeps import children
for process in children(os.getpid()):
    os.kill(process, signal.SIGKILL)
time.sleep(1)
"""
    seconds, told = timed(tmp_path / "run", {"WANDB_MODE": "offline"}, halfway=halfway)
    assert told.count("the run goes on") == 1
    assert seconds["slowest"] < 1
    assert seconds["finish"] < 15


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte at RUN/wandb."""
    folder = tmp_path / "run" / "wandb"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk):
    halfway = f"open({str(small_disk / 'filler')!r}, 'wb', buffering=0).write(bytes(2 ** 20))"
    seconds, _ = timed(small_disk.parent, {"WANDB_MODE": "offline"}, halfway=halfway)
    assert seconds["slowest"] < 1
    assert seconds["finish"] < 15
    assert len(offline_history(offline_run(small_disk.parent))) >= 400  # what was logged before is there


@pytest.mark.slow
def test_a_folder_that_can_only_be_read(small_disk):
    done = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a file system cannot be made read-only here: {done.stderr.strip()}")
    seconds, told = timed(small_disk.parent, {"WANDB_MODE": "offline"})
    assert seconds["finish"] < 15
    assert told.count("this run goes without") == 1


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_no_folder_can_be_made(tmp_path, caplog, kind):
    """Where a file is in its way, as no user, root neither, can write there."""
    (tmp_path / kind).write_text("in the way")
    made = make(kind, tmp_path)
    log_settings(made, {"optimizer": {"lr": 0.1}})
    made.log_metrics({"figure": 1.0}, step=0)
    log_results(made, {"test/clean_accuracy": 0.5}, step=1)
    finish(made)
    assert caplog.text.count("this run goes without") == 1


def make(kind: str, directory: Path):
    if kind == "tensorboard":
        from nsr.dashboards.tensorboard import tensorboard_logger

        return tensorboard_logger(save_dir=str(directory))
    from nsr.dashboards.wandb import wandb_logger

    return wandb_logger(save_dir=str(directory), mode="offline")


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_whatever_a_dashboard_raises_is_told_once(tmp_path, monkeypatch, caplog, kind):
    """Each way into it fails; Lightning's own calls are among them."""

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(f"no space left\nat {name}")

    made = make(kind, tmp_path)
    real = made.experiment
    made._experiment = Broken()
    with caplog.at_level(logging.WARNING):
        log_settings(made, {"optimizer": {"lr": 0.1}})
        made.log_metrics({"figure": 1.0}, step=0)
        log_sensitivities(made, {}, {}, step=0, epoch=0)
        log_picture(made, "picture", picture(tmp_path), step=0)
        log_results(made, {"test/clean_accuracy": 0.5}, step=0)
        made.save()
        finish(made)
        made.finalize("success")
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("nsr")]
    name = {"wandb": "W&B", "tensorboard": "TensorBoard"}[kind]
    assert warnings == [f"{name} has failed (no space left); the run goes on, its files are complete without it"]
    made._experiment = real
    finish(made)


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path):
    from nsr.dashboards import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    modes = []
    monkeypatch.setattr(wandb, "_begin", lambda *arguments: modes.append(arguments[-1]))
    wandb.wandb_logger(save_dir=str(tmp_path))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    wandb.wandb_logger(save_dir=str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.wandb_logger(save_dir=str(tmp_path))
    wandb.wandb_logger(save_dir=str(tmp_path), mode="online")
    assert modes == ["offline", "online", "offline", "online"]


def test_wandb_falls_back_where_it_cannot_be_reached(monkeypatch, tmp_path, caplog):
    from nsr.dashboards import wandb

    asked = []

    def begin(save_dir, labels, mode):
        asked.append(mode)
        if mode == "online":
            raise wandb.wandb.errors.CommError("no network")
        return "logger"

    monkeypatch.setattr(wandb, "_begin", begin)
    assert wandb.wandb_logger(save_dir=str(tmp_path), mode="online") == "logger"
    assert asked == ["online", "offline"]
    assert "recorded offline" in caplog.text


@pytest.mark.parametrize("rank", [{"RANK": "1", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "1"}])
def test_only_the_first_of_all_processes_has_a_run(monkeypatch, tmp_path, rank):
    from nsr.dashboards import wandb

    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    begun = []
    monkeypatch.setattr(wandb, "_begin", lambda *arguments: begun.append(arguments))
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    wandb.wandb_logger(save_dir=str(tmp_path))
    assert not begun
    for name in rank:
        monkeypatch.setenv(name, "0")
    wandb.wandb_logger(save_dir=str(tmp_path))
    assert len(begun) == 1
