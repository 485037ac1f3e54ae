"""Where in a run a Trainer is: callbacks and the module ask here."""

from __future__ import annotations

import pytorch_lightning as pl


def is_training(trainer: pl.Trainer) -> bool:
    """Return whether the Trainer fits, and is past the validation before training."""
    return bool(trainer.state.fn == "fit" and not trainer.sanity_checking)


def validated_epoch(trainer: pl.Trainer) -> int:
    """Return the number of the epoch whose end is validated; 0: before training."""
    return trainer.current_epoch + (not trainer.sanity_checking)  # a further fit() begins with a validation too


def ends_epoch(trainer: pl.Trainer) -> bool:
    """Return whether a validation of a fit is the one after an epoch, cut short or not, or of all images before any.

    Others are no epoch's: those in its middle, and Lightning's trial of a few batches.
    """
    if trainer.sanity_checking:
        return trainer.current_epoch == 0 and trainer.num_sanity_val_steps == float("inf")
    return trainer.is_last_batch or trainer.should_stop
