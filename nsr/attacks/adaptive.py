"""Adaptive attacks: they ascend the activation difference that the stabilizer minimizes.

    x' = argmax  CE(f(x'), y)  +  weight * mean over layers of  mean over the layer's most sensitive neurons of
                                                                 |F_lm(x) - F_lm(x')|

A defense that trains a term is not to be believed before an attack that ascends it (Tramer, Carlini, Brendel and Madry
2020). Without the cross-entropy it is a pure attack on the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nsr.attacks.best import Places
from nsr.attacks.gradient import Goal, GradientAttack, OfLogits
from nsr.errors import InputError, check_amount, check_choice, check_layers, check_number
from nsr.features import capture_features
from nsr.layers import Layer, find_layers
from nsr.sensitivity import largest, neuron_sensitivity

_FOUND: WeakKeyDictionary[nn.Module, dict[str, list[Layer]]] = WeakKeyDictionary()  # so that a batch needs no passes


class AdaptiveAttack(GradientAttack):
    """PGD on the cross-entropy and the activation difference of the most sensitive neurons, or on the latter alone.

    Args:
        weight: of the activation difference.
        top: number (int) or fraction (float) of a layer's neurons, the most sensitive ones of each image in each step.
        layers: names or patterns of the layers, as in `find_layers`.
        cross_entropy: whether the loss is part of the sum; without it, a random start is needed.
        settings: of `GradientAttack`; loss and targeted say what stands in the place of the cross-entropy.

    Errors:
        InputError: a setting out of range; a loss or targeted without cross_entropy.
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
        self.top = check_amount("top", top)
        self.layers = None if layers is None else check_layers("layers", layers)
        self.cross_entropy = check_choice("cross_entropy", cross_entropy, (True, False))
        if not cross_entropy and (self.loss is not None or self.targeted):
            got = f"cross_entropy is False, loss {self.loss!r} and targeted {self.targeted!r}"
            raise InputError(f"{got}; without the cross-entropy no loss is ascended: loss must be null, targeted false")

    @property
    def title(self) -> str:
        return f"{'adaptive' if self.cross_entropy else 'feature'} {super().title}"

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, **call: Any) -> Tensor:
        known = _FOUND.setdefault(net, {})
        names = str(self.layers)
        if names not in known:
            known[names] = find_layers(net, images[[0, -1]], self.layers)
        with capture_features(net, known[names]) as self._features:
            return super().__call__(net, images, labels, **call)

    def _goal(self, forward: OfLogits, images: Tensor, labels: Tensor) -> Goal:
        loss_of, success_of = super()._goal(forward, images, labels)
        with torch.no_grad():
            forward(images)
        clean = dict(self._features)

        def total(logits: Tensor, places: Places) -> Tensor:
            captured = self._features.items()
            differences = [self._difference(clean[layer][places], features) for layer, features in captured]
            difference = self.weight * torch.stack(differences).mean(0)
            return loss_of(logits, places) + difference if self.cross_entropy else difference

        return total, success_of

    def _difference(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """(batch,): each image's mean activation difference over the layer's most sensitive neurons."""
        # the sensitivity of a single image, image by image: (batch, neuron)
        each = torch.vmap(lambda x, y: neuron_sensitivity(x[None], y[None]))(clean, adversarial)
        count = len(largest(each[0], self.top))
        return each.topk(count, dim=1).values.mean(1)
