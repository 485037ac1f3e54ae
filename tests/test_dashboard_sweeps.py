"""The runs of a sweep on the dashboard, and a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nsr.run.files import whole_rows
from tests.conftest import TINY
from tests.offline_runs import assert_sensitivities, children, offline_history, offline_records, offline_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
OFFLINE = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
TRIALS = ("hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.1)")
KINDS = {  # overrides of two jobs
    "one process, joblib": ("seed=0,1", "sweep=joblib"),
    "two processes, submitit": ("seed=0,1", "trainer=ddp_cpu", "sweep=submitit_local"),
    # their jobs are started by Hydra's basic launcher
    "two processes, optuna": ("trainer=ddp_cpu", "sweep=optuna", *TRIALS),
    "one process, optuna with two objectives": ("sweep=optuna_multi", *TRIALS),
}


def assert_optimal(jobs: list[Path]) -> None:
    """What Optuna found is the best of the jobs, by their own records."""
    found = OmegaConf.load(jobs[0].parent / "optimization_results.yaml")
    results = [json.loads((job / "metrics.json").read_text()) for job in jobs]
    points = {tuple(row[f"validation/{name}_accuracy"] for name in ("clean", "robust")) for row in results}
    if "best_value" in found:
        assert found.best_value == max(robust for _, robust in points)
        return
    beaten = {one for one in points for other in points if one != other and one[0] <= other[0] and one[1] <= other[1]}
    assert {tuple(solution["values"]) for solution in found.solutions} == points - beaten


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS.keys())
def test_a_sweep_leaves_a_run_a_job_in_one_group(tmp_path, overrides):
    tiny = [override for override in TINY[1:] if not override.startswith("trainer.accelerator")]
    accelerator = [] if "trainer=ddp_cpu" in overrides else ["trainer.accelerator=cpu"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *tiny, *accelerator, *overrides, "pictures=false"]
    done = subprocess.run(command, cwd=tmp_path, env=OFFLINE, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    segments = sorted((tmp_path / "runs").rglob("offline-run-*"))
    assert len(segments) == 2
    jobs = [segment.parent.parent for segment in segments]
    records = [record for segment in segments for record in offline_records(segment, "run")]
    assert len({record["run_id"] for record in records}) == len(records) == 2
    (sweep,) = {job.parent.name for job in jobs}
    assert {(record["run_group"], record["job_type"]) for record in records} == {(sweep, "train")}
    settings = [OmegaConf.load(job / "config.yaml") for job in jobs]
    if "seed=0,1" in overrides:
        tags = sorted(tuple(record["tags"]) for record in records)
        assert tags == [("digits", "pgd", "sns")] * 2
        assert sorted(one.seed for one in settings) == [0, 1]
    else:
        assert len({one.optimizer.lr for one in settings}) == 2
        assert_optimal(jobs)
    for segment, job in zip(segments, jobs, strict=True):
        assert (job / "metrics.json").exists()
        assert (job / "train_process_1.log").exists() == ("trainer=ddp_cpu" in overrides)
        history = offline_history(segment)
        assert assert_sensitivities(history, job) == {0, 1}
        # nothing of another job in it: one row of validation an epoch
        assert [int(row["epoch"]) for row in history if "validation/robust_accuracy" in row] == [0, 1]


def test_a_killed_run_loses_a_second_at_most(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *TINY[1:], "trainer.max_epochs=100000", "callbacks=[]"]
    command += ["trainer.limit_train_batches=1", f"hydra.run.dir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=tmp_path, env=OFFLINE, stdout=subprocess.DEVNULL, start_new_session=True)
    seen: dict[int, tuple[float, float]] = {}  # {epoch: (when its row was there, its robust accuracy)}
    records = tmp_path / "run" / "metrics.csv"
    name = "validation/robust_accuracy"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (seen and time.monotonic() - seen[0][0] > 6):
            time.sleep(0.02)
            if records.exists():
                for row in whole_rows(records):
                    seen.setdefault(int(row["epoch"]), (time.monotonic(), float(row[name])))
        # as the machine's own kill of a whole job: W&B's process has no time to write either
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
    finally:
        process.kill()
        killed = time.monotonic()
        process.wait()
    logged = {int(row["epoch"]): row[name] for row in offline_history(offline_run(tmp_path / "run")) if name in row}
    earlier = {epoch: value for epoch, (when, value) in seen.items() if when < killed - 1.2}
    assert len(earlier) > 3
    assert {epoch: logged.get(epoch) for epoch in earlier} == earlier
