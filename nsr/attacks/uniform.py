"""Chance as an attack: points of the ball, drawn uniformly; one that fools the network is kept."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.balls import BALLS
from nsr.errors import check_choice, check_epsilon, check_number


class UniformDraws:
    """The first of so many draws that fools the network, else the last one. No gradient is used.

    Args:
        epsilon, norm: of the ball, see `GradientAttack`.
        draws: points an image; those that are fooled are not looked at again.
    """

    def __init__(self, *, epsilon: float | str, norm: str = "linf", draws: int = 1000):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.draws = check_number("draws", draws, lowest=1, whole=True)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Images in the ball, shaped as `images`."""
        answer = images.clone()
        left = torch.arange(len(images), device=images.device)
        with torch.no_grad():
            for _ in range(self.draws):
                if len(left) == 0:
                    break
                drawn = BALLS[self.norm](images[left], self.epsilon).random_point(generator)
                answer[left] = drawn
                left = left[net(drawn).argmax(1) == labels[left]]
        return answer
