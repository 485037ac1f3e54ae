"""Attacks that know the defence: they push the neurons that stabilising holds still.

    x' = argmax  CE(f(x'), y)  +  weight * mean over layers of  mean over the layer's most sensitive neurons of movement

A defence that trains a term is not to be believed before an attack that ascends it (Tramer, Carlini, Brendel and Madry
2020). Without the cross-entropy it is a pure attack on the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.gradient import GradientAttack
from nsr.errors import check_choice, check_number, check_top
from nsr.features import capture_features
from nsr.sensitivity import most_sensitive, neuron_sensitivity


class AdaptiveAttack(GradientAttack):
    """PGD on the cross-entropy and the movement of the most sensitive neurons, or on the movement alone.

    Args:
        weight: of the movement.
        top: how many of a layer's neurons, chosen anew in each step by the batch's sensitivities.
        layers: names or patterns of the layers; None: the activations.
        cross_entropy: whether the loss is part of what is ascended; without it, a random start is needed.
        settings: of `GradientAttack`, but for its loss and targets.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        top: int | float = 0.1,
        layers: str | Sequence[str] | None = None,
        cross_entropy: bool = True,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.weight = check_number("weight", weight, lowest=0)
        self.top = check_top("top", top)
        self.layers = layers
        self.cross_entropy = check_choice("cross_entropy", cross_entropy, (True, False))

    def _ascend(
        self, net: nn.Module, images: Tensor, labels: Tensor, generator: Generator | None, *, check: bool = False
    ) -> Tensor:
        with capture_features(net, self.layers) as self._features:
            return super()._ascend(net, images, labels, generator, check=check)

    def _aims(
        self, logits_of: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        loss_of, fooled_by = super()._aims(logits_of, images, labels)
        with torch.no_grad():
            logits_of(images)
        clean = dict(self._features)

        def both(logits: Tensor) -> Tensor:
            moved = [self._movement(clean[layer], features) for layer, features in self._features.items()]
            movement = self.weight * torch.stack(moved).mean(0)
            return loss_of(logits) + movement if self.cross_entropy else movement

        return both, fooled_by

    def _movement(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """(batch,): each image's mean movement of the layer's most sensitive neurons."""
        axis = -1 if clean.ndim == 3 else 1
        # the sensitivity of a single image, image by image: (batch, neuron)
        moved = torch.vmap(lambda x, y: neuron_sensitivity(x[None], y[None], neuron_dim=axis))(clean, adversarial)
        return moved[:, most_sensitive(moved.mean(0), self.top)].mean(1)
