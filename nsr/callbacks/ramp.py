"""A linear ramp of a setting from 0 to its value: the training attack's epsilon, or the stabilizer's weight."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nsr.errors import InputError, check_choice, check_number
from nsr.training.module import is_training


class Ramp(pl.Callback):
    """Linear ramp, from 0 to 1, of the attribute `scale` of the module's training attack or stabilizer.

    A function of the step's place in the run alone, so that resuming needs no state. The scale of an attack of nsr
    multiplies epsilon, step size and noise; that of the stabilizer its weight, and at 0 its passes are left out.

    Args:
        of: 'train_attack' or 'stabilizer', an attribute of the LightningModule.
        epochs: length of the ramp.
        start: epochs at 0 before.

    Errors:
        InputError: a setting out of range, an object that is None or has no `scale`.
    """

    def __init__(self, *, of: str, epochs: float, start: float = 0):
        self.of = check_choice("of", of, ("train_attack", "stabilizer"))
        self.epochs = check_number("callbacks ramp epochs", epochs, above=0)
        self.start = check_number("callbacks ramp start", start, lowest=0)

    @property
    def state_key(self) -> str:
        return f"Ramp({self.of})"

    def check(self, module: pl.LightningModule, epochs: int) -> None:
        """Raise InputError where there is nothing to ramp, or the ramp starts after the run of so many epochs."""
        ramped = getattr(module, self.of, None)
        if self.start >= epochs:
            text = f"start is {self.start}; it must be below the {epochs} epochs of the run, or the ramp never starts"
            raise InputError(text)
        if ramped is None or (self.of == "train_attack" and not (module.attacks or module.stabilizer is not None)):
            raise InputError(f"callbacks has a ramp of the {self.of}, but this run has none; leave the ramp out")
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

    def _set(self, pl_module: Any, epochs: float) -> None:
        getattr(pl_module, self.of).scale = min(1.0, max(0.0, (epochs - self.start) / self.epochs))
