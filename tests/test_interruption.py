"""Runs whose processes are killed, asked to end or abandoned by another leave whole files, and resume bit-identically.

tests/endurance does this at many more points.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nsr.run.files import whole_rows
from tests.conftest import rows, without
from tests.endurance.machines import directories, two_machines
from tests.endurance.points import ATTACK, CHECKPOINT, ERROR, OPTIMIZER, TEST, VALIDATION, Point
from tests.endurance.results import command
from tests.endurance.training import EPOCHS, SECONDS, SETTINGS, contents, environment, run
from tests.failures import remount, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """Files and weights of a run that nothing interrupts."""
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
    """Send a signal to the user's own command once it has printed such a line: (exit code, stderr)."""
    process = subprocess.Popen(
        command("train.py", *overrides),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C goes to the processes that the first one started, too
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which `nohup pytest` has ignored
    )
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.startswith(line):
            break
    if number in (signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()  # where it hangs
    return process.returncode, errors


CHAINS = {  # (point, exit code), one after another in the same run
    "killed": [(Point(CHECKPOINT, 2, moment="half written"), -9), (Point(OPTIMIZER, 3, 3), -9)],
    "asked to end": [
        (Point(ATTACK, 2, 4, "gradient step 2", ends=["SIGTERM", "SIGTERM"]), 143),  # the second ends it at once
        (Point(VALIDATION, 3, 1, "gradient step 1", ends=["SIGINT"]), 130),
        (Point(TEST, EPOCHS, 2, ends=["SIGINT"]), 130),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_that_ends_again_and_again_resumes_bit_identically(chain, whole, tmp_path):
    directory = tmp_path / "run"
    overrides = [*SETTINGS, f"hydra.run.dir={directory}"]
    for number, (point, exit_code) in enumerate(CHAINS[chain]):
        point = replace(point, log=str(tmp_path / f"{number}.txt"))
        done = run(*overrides, point=point)
        assert done.returncode == exit_code, done.stderr
        assert point.hits() == [point.place]
        if exit_code > 0:
            errors = done.stderr.splitlines()
            assert len(errors) == 1 + (point.kind != TEST)  # in the test nothing is finished first
            assert f"python train.py resume={directory}" in errors[-1]
            assert status(directory) == "interrupted"
        overrides = [f"resume={directory}"]
    assert_finishes(directory, whole)


def test_sigterm_finishes_the_step_and_prints_how_to_resume(whole, tmp_path):
    directory = tmp_path / "run"
    exit_code, errors = train_until("epoch 1/", signal.SIGTERM, *SETTINGS, f"hydra.run.dir={directory}")
    assert exit_code == 143, errors
    finishing, interrupted = errors.splitlines()
    assert finishing.startswith("SIGTERM: finishing this step")
    assert "interrupted by SIGTERM" in interrupted and f"python train.py resume={directory}" in interrupted
    assert status(directory) == "interrupted"
    assert_finishes(directory, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_of_a_terminal_whose_workers_get_it_too(tmp_path, number):
    """Ctrl-C, and a terminal that is closed."""
    directory = tmp_path / "run"
    settings = [*SETTINGS, "data.num_workers=1", f"hydra.run.dir={directory}"]
    exit_code, errors = train_until("epoch 1/", number, *settings)
    assert exit_code == 128 + number, errors
    assert "Traceback" not in errors
    assert f"python train.py resume={directory}" in errors.splitlines()[-1]


def test_two_machines_and_a_process_that_fails(tmp_path):
    """Two nodes of torchrun are one run; two processes of one node repeat it, though one fails on the way."""
    start = two_machines(tmp_path / "machines", *SETTINGS, "trainer=ddp_cpu")
    assert start["passed"], start
    (expected,) = directories(tmp_path / "machines")

    directory = tmp_path / "run"
    point = Point(ATTACK, 2, 4, "gradient step 2", ends=[ERROR], process=1, log=str(tmp_path / "hit.txt"))
    failed = run(*SETTINGS, "trainer=ddp_cpu", f"hydra.run.dir={directory}", point=point)
    assert failed.returncode != 0
    assert point.hits() == [point.place]
    assert "ArithmeticError: process 1 was asked to fail here" in failed.stderr
    found = rows(directory / "metrics.csv")
    assert [row["epoch"] for row in found] == ["0", "1"]
    assert all(float(row["validation/robust_accuracy"]) >= 0 for row in found)

    exit_code, errors = train_until("epoch 2/", signal.SIGINT, f"resume={directory}")
    assert exit_code == 130, errors
    assert_finishes(directory, contents(expected))


def test_a_full_disk_ends_the_run_in_one_line_and_the_run_resumes(tmp_path):
    with small_disk(tmp_path / "disk", "320k") as disk:
        directory = disk / "run"
        settings = [*without("test_attacks."), "trainer.max_epochs=40", "test_attacks=[clean]"]
        done = run(*settings, f"hydra.run.dir={directory}")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "No space left on device" in line and "kept" in line
        written = list(whole_rows(directory / "metrics.csv"))
        assert 2 < len(written) < 40
        remount(disk, "size=8m")
        done = run(f"resume={directory}")
        assert done.returncode == 0, done.stderr
        found = list(whole_rows(directory / "metrics.csv"))
    assert [row["epoch"] for row in found] == [str(epoch) for epoch in range(41)]
    known = [row for row in found if int(row["epoch"]) < len(written) - 1]
    assert known == written[: len(known)]
