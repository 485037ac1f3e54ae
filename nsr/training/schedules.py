"""Learning rates that change each step: a linear warm-up to the optimizer's rate, then a decay.

    lr_t = lr * (t + 1) / W              for step t = 0 .. W - 1, the warm-up (Goyal et al. 2017, section 2.2)
    lr_t = lr * decay((t - W) / (T - W)) for step t = W .. T - 1, and decay(1) from T on

Any callable (optimizer, *, total_steps) -> scheduler may stand beside them, such as a subclass with another `decay`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nsr.errors import InputError, check_number, named_arguments


def n_steps(name: str, length: float, *, total_steps: int, steps_per_epoch: int) -> int:
    """Return the optimizer steps of a length: a float is a fraction of the run, in [0, 1), an int a count of epochs.

    Errors:
        InputError: the length is out of range, or no shorter than the run.
    """
    advice = "a float is a fraction of the run, below 1, an int a count of epochs"
    steps = check_number(name, length, lowest=0, advice=advice) * steps_per_epoch
    steps = round(length * total_steps) if isinstance(length, float) else steps
    if (isinstance(length, float) and length >= 1) or steps >= total_steps:
        raise InputError(
            f"{name} is {length}, not shorter than the run of {total_steps // steps_per_epoch} epochs; {advice}"
        )
    return int(steps)


def make_scheduler(factory: Callable[..., Any], optimizer: Optimizer, lengths: Mapping[str, int]) -> Any:
    """Call `factory` on the optimizer with the lengths of the run: total_steps=, and others where it names them.

    A bound max_lr, as OneCycleLR has for all groups of the optimizer, is scaled to the rate of each.

    Errors:
        InputError: a run too short for the schedule: OneCycleLR divides by the length of its phases; ReduceLROnPlateau
            that waits for a lower accuracy.
    """
    named, _ = named_arguments(factory)
    given: dict[str, Any] = {key: value for key, value in lengths.items() if key == "total_steps" or key in named}
    peak = getattr(factory, "keywords", {}).get("max_lr")
    if isinstance(peak, (int, float)):
        base, rates = optimizer.defaults["lr"], [group["lr"] for group in optimizer.param_groups]
        given |= {} if set(rates) == {base} else {"max_lr": [peak * rate / base for rate in rates]}
    try:
        made = factory(optimizer, **given)
    except ZeroDivisionError as error:
        got = f"scheduler has a phase without a step in a run of {lengths.get('total_steps', 'so few')} steps"
        raise InputError(f"{got}; train longer, or choose another schedule or scheduler.pct_start") from error
    if isinstance(made, ReduceLROnPlateau) and made.mode == "min":
        raise InputError(
            "scheduler.mode is 'min', but the schedule follows the validated robust accuracy, of which more is better; "
            "give scheduler.mode=max"
        )
    return made


class WarmUp(LRScheduler):
    """Linear warm-up, then the rate times `decay`, which here is constant; stepped after every optimizer step.

    All of its state is in its state_dict, the length of the run included.

    Args:
        total_steps: T, the optimizer steps of the run.
        steps_per_epoch: optimizer steps of one pass over the training data.
        warmup: W, a fraction of the run (float) or a count of epochs (int); 0: none.
    """

    def __init__(self, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup: float = 0):
        self.total_steps = total_steps
        self.warmup_steps = n_steps(
            "scheduler.warmup", warmup, total_steps=total_steps, steps_per_epoch=steps_per_epoch
        )
        super().__init__(optimizer)

    def decay(self, progress: float) -> float:
        """Return the factor of the rate at a progress in [0, 1] between the end of the warm-up and that of the run."""
        return 1.0

    def factor(self, step: int) -> float:
        """Return the factor of the optimizer's rate in the step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.decay(min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)))

    def get_lr(self) -> list[Any]:
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


class WarmUpCosine(WarmUp):
    """Warm-up, then a half cosine to zero: decay(p) = (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, equation 5)."""

    def decay(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class WarmUpLinear(WarmUp):
    """Warm-up, then a straight line to zero, decay(p) = 1 - p: the triangle of Smith 2017."""

    def decay(self, progress: float) -> float:
        return 1 - progress


class WarmUpPiecewise(WarmUp):
    """Warm-up, then the rate times `gamma` at each milestone: Rice et al. 2020 take 0.5 and 0.75 of the run.

    Args:
        milestones: rising, each a fraction of the whole run (float) or a count of epochs (int).
        gamma: in (0, 1].
        total_steps, steps_per_epoch, warmup: see `WarmUp`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
        warmup: float = 0,
        milestones: Sequence[float] = (0.5, 0.75),
        gamma: float = 0.1,
    ):
        lengths = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        self.gamma = check_number("scheduler.gamma", gamma, above=0, highest=1)
        if not isinstance(milestones, (list, tuple)) or not milestones:
            raise InputError(f"scheduler.milestones is {milestones!r}; it must be a list such as [0.5, 0.75]")
        self.milestones = [n_steps("scheduler.milestones entry", each, **lengths) for each in milestones]
        if self.milestones != sorted(self.milestones):
            raise InputError(f"scheduler.milestones is {list(milestones)}; it must rise, such as [0.5, 0.75]")
        super().__init__(optimizer, warmup=warmup, **lengths)

    def factor(self, step: int) -> float:
        return super().factor(step) * self.gamma ** sum(step >= milestone for milestone in self.milestones)
