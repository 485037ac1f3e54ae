"""Random search: points drawn uniformly from the ball; one that fools the network is kept."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.balls import BALLS
from nsr.errors import check_choice, check_epsilon, check_number
from nsr.modes import network_mode


class UniformDraws:
    """The first of a number of draws that fools the network, else the last one. No gradient is used.

    Args:
        epsilon, norm: of the ball, see `GradientAttack`.
        draws: points per image; an image that is fooled gets no further ones.
    """

    restores_network = True
    soft_labels = False

    def __init__(self, *, epsilon: float | str, norm: str = "linf", draws: int = 1000):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.draws = check_number("draws", draws, lowest=1, whole=True)
        self.title = f"{draws} uniform draws"

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Images in the ball, shaped as `images`."""
        adversarial = images.clone()
        left = torch.arange(len(images), device=images.device)
        with torch.no_grad(), network_mode(net, "eval"):
            for _ in range(self.draws):
                if len(left) == 0:
                    break
                drawn = BALLS[self.norm](images[left], self.epsilon).random_point(generator)
                adversarial[left] = drawn
                left = left[net(drawn).argmax(1) == labels[left]]
        return adversarial
