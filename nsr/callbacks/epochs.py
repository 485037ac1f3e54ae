"""How far a run is."""

from __future__ import annotations

import pytorch_lightning as pl


def finished_epochs(trainer: pl.Trainer) -> int:
    """How many epochs of training the validation at hand comes after: 0 in the one before training."""
    return 0 if trainer.sanity_checking else trainer.current_epoch + 1
