"""Ensemble adversarial training's attack (Tramer et al. 2018): examples from this network or from a fixed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.guard import Attack, guarded
from nsr.errors import InputError


class EnsembleAttack:
    """For each batch one source, drawn with equal chances: the network in training, or a fixed one.

    Section 3.3 of the paper rotates among them; a draw from the step's own seed is the same in the mean and needs no
    state. The fixed networks are never trained and not part of the checkpoint.

    Args:
        attack: makes the examples, e.g. FGSM: attack(net, images, labels, generator=...).
        networks: the fixed ones, images in [0, 1] -> logits, of the same classes.

    Errors:
        InputError: no fixed network.
    """

    restores_network = True

    def __init__(self, *, attack: Attack, networks: Sequence[nn.Module]):
        if len(networks) == 0:
            raise InputError("networks is []; ensemble adversarial training needs at least one fixed network")
        self.attack: Any = guarded(attack, epsilon=None)
        self.networks = [network.eval() for network in networks]
        self.norm, self.epsilon = self.attack.norm, self.attack.epsilon
        self.soft_labels: bool = self.attack.soft_labels
        self.title = f"{self.attack.title} on this network or {len(networks)} fixed"

    @property
    def scale(self) -> float:
        """The inner attack's."""
        return self.attack.scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self.attack.scale = scale

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images for the source that is drawn."""
        source = int(torch.randint(len(self.networks) + 1, ()))  # on the CPU: does not wait for the device
        if source < len(self.networks):
            net = self.networks[source].to(images.device)
        return self.attack(net, images, labels, generator=generator)
