"""Faults of a real run: a process stopped or killed, its directory deleted, a file too large. One line, no hang."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, in_a_process, read_json, rows, without

pytestmark = pytest.mark.slow
# the user's own command, that waits 2 s instead of 30 s for a process
COMMAND = """
from nsr.run import processes
processes.SECONDS_TO_END = 2.0
from nsr.app.main import train
train()
"""
SETTINGS = (*without("trainer.max_epochs", "trainer.accelerator", "test_attacks."), "test_attacks=[clean]")
ALONE = {"OMP_NUM_THREADS": "1"}


def train_until(line: str, then: Callable[[int], object], *overrides: str, **settings: int) -> tuple[int, list[str]]:
    """Start a run, call `then` with its process id once it has printed such a line: (exit code, lines of stderr)."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *SETTINGS, *overrides],
        **{"cwd": ROOT, "env": {**os.environ, **ALONE}, "text": True, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            for printed in process.stdout or ():
                if printed.startswith(line):
                    break
            then(process.pid)
            _, errors = process.communicate(timeout=120)
        finally:
            if process.poll() is None:  # it hangs
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors.splitlines()


def send(number: int) -> Callable[[int], None]:
    """Send a signal to the further process of a run."""

    def to_the_child_of(process: int) -> None:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        (child,) = [pid for pid in children if b"nsr.app.main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(child), number)

    return to_the_child_of


def test_a_stopped_process_ends_the_run_in_one_line(tmp_path):
    directory = tmp_path / "run"
    settings = ["trainer=ddp_cpu", "trainer.max_epochs=500", f"hydra.run.dir={directory}"]
    code, errors = train_until("epoch 1/", send(signal.SIGSTOP), *settings)
    assert code == 1 and len(errors) == 1, errors
    assert re.match(r"error: process \d+ of this run was stopped for 2 s, and is killed; .*resume=", errors[0])
    assert read_json(directory / "status.json")["status"] == "failed"


def test_a_killed_process_ends_the_run_in_one_line_and_the_run_resumes(tmp_path):
    directory = tmp_path / "run"
    settings = ["trainer=ddp_cpu", "trainer.max_epochs=6", f"hydra.run.dir={directory}"]
    code, errors = train_until("epoch 1/", send(signal.SIGKILL), *settings)
    assert code == 1 and len(errors) == 1, errors
    assert re.match(r"error: a process of this run has ended: \d+ with code -9; python train.py resume=", errors[0])
    done = in_a_process("train.py", f"resume={directory}", folder=ROOT, **ALONE)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in rows(directory / "metrics.csv")] == [str(epoch) for epoch in range(7)]


def test_a_process_killed_in_the_test_ends_the_run_that_waits_for_nobody(tmp_path):
    directory = tmp_path / "run"
    settings = ["trainer=ddp_cpu", "trainer.max_epochs=1", "test_attacks=[pgd]", "test_attacks.pgd.steps=30000"]
    code, errors = train_until("epoch 1/", send(signal.SIGKILL), *settings, f"hydra.run.dir={directory}")
    assert code == 1 and len(errors) == 1, errors
    assert "has ended" in errors[0] and errors[0].endswith("resumes it")
    assert read_json(directory / "status.json")["status"] == "failed"


FAILING = """
import os
import pytorch_lightning as pl

class Failing(pl.Callback):
    def on_train_batch_end(self, *arguments):
        if os.environ.get("LOCAL_RANK") == "1":
            raise ValueError("in the second process alone")
"""


def test_an_error_of_one_process_is_the_error_of_the_run(tmp_path):
    (tmp_path / "failing_in_one.py").write_text(FAILING)
    directory = tmp_path / "run"
    settings = ["trainer=ddp_cpu", "+callbacks.failing._target_=failing_in_one.Failing", f"hydra.run.dir={directory}"]
    variables = {**ALONE, "PYTHONPATH": str(tmp_path)}
    done = in_a_process("train.py", *SETTINGS, *settings, folder=ROOT, **variables)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "in the second process alone" in line and "failing_in_one.py" in line and line.endswith("resumes it")
    assert "in the second process alone" in read_json(directory / "status.json")["reason"]
    assert not list(directory.glob("error_of_process*"))


def test_a_run_whose_directory_is_deleted_ends_in_one_line(tmp_path):
    directory = tmp_path / "run"

    def delete(process: int) -> None:
        while directory.exists():  # the run writes a file meanwhile
            shutil.rmtree(directory, ignore_errors=True)

    settings = ["trainer.accelerator=cpu", "trainer.max_epochs=500", f"hydra.run.dir={directory}"]
    code, errors = train_until("epoch 1/", delete, *settings)
    *warned, error = errors
    assert code == 1 and error.startswith("error: ") and str(directory) in error, errors
    assert len(warned) <= 1 and all("CSVLogger failed" in line for line in warned)  # where it wrote first
    assert not directory.exists()


def test_a_file_larger_than_allowed_ends_the_run_in_one_line(tmp_path):
    directory = tmp_path / "run"
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))}  # bytes
    settings = ["trainer.accelerator=cpu", "trainer.max_epochs=500", f"hydra.run.dir={directory}"]
    code, errors = train_until("never", lambda _: None, *settings, **limit)
    assert code == 1 and len(errors) == 1, errors
    assert "File too large" in errors[0] and "kept" in errors[0]
    assert read_json(directory / "status.json")["status"] == "failed"
