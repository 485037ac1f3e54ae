"""The runs of a sweep on the dashboard, and a run that was killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import TINY
from tests.offline_runs import assert_histograms, offline_history, offline_records, offline_run

ROOT = Path(__file__).parent.parent
OFFLINE = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
POINTS = ("seed=0,1", "stabilizer=sns,none")
KINDS = {
    "one process": POINTS,
    "two processes": (*POINTS, "trainer=ddp_cpu"),
    "two processes, joblib": (*POINTS, "trainer=ddp_cpu", "sweep=joblib"),
    "two processes, submitit": (*POINTS, "trainer=ddp_cpu", "sweep=submitit_local"),
    "two processes, optuna": (
        *("trainer=ddp_cpu", "sweep=optuna", "hydra.sweeper.n_trials=4"),
        *("optimizer.lr=interval(0.001,0.1)", "stabilizer=sns,none"),
    ),
    "one process, optuna with two objectives": (
        *("sweep=optuna_two", "hydra.sweeper.n_trials=4", "optimizer.lr=interval(0.001,0.1)"),
    ),
}


def run_record(offline: Path) -> dict:
    (record,) = [record["run"] for record in offline_records(offline) if record["type"] == "run"]
    return record


def assert_optimal(jobs: list[Path]) -> None:
    """What Optuna found is the best of the jobs, by their own records."""
    found = OmegaConf.load(jobs[0].parent / "optimization_results.yaml")
    figures = [json.loads((job / "metrics.json").read_text()) for job in jobs]
    points = {tuple(row[f"validation/{name}_accuracy"] for name in ("clean", "robust")) for row in figures}
    if "best_value" in found:
        assert found.best_value == max(robust for _, robust in points)
        return
    beaten = {one for one in points for other in points if one != other and one[0] <= other[0] and one[1] <= other[1]}
    assert {tuple(solution["values"]) for solution in found.solutions} == points - beaten


@pytest.mark.slow
@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS.keys())
def test_a_sweep_leaves_a_run_a_job_in_one_group(tmp_path, overrides):
    tiny = [override for override in TINY[1:] if not override.startswith("trainer.accelerator")]
    accelerator = [] if "trainer=ddp_cpu" in overrides else ["trainer.accelerator=cpu"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *tiny, *accelerator, *overrides]
    done = subprocess.run(command, cwd=tmp_path, env=OFFLINE, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    segments = sorted((tmp_path / "runs").rglob("offline-run-*"))
    assert len(segments) == 4
    jobs = [segment.parent.parent for segment in segments]
    records = [run_record(segment) for segment in segments]
    assert len({record["run_id"] for record in records}) == 4
    (sweep,) = {job.parent.name for job in jobs}
    assert {record["run_group"] for record in records} == {sweep}
    assert {record["job_type"] for record in records} == {"train"}
    tags = sorted(tuple(record["tags"]) for record in records)
    settings = [OmegaConf.load(job / "config.yaml") for job in jobs]
    if "seed=0,1" in overrides:
        assert tags == sorted([("digits", "pgd", "sns"), ("digits", "pgd", "none")] * 2)
        assert sorted(one.seed for one in settings) == [0, 0, 1, 1]
    else:
        assert len({one.optimizer.lr for one in settings}) == 4
        assert_optimal(jobs)
    for job in jobs:  # of the further process too, whose settings the first one has compared with its own
        assert (job / "metrics.json").exists()
        assert (job / "train_process_1.log").exists() == ("trainer=ddp_cpu" in overrides)
    for segment, job in zip(segments, jobs, strict=True):
        history = offline_history(segment)
        seen = assert_histograms(history, job)
        assert {epoch for epoch, _ in seen} == {0, 1}
        # nothing of another job in it: one row of validation an epoch
        assert [int(row["epoch"]) for row in history if "validation/robust_accuracy" in row] == [0, 1]


@pytest.mark.slow
def test_a_killed_run_loses_a_second_at_most(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *TINY[1:], "trainer.max_epochs=100000", "callbacks=[]"]
    command += ["trainer.limit_train_batches=1", f"hydra.run.dir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=tmp_path, env=OFFLINE, stdout=subprocess.DEVNULL, start_new_session=True)
    seen: dict[int, tuple[float, str]] = {}  # {epoch: (when its row was there, its robust accuracy)}
    records = tmp_path / "run" / "metrics.csv"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (seen and time.monotonic() - seen[0][0] > 6):
            time.sleep(0.02)
            if records.exists():
                for row in csv.DictReader(line for line in records.read_text().splitlines(True) if line[-1] == "\n"):
                    seen.setdefault(int(row["epoch"]), (time.monotonic(), row["validation/robust_accuracy"]))
        # as the machine's own kill of a whole job: W&B's process has no time to write either
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
    finally:
        process.kill()
        killed = time.monotonic()
        process.wait()
    logged = {
        int(row["epoch"]): row["validation/robust_accuracy"]
        for row in offline_history(offline_run(tmp_path / "run"))
        if "validation/robust_accuracy" in row
    }
    earlier = {epoch: float(value) for epoch, (when, value) in seen.items() if when < killed - 1.2}
    assert len(earlier) > 3
    assert {epoch: logged.get(epoch) for epoch in earlier} == earlier


def children(parent: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found += [int(status.parent.name), *children(int(status.parent.name))]
    return found
