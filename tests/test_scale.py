"""Several processes and sweeps, started by the user's own commands."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from nsr.metrics.epoch import TrainingMetrics
from nsr.run.processes import global_rank, local_processes, machines, slurm_directory
from tests.conftest import TINY, assert_same_rows, in_a_process, rows, without

ROOT = Path(__file__).parent.parent
ALONE = {"OMP_NUM_THREADS": "1"}
PLAIN = [  # no BatchNorm, nothing drawn, float64: what one process computes, two can compute too
    *("logger=csv", "trainer.precision=64-true", "trainer.max_epochs=2", "model.width=4"),
    *("model._target_=tests.networks.Plain", "train_attack.steps=2", "train_attack.random_start=false"),
    *("validation_attack.steps=2", "test_attacks.pgd.steps=2", "optimizer=sgd", "optimizer.lr=0.05"),
    *("stabilizer.refresh=average", "callbacks=[awp,ema]", "data.augmentation=none", "pictures=false"),
]


def assert_close(one: Path, two: Path) -> None:
    """Records, weights and the scores that choose neurons, to 1e-9."""
    for name in ("metrics.csv", "sensitivity.csv"):
        assert_same_rows(one / name, two / name)
    saved = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two)]
    for part in ("state_dict", "current_model_state"):
        assert saved[0][part].keys() == saved[1][part].keys()
        for name, value in saved[0][part].items():
            torch.testing.assert_close(value, saved[1][part][name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """1,097 images in batches of 64: the last one has 9, so five and four; AWP, averages, a running selection."""

    def run(name: str, *overrides: str) -> str:
        command = [*PLAIN, *overrides, f"hydra.run.dir={tmp_path / name}"]
        done = in_a_process("train.py", *command, **ALONE, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    run("one", "trainer.accelerator=cpu")
    run("two", "trainer=ddp_cpu")
    trained = rows(tmp_path / "one" / "metrics.csv")
    assert float(trained[2]["train/loss"]) < float(trained[1]["train/loss"])  # it learns, so gradients were compared
    assert_close(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "metrics.json").read_text() == (tmp_path / "one" / "metrics.json").read_text()
    # and through the compiler, in both processes: no message, so none that it failed
    assert run("compiled", "trainer=ddp_cpu", "compile=true") == ""
    for log in ("train.log", "train_process_1.log"):
        assert (tmp_path / "compiled" / log).exists()
    assert_close(tmp_path / "one", tmp_path / "compiled")


@pytest.mark.slow
def test_a_single_task_of_slurm_has_processes_of_its_own(tmp_path):
    """As a job of sweep=slurm has it: Lightning would take the one task for all processes."""
    slurm = {"JOB_ID": "7", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0"}
    settings = [*without("trainer.accelerator"), "trainer=ddp_cpu", f"hydra.run.dir={tmp_path / 'run'}"]
    variables = {f"SLURM_{name}": value for name, value in slurm.items()}
    done = in_a_process("train.py", *settings, folder=tmp_path, **ALONE, **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "train_process_1.log").exists()
    assert "2 processes" in (tmp_path / "run" / "train.log").read_text()


def not_finite_in_one(rank: int, store: str, found: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = TrainingMetrics([], ["clean"])
    labels = torch.zeros(2, dtype=torch.int64)
    for step in range(3):
        loss = torch.tensor(float("inf") if rank == 1 and step > 0 else 1.0)
        metrics.update(loss, {}, {"clean": torch.zeros(2, 3)}, labels, step=step)
    found[rank] = metrics.first_not_finite()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_is_known_to_all(tmp_path):
    with multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(not_finite_in_one, (str(tmp_path / "store"), found), nprocs=2)
        assert dict(found) == {0: 1, 1: 1}


@pytest.mark.slow
def test_a_sweep_continues_past_a_job_that_fails_and_is_resumed(tmp_path):
    """Every failure is named, the exit code is not zero; finished jobs report their results, the rest runs."""
    sweep = ["-m", *TINY, "layers=[relu1],[nothing],[relu2],[neither]", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = in_a_process("train.py", *sweep, **ALONE, folder=tmp_path)
    assert done.returncode == 1
    assert all(f"no layer matches '{name}'" in done.stderr.replace("\n", " ") for name in ("nothing", "neither"))
    finished = [(tmp_path / "sweep" / job / "metrics.json") for job in "02"]
    before = [path.stat().st_mtime_ns for path in finished]
    assert not (tmp_path / "sweep" / "1" / "metrics.json").exists()
    done = in_a_process(
        "train.py", *sweep[:-2], "layers=[relu1],[relu3],[relu2],[relu3]", sweep[-1], **ALONE, folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished already") == 2
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert (tmp_path / "sweep" / "1" / "metrics.json").exists()


def test_where_a_process_is_among_all(monkeypatch):
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_JOB_ID")
    for name in (*names, "SLURM_JOB_NUM_NODES", "SLURM_STEP_ID", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (global_rank(), local_processes("auto"), machines(), slurm_directory()) == (0, "auto", 1, None)
    with monkeypatch.context() as torchrun:
        for name, value in {"RANK": 3, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 4}.items():
            torchrun.setenv(name, str(value))
        assert (global_rank(), local_processes("auto"), machines()) == (3, 2, 2)
    slurm = {"SLURM_PROCID": 5, "SLURM_NTASKS": 8, "SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_ID": 77, "SLURM_STEP_ID": 0}
    for name, value in slurm.items():
        monkeypatch.setenv(name, str(value))
    assert (global_rank(), local_processes("auto"), machines(), slurm_directory()) == (5, 4, 2, "slurm_77")
    monkeypatch.setenv("SLURM_STEP_ID", "3")
    assert slurm_directory() == "slurm_77_3"
    monkeypatch.setenv("SLURM_NTASKS", "1")  # the shell of a batch job
    assert (local_processes("auto"), machines(), slurm_directory()) == ("auto", 1, None)
