"""Schedules with a warm-up against torch's own pieces in sequence, and as a run steps them."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, PolynomialLR, SequentialLR

from nsr.app.train import train
from nsr.errors import InputError
from nsr.training.schedules import WarmUp, WarmUpCosine, WarmUpLinear, WarmUpPiecewise, make_scheduler
from tests.conftest import job, without

RATE, BATCHES = 0.2, 2  # an epoch, in TINY


def rates(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def in_sequence(optimizer, warmup, after):
    start = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [start, after(optimizer)], [warmup])


@pytest.mark.parametrize("warmup", [3, 0.3, 0.17])
@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (WarmUp, lambda left: partial(MultiStepLR, milestones=[])),
        (WarmUpCosine, lambda left: partial(CosineAnnealingLR, T_max=left)),
        (WarmUpLinear, lambda left: partial(PolynomialLR, total_iters=left)),
        (
            partial(WarmUpPiecewise, milestones=[0.5, 9], gamma=0.3),
            lambda left: partial(MultiStepLR, milestones=[left - 50, left - 10], gamma=0.3),
        ),
    ],
)
def test_each_step_has_the_rate_of_torchs_schedules_in_sequence(kind, after, warmup):
    steps = {3: 30, 0.3: 30, 0.17: 17}[warmup]
    found = rates(partial(kind, total_steps=100, steps_per_epoch=10, warmup=warmup), 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps its parts with an epoch, which torch deprecates
        expected = rates(partial(in_sequence, warmup=steps, after=after(100 - steps)), 100)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[steps - 1] == found[steps] == RATE
    assert found[0] == RATE / steps


def test_it_continues_from_its_state_also_where_the_run_is_longer_now():
    whole = rates(partial(WarmUpCosine, total_steps=40, steps_per_epoch=4, warmup=2), 40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    first = WarmUpCosine(optimizer, total_steps=40, steps_per_epoch=4, warmup=2)
    for _ in range(7):
        optimizer.step()
        first.step()
    saved = first.state_dict()
    assert all(isinstance(value, (int, float, bool, list)) for value in saved.values())  # weights_only reads it

    def resumed(other):
        other.load_state_dict(optimizer.state_dict())
        schedule = WarmUpCosine(other, total_steps=99, steps_per_epoch=9)
        schedule.load_state_dict(saved)
        return schedule

    assert rates(resumed, 33)[1:] == whole[8:]


def test_the_lengths_of_the_run_are_passed_where_they_are_named():
    lengths = {"total_steps": 4, "steps_per_epoch": 2}
    assert make_scheduler(lambda optimizer, total_steps: total_steps, None, lengths) == 4
    assert make_scheduler(lambda optimizer, **further: further, None, lengths) == {"total_steps": 4}
    assert make_scheduler(lambda optimizer, total_steps, steps_per_epoch: steps_per_epoch, None, lengths) == 2
    assert make_scheduler(lambda optimizer: 7, None, {}) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 10}, "scheduler.warmup is 10, not shorter than the run of 10 epochs"),
        ({"warmup": 1.0}, "scheduler.warmup is 1.0, not shorter"),
        ({"warmup": -0.1}, "scheduler.warmup is -0.1; it must be a number at least 0"),
        ({"milestones": [0.7, 0.5]}, r"scheduler.milestones is \[0.7, 0.5\]; it must rise"),
        ({"milestones": 0.5}, "scheduler.milestones is 0.5; it must be a list"),
        ({"milestones": ["x"]}, "scheduler.milestones entry is 'x'"),
        ({"gamma": 0}, "scheduler.gamma is 0; it must be a number above 0"),
    ],
)
def test_lengths_out_of_range(settings, message):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    with pytest.raises(InputError, match=message):
        WarmUpPiecewise(optimizer, total_steps=100, steps_per_epoch=10, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pgd", "free objective.replays=3"])
def test_a_run_steps_them_every_optimizer_step(tmp_path, monkeypatch, objective):
    found = []
    step = torch.optim.Adam.step

    def spy(self, *arguments, **settings):
        if not arguments:  # of a run; the trial before it hands a closure
            found.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **settings)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    epochs = 6 if "free" in objective else 4
    overrides = ["scheduler=warmup_linear", "scheduler.warmup=1", f"trainer.max_epochs={epochs}"]
    train(job("train", tmp_path / "run", *without("train_attack."), *f"objective={objective}".split(), *overrides))
    steps, first = BATCHES * epochs, BATCHES * (3 if "free" in objective else 1)  # free: two epochs of three replays
    rising = [(t + 1) / first for t in range(first)]
    falling = [(steps - t) / (steps - first) for t in range(first, steps)]
    assert found == pytest.approx([0.005 * factor for factor in rising + falling], rel=1e-12)


def test_a_run_too_short_for_a_schedule_is_refused():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    factory = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=RATE, pct_start=0.5)
    with pytest.raises(InputError, match="a phase without a step in a run of 2 steps; train longer"):
        make_scheduler(factory, optimizer, {"total_steps": 2, "steps_per_epoch": 2})
    assert make_scheduler(factory, optimizer, {"total_steps": 4, "steps_per_epoch": 2}).total_steps == 4
