"""A run that is interrupted anywhere ends with an exit code that says so, and resumes bit-identically."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from nsr.app.command_line import one_line_errors
from nsr.app.composition import compose_checked, plain, without_hydra
from nsr.app.third_party import admitted_command
from nsr.app.train import train
from nsr.callbacks.checkpoints import PLACE, Continuation, PlainCheckpointIO
from nsr.errors import InputError, RunStopped
from nsr.run.commands import override
from nsr.run.directory import changes, check_unused, process_status, recorded_status
from nsr.run.files import whole_rows, write_json
from nsr.run.own import remember
from nsr.run.resumption import (
    Earlier,
    earlier_run,
    newest_unfinished,
    readable_checkpoint,
    resumed_command,
)
from nsr.run.signals import Interrupted, Signals, interruptible
from nsr.training.module import RobustClassifier
from tests.conftest import job, without
from tests.endurance.training import contents

SETTINGS = [*without("train_attack."), "trainer.max_epochs=3", "trainer.limit_train_batches=4"]
SLOW = pytest.mark.slow
STEPS = "train_attack.steps=2"
CHOICES = {
    "sns": [
        STEPS,
        "scheduler=one_cycle",
        "stabilizer.refresh=average",
        "data.augmentation=[crop_flip,rand_augment,cutmix]",
    ],
    "averages": [STEPS, "callbacks=[ema,awp,stabilizer_ramp]", "callbacks.ema.decay=0.7", "objective=trades"],
    "several": [
        *("train_attack.steps=3", "callbacks=[averages,steps_ramp]", "callbacks.averages.decays=[0.5,0.9]"),
        *("callbacks.averages.swa_start=1", "callbacks.steps_ramp.epochs=2", "scheduler=warmup_cosine"),
    ],
    "free": ["objective=free", "objective.replays=2", "trainer.max_epochs=6", "scheduler=cosine"],
    "accumulated": [STEPS, "+trainer.accumulate_grad_batches=3", "scheduler=one_cycle"],
    "epoch": [
        *(STEPS, "stabilizer.refresh=epoch", "callbacks=[epsilon_ramp,freeze]", "callbacks.freeze.parts=[conv2]"),
        *("optimizer=sgd", "optimizer.groups={conv1: {lr: 0.01}, bn*: {weight_decay: 0}}"),
        *("scheduler=piecewise", "scheduler.milestones=[2]"),
    ],
}


def run(directory: Path, *overrides: str) -> float:
    config = job("train", directory, *SETTINGS, *overrides) if not directory.exists() else again(directory, *overrides)
    torch.manual_seed(0)  # of the weights, as a process of its own would begin
    return train(config)


def again(directory: Path, *overrides: str) -> Any:
    """The job once more, in the directory that is there."""
    aside = directory.with_name(f"{directory.name}.aside")
    directory.rename(aside)
    config = job("train", directory, *SETTINGS, *overrides, "resume=auto")
    directory.rmdir()
    aside.rename(directory)
    return config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Run a choice once, without interruption."""
    made: dict[str, Path] = {}

    def make(choice: str) -> Path:
        if choice not in made:
            made[choice] = tmp_path_factory.mktemp("whole") / choice
            run(made[choice], *CHOICES[choice])
        return made[choice]

    return make


def numpy_schedule(optimizer: Any) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.interp(epoch, [0, 3], [1, 0.1]))


class Odd(pl.Callback):
    """A callback whose state no checkpoint can hold: torch.load refuses one, pickle the other."""

    def __init__(self, can_be_pickled: bool):
        self.ratio: Any = Fraction(1, 3) if can_be_pickled else lambda: 1 / 3

    def state_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio}


def test_a_learning_rate_of_numpy_is_stored_as_a_number(tmp_path):
    run(tmp_path / "run", "~scheduler", "+scheduler._target_=tests.test_resumption.numpy_schedule")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.1 * 0.005)


