"""Free adversarial training's attack (Shafahi et al. 2019): a perturbation kept from step to step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nsr.attacks.balls import BALLS, ascended
from nsr.errors import InputError, check_choice, check_epsilon, check_length
from nsr.randomness import Generators


class KeptPerturbation:
    """One perturbation for each place in the batch, zero at first, updated by the gradient of the training step.

    x' = clip(x + perturbation, 0, 1);  perturbation <- project(perturbation + step_size * direction(grad_x' loss)).

    Args:
        epsilon: radius of the ball in pixel units, a number or text such as '8/255'.
        step_size: in the units of epsilon; None: epsilon, as in the paper.
        norm: 'linf', 'l2' or 'l1'.
    """

    title = "kept perturbation"

    def __init__(self, *, epsilon: float | str, step_size: float | str | None = None, norm: str = "linf"):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        step_size = self.epsilon if step_size is None else step_size
        self.step_size = check_length("step_size", step_size, norm=norm, epsilon=self.epsilon)
        if self.step_size == 0 < self.epsilon:
            raise InputError("step_size is 0; it must be above 0, or null: epsilon")
        self.scale = 1.0  # of epsilon and step size: the value that a ramp changes
        self.restores_network = True
        self.perturbation: Tensor | None = None  # (largest batch so far, channel, height, width)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Return `perturbed(images)`: neither network nor labels change it."""
        return self.perturbed(images)

    def perturbed(self, images: Tensor) -> Tensor:
        """The images with the kept perturbation on them, (batch, channel, height, width) in [0, 1], detached."""
        return (images.detach() + self._of(images)).clamp_(0, 1)

    def ascend(self, gradient: Tensor) -> None:
        """Updates the perturbation along the gradient of the loss with respect to the images from `perturbed`."""
        kept = self._of(gradient)
        epsilon, step_size = self.scale * self.epsilon, self.scale * self.step_size
        updated = ascended(kept.to(gradient.dtype), gradient, norm=self.norm, epsilon=epsilon, step_size=step_size)
        # a gradient scaled for half precision may have overflowed: such a step is skipped, as the optimizer does
        kept.copy_(torch.where(gradient.isfinite().all(), updated, kept))

    def _of(self, images: Tensor) -> Tensor:
        """The perturbation of a batch; a larger batch than all before gets zeros for its further places."""
        kept = self.perturbation
        if kept is None or len(kept) < len(images):
            self.perturbation = torch.zeros_like(images)
            if kept is not None:
                self.perturbation[: len(kept)] = kept
        self.perturbation = self.perturbation.to(images.device)  # type: ignore[union-attr]
        return self.perturbation[: len(images)]
