"""Transfer: examples made on another network, which an attacker may have where ours is out of reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Generator, Tensor, nn

from nsr.errors import InputError


class TransferAttack:
    """The attack on surrogates; of each image the first example that fools the network at hand, else the last one.

    Source: Papernot, McDaniel and Goodfellow 2016. A defence that falls to transfer and not to gradients masks them.

    Args:
        attack: makes the examples: attack(net, images, labels, generator=...).
        networks: the surrogates, images in [0, 1] -> logits, of the same classes.

    Errors:
        InputError: no surrogate.
    """

    def __init__(self, *, attack: Callable[..., Tensor], networks: Sequence[nn.Module]):
        if len(networks) == 0:
            raise InputError("checkpoints is []; a transfer attack needs at least one surrogate")
        self.attack = attack
        self.networks = [network.eval() for network in networks]

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images of the surrogates."""
        answer = images.clone()
        left = labels == labels  # all of them, on their device
        for network in self.networks:
            made = self.attack(network.to(images.device), images, labels, generator=generator)
            answer[left] = made[left]
            left = left & (net(answer).argmax(1) == labels)
        return answer
