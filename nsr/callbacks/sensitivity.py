"""Sensitivities of every tapped layer to the dashboards, each epoch; epoch 0 is before training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nsr.dashboards import log_sensitivities


class SensitivityLogger(pl.Callback):
    """Logs histogram, means and most sensitive neurons of each layer after every validation.

    The figures are validation's own, reduced over processes: no pass through the network is made for them.

    Args:
        top: how many neurons of a layer are named.
    """

    def __init__(self, *, top: int = 10):
        self.top = top

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        epoch = finished_epochs(trainer)
        for logger in trainer.loggers:
            if epoch == 0:  # Lightning logs nothing of the validation before training
                logger.log_metrics({**pl_module.figures["validation"], "epoch": 0}, step=0)
            log_sensitivities(logger, pl_module.sensitivities, top=self.top, step=trainer.global_step, epoch=epoch)


def finished_epochs(trainer: pl.Trainer) -> int:
    """How many epochs of training the validation at hand comes after: 0 in the one before training."""
    return 0 if trainer.sanity_checking else trainer.current_epoch + 1
