"""Whole processes that are killed, asked to end or left alone by another: what they leave is whole, and goes on.

What tests/soak does twenty times over, twice here.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.killed import ERROR, Point
from tests.soak.machines import directories, two_machines
from tests.soak.training import (
    EPOCHS,
    SECONDS,
    SETTINGS,
    command,
    contents,
    environment,
    hits,
    run,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """The files and weights of a run that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    done = run(*SETTINGS, f"hydra.run.dir={directory}")
    assert done.returncode == 0, done.stderr
    return contents(directory)


def status(directory: Path) -> str:
    return json.loads((directory / "status.json").read_text())["status"]


def assert_finishes(directory: Path, expected: dict[str, str]) -> None:
    done = run(f"resume={directory}")
    assert done.returncode == 0, done.stderr
    assert status(directory) == "finished"
    assert contents(directory) == expected


def train_until(line: str, number: int, *overrides: str) -> tuple[int, str]:
    """The user's own command and, once it has printed such a line, a signal to it: (exit code, stderr)."""
    process = subprocess.Popen(
        command("train.py", *overrides),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C goes to the processes that the first one started, too
    )
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.startswith(line):
            break
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        _, told = process.communicate(timeout=SECONDS)
    finally:
        process.kill()  # where it hangs
    return process.returncode, told


KILLED, TWICE, CTRL_C = ["SIGKILL"], ["SIGTERM", "SIGTERM"], ["SIGINT"]
CHAINS = {  # (point, exit code), one after another in the same run
    "killed": [
        (Point("while a checkpoint file is open", 2, moment="half written", ends=KILLED), -9),
        (Point("between backward and optimizer step", 3, 3, ends=KILLED), -9),
    ],
    "asked to end": [
        (Point("inside an attack", 2, 4, "gradient step 2", ends=TWICE), 143),  # the second signal ends it at once
        (Point("in validation", 3, 1, ends=CTRL_C), 130),
        (Point("in the test", EPOCHS, 2, "test", ends=CTRL_C), 130),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_that_is_ended_again_and_again_goes_on_bit_by_bit(chain, whole, tmp_path):
    directory = tmp_path / "run"
    overrides = [*SETTINGS, f"hydra.run.dir={directory}"]
    for number, (point, exit_code) in enumerate(CHAINS[chain]):
        point = replace(point, log=str(tmp_path / f"{number}.txt"))
        done = run(*overrides, point=point)
        assert done.returncode == exit_code, done.stderr
        assert len(hits(point)) == 1
        if exit_code > 0:
            told = done.stderr.splitlines()
            # in the test there is nothing to be finished first
            assert told[0].endswith("once more ends at once") == (point.kind != "in the test")
            assert told[-1].endswith(f"; python train.py resume={directory} goes on")
            assert status(directory) == "interrupted"
        overrides = [f"resume={directory}"]
    assert_finishes(directory, whole)


def test_sigterm_finishes_the_step_and_says_how_to_go_on(whole, tmp_path):
    directory = tmp_path / "run"
    exit_code, told = train_until("epoch 1/", signal.SIGTERM, *SETTINGS, f"hydra.run.dir={directory}")
    assert exit_code == 143, told
    assert told.splitlines() == [
        "SIGTERM: finishing this step, then a checkpoint; once more ends at once",
        f"interrupted by SIGTERM; python train.py resume={directory} goes on",
    ]
    assert status(directory) == "interrupted"
    assert_finishes(directory, whole)


def test_ctrl_c_of_a_run_whose_workers_get_it_too(tmp_path):
    directory = tmp_path / "run"
    settings = [*SETTINGS, "data.workers=1", f"hydra.run.dir={directory}"]
    exit_code, told = train_until("epoch 1/", signal.SIGINT, *settings)
    assert exit_code == 130, told
    assert told.splitlines()[-1] == f"interrupted by SIGINT; python train.py resume={directory} goes on"


def test_two_machines_and_a_process_that_fails(tmp_path):
    """Two nodes of torchrun are one run; two processes of one node make it again, though one fails on the way."""
    start = two_machines(tmp_path / "machines", *SETTINGS, "trainer=ddp_cpu")
    assert start["right"], start
    (expected,) = directories(tmp_path / "machines")

    directory = tmp_path / "run"
    point = Point("inside an attack", 2, 4, "gradient step 2", ends=[ERROR], process=1, log=str(tmp_path / "hit.txt"))
    failed = run(*SETTINGS, "trainer=ddp_cpu", f"hydra.run.dir={directory}", point=point)
    assert failed.returncode != 0
    assert len(hits(point)) == 1
    assert "ArithmeticError: process 1 was asked to fail here" in failed.stderr
    with (directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(float(row["validation/robust_accuracy"]) >= 0 for row in rows)

    exit_code, told = train_until("epoch 2/", signal.SIGINT, f"resume={directory}")
    assert exit_code == 130, told
    assert_finishes(directory, contents(expected))
