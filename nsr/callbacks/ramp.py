"""A setting that grows from nothing to its value: the attack's epsilon, or the stabiliser's weight."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nsr.errors import InputError, check_choice, check_number


class Ramp(pl.Callback):
    """A linear ramp, step by step; a function of the step's place alone, so that resuming needs no state.

    At epsilon's ramp step size and noise of the attack grow with it. While the stabiliser's share is 0 its passes are
    left out.

    Args:
        of: 'attack' or 'stabilizer'.
        epochs: how long it grows.
        start: epochs at 0 before.

    Errors:
        InputError: a setting out of range, nothing to ramp.
    """

    def __init__(self, *, of: str, epochs: float, start: float = 0):
        self.of = check_choice("of", of, ("attack", "stabilizer"))
        self.epochs = check_number("callbacks ramp epochs", epochs, above=0)
        self.start = check_number("callbacks ramp start", start, lowest=0)

    @property
    def state_key(self) -> str:
        return f"Ramp({self.of})"

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and getattr(pl_module, self.of) is None:
            raise InputError(f"callbacks has a ramp of the {self.of}, but this run has none")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._move(pl_module, trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:  # a run may go on with an epoch's validation
            self._move(pl_module, trainer.current_epoch + 1)

    def _move(self, pl_module: Any, place: float) -> None:
        getattr(pl_module, self.of).share = min(1.0, max(0.0, (place - self.start) / self.epochs))
