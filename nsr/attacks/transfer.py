"""Transfer: examples made on another network, such as an attacker has who cannot reach ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.guard import Attack, guarded
from nsr.errors import InputError
from nsr.modes import network_mode


class TransferAttack:
    """The attack on surrogates; for each image the first example that fools the network, else the last one.

    Source: Papernot, McDaniel and Goodfellow 2016. A defense that fails under transfer but not under gradients masks
    its gradients.

    Args:
        attack: makes the examples: attack(net, images, labels, generator=...).
        networks: the surrogates, images in [0, 1] -> logits, of the same classes.

    Errors:
        InputError: no surrogate.
    """

    restores_network = True
    soft_labels = False

    def __init__(self, *, attack: Attack, networks: Sequence[nn.Module]):
        if len(networks) == 0:
            raise InputError("networks is []; a transfer attack needs at least one surrogate")
        self.attack: Any = guarded(attack, epsilon=None)
        self.networks = [network.eval() for network in networks]
        self.norm, self.epsilon = self.attack.norm, self.attack.epsilon
        self.title = f"{self.attack.title} from {len(networks)} surrogate{'s' if len(networks) > 1 else ''}"

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images of the surrogates."""
        adversarial = images.clone()
        left = labels == labels  # all of them, on their device
        for network in self.networks:
            made = self.attack(network.to(images.device), images, labels, generator=generator)
            adversarial[left] = made[left]
            with torch.no_grad(), network_mode(net, "eval"):
                left = left & (net(adversarial).argmax(1) == labels)
        return adversarial
