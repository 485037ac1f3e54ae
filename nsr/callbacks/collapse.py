"""A stabiliser that has won: the network is a constant, which no image moves and no training image is learnt by."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytorch_lightning as pl

from nsr.callbacks.sensitivity import finished_epochs
from nsr.errors import RunStopped

EPOCHS = 3  # in a row: a run may pass through a constant at its start
SENSITIVITY_LEFT = 0.01  # of the sensitivity before training
ABOVE_CHANCE = 0.1  # of the way from chance to all right


class ConstantNetworkStop(pl.Callback):
    """Stops a run whose stabiliser has driven the network to a constant, with the cause and the setting.

    A constant: for three epochs in a row the stabilised layers' mean absolute sensitivity is under a hundredth of what
    it was before training, while validated clean accuracy is within a tenth of the way from chance to 1.
    """

    def __init__(self) -> None:
        self.before: float | None = None
        self.epochs = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or pl_module.stabilizer is None:
            return
        stabilized = pl_module.stabilizer.stabilized(list(pl_module.sensitivities))
        sensitivity = fmean(float(pl_module.sensitivities[layer].absolute.mean()) for layer in stabilized)
        accuracy = pl_module.figures["validation"]["validation/clean_accuracy"]
        if finished_epochs(trainer) == 0:
            self.before = sensitivity
        if self.before is None:
            return
        chance = 1 / pl_module.classes
        is_constant = sensitivity < SENSITIVITY_LEFT * self.before and accuracy <= chance + ABOVE_CHANCE * (1 - chance)
        self.epochs = self.epochs + 1 if is_constant else 0
        if self.epochs == EPOCHS:
            raise RunStopped(
                f"the stabiliser has driven the network to a constant: clean accuracy {100 * accuracy:.1f} % is chance "
                f"and sensitivity {sensitivity:.2g} was {self.before:.2g} before training, for {EPOCHS} epochs; lower "
                f"stabilizer.weight ({pl_module.stabilizer.weight:g}) or optimizer.lr, or let the weight grow: "
                "callbacks=[stabilizer_ramp]"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.epochs = state_dict["before"], state_dict["epochs"]
