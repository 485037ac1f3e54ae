"""Linear ramps of a setting to its value: the training attack's epsilon or steps, or the stabilizer's weight."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nsr.errors import InputError, check_choice, check_number
from nsr.training.phases import is_training


class Ramp(pl.Callback):
    """Linear ramp, from `initial` to 1, of the attribute `scale` of the module's training attack or stabilizer.

    A function of the step's place in the run alone, so that resuming needs no state. The scale of an attack of nsr
    multiplies epsilon, step size and noise; that of the stabilizer its weight, and at 0 its passes are left out.

    Args:
        of: 'train_attack' or 'stabilizer', an attribute of the LightningModule.
        epochs: length of the ramp.
        start: epochs at `initial` before.
        initial: scale at the beginning, in [0, 1].

    Errors:
        InputError: a setting out of range, an object that is None or has no `scale`.
    """

    def __init__(self, *, of: str, epochs: float, start: float = 0, initial: float = 0):
        self.of = check_choice("of", of, ("train_attack", "stabilizer"))
        self.epochs = check_number("callbacks ramp epochs", epochs, above=0)
        self.start = check_number("callbacks ramp start", start, lowest=0)
        self.initial = check_number("callbacks ramp initial", initial, lowest=0, highest=1)

    @property
    def state_key(self) -> str:
        return f"Ramp({self.of})"

    def check(self, module: pl.LightningModule, epochs: int) -> None:
        """Raise InputError where there is nothing to ramp, or the ramp starts after the run of so many epochs."""
        check_start(self.start, epochs)
        check_is_there(module, self.of)
        ramped = getattr(module, self.of)
        if not hasattr(ramped, "scale"):
            kind = f"a {type(ramped).__name__} without attribute scale"
            raise InputError(f"callbacks has a ramp of the {self.of}, {kind}; give it one, or leave the ramp out")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check(pl_module, trainer.max_epochs or 1)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._set(pl_module, trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if is_training(trainer):  # a run may resume with an epoch's validation
            self._set(pl_module, trainer.current_epoch + 1)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":  # another training may take the same object
            getattr(pl_module, self.of).scale = 1.0

    def _set(self, pl_module: Any, epochs: float) -> None:
        progress = min(1.0, max(0.0, (epochs - self.start) / self.epochs))
        getattr(pl_module, self.of).scale = self.initial + (1 - self.initial) * progress


class StepsRamp(pl.Callback):
    """Linear ramp of the training attack's number of steps, a step an epoch, to the number in its settings.

    In epoch e, counted from 0: the nearest whole number, halves up, to initial + (steps - initial) * (e - start) /
    epochs, within the two. A step size of null follows as 2.5 * epsilon / steps; any other stays.

    Args:
        epochs: length of the ramp; the attack has all of its steps from epoch start + epochs on.
        start: epochs with `initial` steps before.
        initial: steps at the beginning.

    Errors:
        InputError: a setting out of range; a run without training attack, or with one without steps.
    """

    def __init__(self, *, epochs: int, start: int = 0, initial: int = 1):
        self.epochs = check_number("callbacks ramp epochs", epochs, lowest=1, whole=True)
        self.start = check_number("callbacks ramp start", start, lowest=0, whole=True)
        self.initial = check_number("callbacks ramp initial", initial, lowest=1, whole=True)
        self._steps = 0  # of the attack's settings

    def check(self, module: Any, epochs: int) -> None:
        """Raise InputError where there are no steps to ramp, or the ramp starts after the run of so many epochs."""
        check_start(self.start, epochs)
        check_is_there(module, "train_attack")
        if not isinstance(getattr(module.train_attack, "steps", None), int):
            kind = f"a {type(module.train_attack).__name__} without attribute steps"
            raise InputError(f"callbacks has a ramp of the train_attack's steps, {kind}; leave the ramp out")

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.check(pl_module, trainer.max_epochs or 1)
            self._steps = pl_module.train_attack.steps

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.train_attack.steps = self.steps(trainer.current_epoch)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            pl_module.train_attack.steps = self._steps

    def steps(self, epoch: int) -> int:
        """Return the number of steps in an epoch, counted from 0."""
        progress = min(max(epoch - self.start, 0), self.epochs)  # whole numbers: halves are exact
        return (2 * (self.initial * self.epochs + (self._steps - self.initial) * progress) + self.epochs) // (
            2 * self.epochs
        )


def check_start(start: float, epochs: int) -> None:
    """Raise InputError where a ramp starts after the run of so many epochs."""
    if start >= epochs:
        text = f"start is {start}; it must be below the {epochs} epochs of the run, or the ramp never starts"
        raise InputError(text)


def check_is_there(module: Any, ramped: str) -> None:
    """Raise InputError where the module has no object called `ramped`, or an attack that nothing uses."""
    there = getattr(module, ramped, None)
    if there is None or (ramped == "train_attack" and not (module.attacks or module.stabilizer is not None)):
        raise InputError(f"callbacks has a ramp of the {ramped}, but this run has none; leave the ramp out")
