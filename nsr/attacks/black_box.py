"""Examples without the attacked network's gradients: uniform draws from the ball, examples made on other networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nsr.attacks.balls import BALLS
from nsr.attacks.guard import Attack, AttackWrapper, guarded
from nsr.errors import InputError, check_choice, check_epsilon, check_finite_logits, check_number
from nsr.modes import network_mode
from nsr.randomness import Generators, narrowed


class UniformDraws:
    """The first of a number of draws that fools the network, else the last one. No gradient is used.

    Args:
        epsilon, norm: of the ball, see `GradientAttack`.
        draws: points per image; an image that is fooled gets no further ones.
    """

    restores_network = True
    soft_labels = False
    draws_per_image = True

    def __init__(self, *, epsilon: float | str, norm: str = "linf", draws: int = 1000):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.draws = check_number("draws", draws, lowest=1, whole=True)
        self.title = f"{draws} uniform draws"

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Images in the ball, shaped as `images`."""
        adversarial = images.clone()
        left = torch.arange(len(images), device=images.device)
        with torch.no_grad(), network_mode(net, "eval"):
            for _ in range(self.draws):
                if len(left) == 0:
                    break
                drawn = BALLS[self.norm](images[left], self.epsilon).random_point(narrowed(generator, left))
                adversarial[left] = drawn
                logits = net(drawn)
                check_finite_logits(logits, places=left)
                left = left[logits.argmax(1) == labels[left]]
        return adversarial


class _OtherNetworks(AttackWrapper):
    """An attack that makes its examples on further networks, which are never trained."""

    needs = ""  # the error where there is none

    def __init__(self, *, attack: Attack, networks: Sequence[nn.Module]):
        if len(networks) == 0:
            raise InputError(f"networks is []; {self.needs}")
        self.attack = guarded(attack, epsilon=None)
        self.networks = [network.eval() for network in networks]
        self.norm, self.epsilon = self.attack.norm, self.attack.epsilon


class TransferAttack(_OtherNetworks):
    """The attack on surrogates; for each image the first example that fools the network, else the last one.

    Source: Papernot, McDaniel and Goodfellow 2016. A defense that fails under transfer but not under gradients masks
    its gradients.

    Args:
        attack: makes the examples: attack(net, images, labels, generator=...).
        networks: the surrogates, images in [0, 1] -> logits, of the same classes.

    Errors:
        InputError: no surrogate.
    """

    needs = "a transfer attack needs at least one surrogate"
    soft_labels = False

    @property
    def title(self) -> str:
        return f"{self.attack.title} from {len(self.networks)} surrogate{'s' if len(self.networks) > 1 else ''}"

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Adversarial images of the surrogates."""
        adversarial = images.clone()
        left = labels == labels  # all of them, on their device
        for network in self.networks:
            made = self.attack(network.to(images.device), images, labels, generator=generator)
            adversarial[left] = made[left]
            with torch.no_grad(), network_mode(net, "eval"):
                logits = net(adversarial)
            check_finite_logits(logits)
            left = left & (logits.argmax(1) == labels)
        return adversarial


class EnsembleAttack(_OtherNetworks):
    """Ensemble adversarial training's attack: each batch from one source, the network in training or a fixed one.

    Section 3.3 of Tramer et al. 2018 rotates among them; a draw with equal chances from the step's own seed is the same
    in the mean and needs no state. The fixed networks are not part of the checkpoint.

    Args:
        attack: makes the examples, e.g. FGSM: attack(net, images, labels, generator=...).
        networks: the fixed ones, images in [0, 1] -> logits, of the same classes.

    Errors:
        InputError: no fixed network.
    """

    needs = "ensemble adversarial training needs at least one fixed network"

    @property
    def title(self) -> str:
        return f"{self.attack.title} on this network or {len(self.networks)} fixed"

    @property
    def soft_labels(self) -> bool:
        return self.attack.soft_labels

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Adversarial images for the source that is drawn."""
        source = int(torch.randint(len(self.networks) + 1, ()))  # on the CPU: does not wait for the device
        if source < len(self.networks):
            net = self.networks[source].to(images.device)
        return self.attack(net, images, labels, generator=generator)