@pytest.mark.parametrize(
    ("can_be_pickled", "reason"),
    [(True, r"holds fractions\.Fraction; tensors"), (False, r"cannot be saved \(.*; tensors")],
)
def test_a_state_that_no_checkpoint_can_hold_is_named_before_the_first_epoch(can_be_pickled, reason, tmp_path):
    own = ["+callbacks.odd._target_=tests.test_resumption.Odd", f"+callbacks.odd.can_be_pickled={can_be_pickled}"]
    with pytest.raises(RunStopped, match=f"the state of Odd {reason}"):
        run(tmp_path / "run", *own)
    assert len(list(whole_rows(tmp_path / "run" / "metrics.csv"))) == 1  # before training


def ask_to_end(monkeypatch: Any, step: str, call: int) -> None:
    """SIGTERM in the middle of the given call of a step, and never again."""
    original = getattr(RobustClassifier, step)
    calls = []

    def stepped(self: Any, *arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(RobustClassifier, step, stepped)


def assert_same_run(first: Path, second: Path) -> None:
    assert contents(first) == contents(second)


def logged_metrics(directory: Path) -> list[tuple[str, str, str]]:
    """(epoch, name, value) of each figure of an epoch, over all segments of the run."""
    logged = []
    for path in directory.glob("csv*/metrics.csv"):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["epoch"]]
        logged += [
            (row["epoch"], name, value)
            for row in rows
            for name, value in row.items()
            if value and name not in ("epoch", "step")
        ]
    return sorted(logged)


# the validation before training has one batch, and so has each epoch's: the third is the second epoch's
@pytest.mark.parametrize(
    ("step", "call"),
    [
        *(("_begin", 2), ("_begin", 8), ("validation_step", 3)),
        *(pytest.param("_begin", call, marks=SLOW) for call in (9, 12)),
    ],
    ids=["in an epoch", "at the end of an epoch", "in validation", "at its beginning", "at the end"],
)
@pytest.mark.parametrize("choice", ["sns", *(pytest.param(name, marks=SLOW) for name in CHOICES if name != "sns")])
def test_an_interrupted_run_resumes_bit_identically(choice, step, call, uninterrupted, tmp_path, monkeypatch):
    expected = uninterrupted(choice)
    with monkeypatch.context() as patch:
        ask_to_end(patch, step, call)
        with pytest.raises(Interrupted) as interruption:
            run(tmp_path / "run", *CHOICES[choice])
    assert interruption.value.exit_code == 143
    assert not (tmp_path / "run" / "metrics.json").exists()
    run(tmp_path / "run", *CHOICES[choice])
    assert_same_run(expected, tmp_path / "run")
    assert logged_metrics(tmp_path / "run") == logged_metrics(expected)


@SLOW
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_run_resumes_bit_identically(tmp_path, monkeypatch):
    choice = [STEPS, "model.width=4", "compile=true"]
    run(tmp_path / "whole", *choice)
    with monkeypatch.context() as patch:
        ask_to_end(patch, "_begin", 6)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", *choice)
    run(tmp_path / "run", *choice)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# ---------------------------------------------------------------- what a run resumes from
@pytest.fixture(scope="module")
def interrupted_once(tmp_path_factory) -> Path:
    """A run that has ended after its second epoch and a step."""
    directory = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        ask_to_end(patch, "_begin", 9)
        with pytest.raises(Interrupted):
            run(directory, *CHOICES["sns"])
    return directory


@pytest.fixture
def interrupted(interrupted_once, tmp_path) -> Path:
    """Its copy."""
    return shutil.copytree(interrupted_once, tmp_path / "run")


