"""Ensemble adversarial training's attack (Tramer et al. 2018): examples from this network or from a fixed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.errors import InputError


class EnsembleAttack:
    """For each batch one source, drawn with equal chances: the network that is trained, or a fixed one.

    Section 3.3 of the paper rotates among them; a draw from the step's own seed is the same in the mean and needs no
    state. What is fixed is never trained and not part of the checkpoint.

    Args:
        attack: makes the examples, e.g. FGSM: attack(net, images, labels, generator=...).
        networks: the fixed ones, images in [0, 1] -> logits, of the same classes.

    Errors:
        InputError: no fixed network.
    """

    def __init__(self, *, attack: Callable[..., Tensor], networks: Sequence[nn.Module]):
        if len(networks) == 0:
            raise InputError("checkpoints is []; ensemble adversarial training needs at least one fixed network")
        self.attack: Any = attack
        self.networks = [network.eval() for network in networks]

    @property
    def share(self) -> float:
        """Of epsilon: what a ramp moves."""
        return self.attack.share

    @share.setter
    def share(self, share: float) -> None:
        self.attack.share = share

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images as the attack makes them on the source that is drawn."""
        source = int(torch.randint(len(self.networks) + 1, ()))  # on the CPU: the device is not waited for
        if source < len(self.networks):
            net = self.networks[source].to(images.device)
        return self.attack(net, images, labels, generator=generator)
