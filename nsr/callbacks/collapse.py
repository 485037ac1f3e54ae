"""A stabiliser that has won: the network is a constant, which no image moves and no training image is learnt by."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from nsr.callbacks.epochs import finished_epochs
from nsr.errors import RunStopped

EPOCHS = 3  # in a row: a run may pass through a constant at its start
SENSITIVITY_LEFT = 0.1  # of a layer's sensitivity before training
ABOVE_CHANCE = 0.1  # of the way from chance to all right
CHANGED = 0.005  # of the predictions, by the attack


class ConstantNetworkStop(pl.Callback):
    """Stops a run whose stabiliser has driven the network to a constant, with the cause and the setting.

    A constant, for three epochs in a row: validated clean accuracy is within a tenth of the way from chance to 1, the
    attack costs no more than half a point of it, and a stabilised layer has less than a tenth of the mean absolute
    sensitivity it had before training. One such layer is enough: nothing passes through it.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.epochs = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or pl_module.stabilizer is None:
            return
        layers = pl_module.stabilizer.stabilized(list(pl_module.sensitivities))
        now = {layer: float(pl_module.sensitivities[layer].absolute.mean()) for layer in layers}
        if finished_epochs(trainer) == 0:
            self.before = now
        if not self.before:
            return
        stillest = min(layers, key=lambda layer: now[layer] / max(self.before[layer], 1e-30))
        figures, chance = pl_module.figures["validation"], 1 / pl_module.classes
        clean, robust = figures["validation/clean_accuracy"], figures["validation/robust_accuracy"]
        is_constant = (
            clean <= chance + ABOVE_CHANCE * (1 - chance)
            and clean - robust <= CHANGED
            and now[stillest] < SENSITIVITY_LEFT * self.before[stillest]
        )
        self.epochs = self.epochs + 1 if is_constant else 0
        if self.epochs == EPOCHS:
            raise RunStopped(
                f"the stabiliser has driven the network to a constant: for {EPOCHS} epochs clean accuracy "
                f"{100 * clean:.1f} % is chance, and the sensitivity of {stillest} is {now[stillest]:.2g} where it was "
                f"{self.before[stillest]:.2g} before training; lower stabilizer.weight "
                f"({pl_module.stabilizer.weight:g}) or optimizer.lr, or let the weight grow: "
                "callbacks=[stabilizer_ramp]"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.epochs = state_dict["before"], state_dict["epochs"]
