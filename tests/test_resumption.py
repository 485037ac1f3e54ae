"""A run that is interrupted anywhere ends with an exit code that says so, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nsr.assembly import train
from nsr.interruption import Interrupted
from nsr.training import RobustClassifier
from tests.conftest import TINY, job

RECORDS = ("metrics.csv", "sensitivity.csv", "layers.csv", "metrics.json", "alarms.json", "images.csv")
SETTINGS = [
    *(override for override in TINY if not override.startswith("attack.")),
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=4",
]
CHOICES = {
    "sns": ["attack.steps=2", "scheduler=one_cycle", "stabilizer.refresh=average", "data.augmentation=crop_flip"],
    "averages": [
        "attack.steps=2",
        "callbacks=[ema,awp,stabilizer_ramp]",
        "callbacks.ema.decay=0.7",
        "objective=trades",
    ],
    "free": ["objective=free", "objective.replays=2", "trainer.max_epochs=6", "scheduler=cosine"],
    "epoch": [
        "attack.steps=2",
        "stabilizer.refresh=epoch",
        "optimizer=sgd",
        "scheduler=piecewise",
        "scheduler.milestones=[2]",
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
def whole(tmp_path_factory) -> dict[str, Path]:
    """Runs that nothing interrupts, made as they are asked for."""
    return {}


def uninterrupted(whole: dict[str, Path], choice: str, tmp_path_factory: Any) -> Path:
    if choice not in whole:
        whole[choice] = tmp_path_factory.mktemp("whole") / choice
        run(whole[choice], *CHOICES[choice])
    return whole[choice]


def ask_to_end(monkeypatch: Any, step: str, call: int) -> None:
    """SIGTERM in the middle of the so many-th call of a step, and never again."""
    original = getattr(RobustClassifier, step)
    calls = []

    def stepped(self: Any, *arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(RobustClassifier, step, stepped)


def assert_same_run(first: Path, second: Path) -> None:
    for name in RECORDS:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in ("best.ckpt", "last.ckpt"):
        saved = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (first, second)]
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "nsr_place", "current_model_state"):
            assert_equal(*(one.get(part) for one in saved), part)


def assert_equal(one: Any, other: Any, place: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}.{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


# the validation before training has one batch, and so has each epoch's: the third is the second epoch's
@pytest.mark.parametrize(
    ("step", "call"),
    [("_begin", 2), ("_begin", 8), ("_begin", 9), ("_begin", 12), ("validation_step", 3)],
    ids=["in an epoch", "at the end of an epoch", "at its beginning", "at the end", "in validation"],
)
@pytest.mark.parametrize(
    "choice", ["sns", *(pytest.param(name, marks=pytest.mark.slow) for name in CHOICES if name != "sns")]
)
def test_an_interrupted_run_goes_on_bit_by_bit(choice, step, call, whole, tmp_path, tmp_path_factory, monkeypatch):
    expected = uninterrupted(whole, choice, tmp_path_factory)
    with monkeypatch.context() as patch:
        ask_to_end(patch, step, call)
        with pytest.raises(Interrupted) as interruption:
            run(tmp_path / "run", *CHOICES[choice])
    assert interruption.value.exit_code == 143
    assert not (tmp_path / "run" / "metrics.json").exists()
    run(tmp_path / "run", *CHOICES[choice])
    assert_same_run(expected, tmp_path / "run")