def test_where_the_last_checkpoint_is_broken_the_one_before_is_taken(interrupted, uninterrupted):
    last = interrupted / "checkpoints" / "last.ckpt"
    kept = last.read_bytes()
    last.unlink()  # it shares its bytes with no other file once it is written again
    last.write_bytes(kept[: len(kept) // 2])
    assert readable_checkpoint(interrupted) == interrupted / "checkpoints" / "previous.ckpt"
    run(interrupted, *CHOICES["sns"])
    assert_same_run(uninterrupted("sns"), interrupted)


def test_rows_after_the_checkpoint_are_cut_off(interrupted, uninterrupted):
    for name in ("metrics.csv", "sensitivity.csv", "layers.csv"):
        with (interrupted / name).open("a") as file:
            file.write("3,half a ro")
    run(interrupted, *CHOICES["sns"])
    assert_same_run(uninterrupted("sns"), interrupted)


def test_records_that_are_shorter_than_the_checkpoint_knows(interrupted):
    (interrupted / "metrics.csv").write_text("epoch\n")
    with pytest.raises(RunStopped, match="metrics.csv is shorter than when the checkpoint was written"):
        run(interrupted, *CHOICES["sns"])


@SLOW
def test_a_run_without_checkpoint_restarts(interrupted, uninterrupted):
    for path in (interrupted / "checkpoints").iterdir():
        path.unlink()
    run(interrupted, *CHOICES["sns"])
    assert_same_run(uninterrupted("sns"), interrupted)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, uninterrupted):
    original, written = PlainCheckpointIO.save_checkpoint, []

    def full(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if written:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        written.append(path)
        original(self, checkpoint, path)

    with monkeypatch.context() as patch:
        patch.setattr(PlainCheckpointIO, "save_checkpoint", full)
        with pytest.raises(RunStopped, match="no checkpoint can be written to .*No space left on device; .* is kept"):
            run(tmp_path / "run", *CHOICES["sns"])
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    run(tmp_path / "run", *CHOICES["sns"])
    assert_same_run(uninterrupted("sns"), tmp_path / "run")


def test_a_finished_run_reports_its_result_and_runs_no_more(uninterrupted, capsys):
    finished = uninterrupted("sns")
    before = (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    result = run(finished, *CHOICES["sns"])
    (row,) = [row for row in whole_rows(finished / "metrics.csv") if row["epoch"] == "3"]
    assert result == max(float(row["validation/robust_accuracy"]) for row in whole_rows(finished / "metrics.csv"))
    assert "finished already" in capsys.readouterr().out
    assert (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    assert row


def test_other_settings_are_named_and_used_only_on_request(interrupted):
    longer = [*CHOICES["sns"], "scheduler=constant", "trainer.max_epochs=4"]
    with pytest.raises(InputError, match=r"scheduler._target_ was .*; give allow_changed_config=true to resume"):
        run(interrupted, *longer)
    run(interrupted, *longer, "allow_changed_config=true")
    assert [row["epoch"] for row in whole_rows(interrupted / "metrics.csv")] == ["0", "1", "2", "3", "4"]


@SLOW
def test_a_finished_run_resumes_for_more_epochs(tmp_path):
    fewer = [*CHOICES["averages"], "scheduler=constant"]
    run(tmp_path / "run", *fewer)
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed while it was tested
    run(tmp_path / "run", *fewer, "trainer.max_epochs=4", "allow_changed_config=true")
    run(tmp_path / "whole", *fewer, "trainer.max_epochs=4")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("step", "call"),
    [("_begin", 2), pytest.param("validation_step", 3, marks=SLOW)],
)
def test_a_run_of_two_processes_resumes_as_one(step, call, uninterrupted, tmp_path, monkeypatch):
    """What the epoch has added up is that of both, whoever resumes it."""
    with monkeypatch.context() as patch:
        ask_to_end(patch, step, call)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", *CHOICES["sns"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    saved["training_sums"] = torch.cat([saved["training_sums"] / 4, saved["training_sums"] * 3 / 4])
    torch.save(saved, last)
    run(tmp_path / "run", *CHOICES["sns"])
    assert_same_run(uninterrupted("sns"), tmp_path / "run")


@SLOW
@pytest.mark.parametrize("limit", ["+trainer.max_steps=2", "+trainer.max_time=00:00:00:01"])
def test_a_run_that_a_limit_ended_gets_more_with_a_larger_one(limit, tmp_path, monkeypatch):
    directory, (name, _, value) = tmp_path / "run", limit.lstrip("+").partition("=")
    with monkeypatch.context() as patch:
        seconds = iter([0.0, 0.0])  # at the start and after the first step
        patch.setattr("pytorch_lightning.callbacks.Timer.time_elapsed", lambda self, *stage: next(seconds, 2.0))
        run(directory, limit)
    before = (directory / "metrics.json").read_text()
    with pytest.raises(InputError, match=rf"{name} is {value}, which .*last.ckpt has reached already: no step would"):
        run(directory, limit, "trainer.max_epochs=4", "scheduler=constant")
    assert (directory / "metrics.json").read_text() == before
    run(directory, limit.replace("2", "8").replace(":01", ":59"))
    epochs = [row["epoch"] for row in whole_rows(directory / "metrics.csv")]
    assert epochs == [str(epoch) for epoch in range(len(epochs))] and len(epochs) > 2
    assert (directory / "metrics_epoch1.json").read_text() == before


def test_the_first_process_decides_on_a_new_schedule():
    for first in ([{"new_schedule": True}], [{"new_schedule": False}]):
        strategy = SimpleNamespace(broadcast=lambda mine, first=first: first)
        group, module = {"lr": 0.0, "initial_lr": 0.1}, SimpleNamespace()
        saved = {"lr_schedulers": [{}], "global_step": 7, "optimizer_states": [{"param_groups": [group]}]}
        saved |= {"callbacks": {}, PLACE: {"epochs": 3, "batches": 0}}
        Continuation([], {}).on_load_checkpoint(SimpleNamespace(strategy=strategy), module, saved)  # of rank 1
        new = first[0]["new_schedule"]
        assert (group["lr"], saved["lr_schedulers"], module.steps_before) == ((0.1, [], 7) if new else (0.0, [{}], 0))


def learning_rates(directory: Path) -> list[str]:
    return [row["learning_rate"] for row in whole_rows(directory / "metrics.csv")]


@SLOW
@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_an_extension_killed_in_its_first_epoch_still_has_its_schedule(schedule, tmp_path, monkeypatch):
    extended = [STEPS, "trainer.max_epochs=5", f"scheduler={schedule}"]
    for name in ("killed", "whole"):
        run(tmp_path / name, STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(RobustClassifier, "_begin", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "killed", *extended)
    for name in ("killed", "whole"):
        run(tmp_path / name, *extended)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert float(learning_rates(tmp_path / "killed")[-1]) > 0


@pytest.mark.parametrize(
    "changed",
    [
        "optimizer.lr=0.001",
        *(pytest.param(each, marks=SLOW) for each in ("optimizer=sgd", "scheduler=one_cycle", "trainer.max_epochs=4")),
    ],
)
def test_changed_settings_of_optimizer_and_schedule_apply(changed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        ask_to_end(patch, "_begin", 2)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", STEPS)
    run(tmp_path / "run", STEPS, changed, "allow_changed_config=true")
    run(tmp_path / "whole", STEPS, changed)
    resumed, whole = ([float(rate) for rate in learning_rates(tmp_path / name)[2:]] for name in ("run", "whole"))
    assert resumed == pytest.approx(whole)


def test_a_changed_setting_that_makes_another_network_is_refused(interrupted):
    before = (interrupted / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="last.ckpt' does not fit"):
        run(interrupted, *CHOICES["sns"], "model.width=8", "allow_changed_config=true")
    assert (interrupted / "config.yaml").read_bytes() == before


def test_fewer_epochs_than_there_are(interrupted):
    with pytest.raises(InputError, match="trainer.max_epochs is 1, but .*last.ckpt is already at epoch 2; give at"):
        run(interrupted, *CHOICES["sns"], "trainer.max_epochs=1", "allow_changed_config=true")


def test_whose_run_it_is(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    elsewhere = {"status": "running", "process": os.getpid(), "host": "another machine", "job": ["7", "0"]}
    write_json(path, elsewhere)
    with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on another machine"):
        check_unused(tmp_path)
    with monkeypatch.context() as slurm:  # the same job, which SLURM has started once more
        slurm.setenv("SLURM_JOB_ID", "7")
        assert process_status(path) == ("running", "")
        slurm.setenv("SLURM_RESTART_COUNT", "1")
        assert process_status(path) == ("failed", "its job was started again")
    for host in ("another machine", socket.gethostname()):  # a machine that is gone; a number that another one has now
        write_json(path, elsewhere | {"host": host})
        os.utime(path, (time.time() - 660,) * 2)
        assert process_status(path) == ("failed", "no heartbeat for 11 min, killed?")
        check_unused(tmp_path)


def test_a_run_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("nsr.run.directory.HEARTBEAT_SECONDS", 0.01)
    with recorded_status(tmp_path, "train.py", []):
        os.utime(tmp_path / "status.json", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "status.json").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process_status(tmp_path / "status.json") == ("running", "")
    os.utime(tmp_path / "status.json", (0, 0))
    time.sleep(0.1)
    assert (tmp_path / "status.json").stat().st_mtime == 0  # and none when it is over


@SLOW
def test_a_directory_in_use_is_refused(interrupted):
    marker = json.loads((interrupted / "status.json").read_text())
    write_json(interrupted / "status.json", {**marker, "status": "running", "process": os.getppid()})
    with pytest.raises(InputError, match=f"is in use by process {os.getppid()}"):
        run(interrupted, *CHOICES["sns"])
    write_json(interrupted / "status.json", {**marker, "status": "running", "process": 2**22 + 1})  # it was killed
    run(interrupted, *CHOICES["sns"])


def test_a_checkpoint_holds_nothing_that_is_not_needed(interrupted):
    saved = torch.load(interrupted / "checkpoints" / "last.ckpt", weights_only=True)
    tensors = [value for name, value in saved["state_dict"].items() if name.startswith("net.")]
    tensors += [value for state in saved["optimizer_states"][0]["state"].values() for value in state.values()]
    needed = sum(value.numel() * value.element_size() for value in tensors)
    assert (interrupted / "checkpoints" / "last.ckpt").stat().st_size < needed + 2**20


# ---------------------------------------------------------------- signals and commands
def test_the_second_signal_ends_at_once(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as signals:
        signals.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(Interrupted) as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(Interrupted) as interruption:
        Signals().handle(signal.SIGINT, None)  # where nothing could be lost, nothing is waited for
    assert interruption.value.exit_code == 130
    assert "a second signal ends at once" in capsys.readouterr().err


@pytest.mark.parametrize(("array", "job"), [({}, "77"), ({"ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "3"}, "70_3")])
def test_slurm_is_asked_to_start_the_job_once_more(tmp_path, monkeypatch, capsys, array, job):
    for name, value in {"JOB_ID": "77", **array}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with interruptible() as signals:
        signals.patient = True
        os.kill(os.getpid(), signal.SIGUSR1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise Interrupted(signals.received)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert f"job {job} is not requeued" in capsys.readouterr().err  # there is no scontrol
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(SystemExit), one_line_errors():
        raise Interrupted(signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    (tmp_path / "asked").unlink()
    with pytest.raises(SystemExit), one_line_errors():
        raise Interrupted(signal.SIGTERM)  # SLURM requeues what it preempts
    assert not (tmp_path / "asked").exists()


def test_resume_takes_the_recorded_command_and_what_is_changed(tmp_path):
    origin = {"status": "failed", "program": "train.py", "overrides": ["data=digits", "seed=3", "resume=auto"]}
    write_json(tmp_path / "status.json", origin)
    remember(["train.py", origin["overrides"]])
    command = resumed_command([f"resume={tmp_path}", "seed=4", "trainer.max_epochs=9"], admitted_command)
    places = [override(name, str(tmp_path)) for name in ("resume", "hydra.run.dir")]
    assert command == ["data=digits", "seed=4", "trainer.max_epochs=9", *places]
    assert resumed_command([*places, "seed=4", "trainer.max_epochs=9"], admitted_command) == command
    with pytest.raises(InputError, match="in its own directory"):
        resumed_command([places[0], "hydra.run.dir=elsewhere"], admitted_command)
    assert resumed_command(["seed=4", "resume=auto"], admitted_command) == ["seed=4", "resume=auto"]
    with pytest.raises(InputError, match="there is no run of train.py in"):
        resumed_command([f"resume={tmp_path / 'nothing'}"], admitted_command)


def test_the_newest_unfinished_run_of_the_command_is_found(tmp_path):
    def made(name: str, *overrides: str, **marks: Any) -> None:
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "status.json", {"program": "train.py", "overrides": overrides, **marks})

    made("2026-01-01", "seed=1", status="failed")
    made("2026-01-02", "seed=1", status="interrupted")
    made("2026-01-03", "seed=2", status="failed")
    made("2026-01-04", "seed=1", status="finished")
    write_json(tmp_path / "2026-01-04" / "metrics.json", {})
    assert newest_unfinished(tmp_path, ["resume=auto", "seed=1"]) == tmp_path / "2026-01-02"
    assert newest_unfinished(tmp_path, ["seed=5"]) is None


def test_changes_name_what_was_and_what_is():
    recorded = {"seed": 0, "train_attack": {"steps": 10}, "logger": {"csv": {"name": "a"}}, "choices": {"data": "x"}}
    found = changes(recorded, {"seed": 1, "train_attack": {"steps": 10, "norm": "l2"}, "logger": {}, "resume": "auto"})
    assert found == {"seed": (0, 1), "train_attack.norm": ("nothing", "l2")}


@pytest.mark.parametrize(("before", "now", "differ"), [(1.0, 1, True), (1, True, True), (1, 1, False), (2.0, 2, False)])
def test_one_is_not_all(before, now, differ):
    """stabilizer.top=1 is one neuron, 1.0 all; the Trainer's limits likewise."""
    assert bool(changes({"stabilizer": {"top": before}}, {"stabilizer": {"top": now}})) == differ


def test_what_a_run_added_can_be_taken_away(tmp_path):
    command = ["+callbacks.mine._target_=nsr.callbacks.RunRecords", "seed=3"]
    write_json(tmp_path / "config.yaml", {"objective": {}, "overrides": command})
    remember({"objective": {}, "overrides": command})
    resumed = resumed_command([f"resume={tmp_path}", "~callbacks.mine"], admitted_command)
    assert resumed[:3] == [*command, "~callbacks.mine"]
    assert resumed_command([f"resume={tmp_path}", "seed=4"], admitted_command)[:2] == [command[0], "seed=4"]


@pytest.mark.parametrize(
    ("schedule", "further", "new"),
    [
        ("cosine", [], None),
        ("one_cycle", [], None),
        ("cosine", ["scheduler.T_max=2"], True),
        ("cosine", ["scheduler=constant"], True),
        ("constant", [], False),
        ("cosine objective=free objective.replays=2", [], None),
        ("cosine objective=free objective.replays=2", ["scheduler.T_max=2"], True),
    ],
)
def test_a_schedule_that_has_ended_needs_another_one_for_further_epochs(tmp_path, schedule, further, new):
    replays = 2 if "free" in schedule else 1
    command = [*f"scheduler={schedule}".split(), f"trainer.max_epochs={3 * replays}"]
    recorded = plain(without_hydra(compose_checked("train", command)))
    write_json(tmp_path / "config.yaml", {**recorded, "overrides": command})  # JSON is YAML
    remember({**recorded, "overrides": command})
    write_json(tmp_path / "status.json", {"status": "finished", "program": "train.py", "overrides": command})
    write_json(tmp_path / "metrics.json", {"best_epoch": 3, "last_epoch": 3})
    longer = f"trainer.max_epochs={5 * replays}"
    overrides = resumed_command([f"resume={tmp_path}", longer, *further], admitted_command)
    settings = plain(without_hydra(compose_checked("train", overrides)))
    if new is None:
        with pytest.raises(InputError) as caught:
            earlier_run(tmp_path, settings, resume=str(tmp_path), changed=False, overrides=overrides)
        assert "ends with its 3 epochs" in str(caught.value)
        assert "scheduler=constant, or scheduler.T_max=2 for cosine" in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        found = earlier_run(tmp_path, settings, resume=str(tmp_path), changed=False, overrides=overrides)
        assert found == Earlier(None, None, 3, new)
