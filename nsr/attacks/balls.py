"""The sets an attack may move in: the ball of radius epsilon around each image, within the pixel range [0, 1]."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from nsr.losses import precise


class LinfBall:
    """|x' - x| <= epsilon in every pixel."""

    def __init__(self, images: Tensor, epsilon: float):
        self.images, self.epsilon = images, epsilon
        # ball and pixel range in one pair of bounds: a projection is one clamp
        self.lowest = (images - epsilon).clamp_(min=0)
        self.highest = (images + epsilon).clamp_(max=1)

    def random_point(self, generator: Generator | None) -> Tensor:
        """Uniform in the ball, then clipped to the pixel range: (batch, channel, height, width)."""
        noise = torch.rand(self.images.shape, generator=generator, dtype=self.images.dtype, device=self.images.device)
        return self.moved((2 * noise - 1) * self.epsilon)

    def moved(self, movement: Tensor) -> Tensor:
        """The images, moved and put back into ball and pixel range."""
        return self._project(self.images + movement)

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """One step of steepest ascent: `step_size` in the direction of the gradient's sign, and back into the ball."""
        return self._project(torch.add(adversarial, gradient.sign(), alpha=step_size))

    def _project(self, adversarial: Tensor) -> Tensor:
        return adversarial.clamp_(self.lowest, self.highest)


class L2Ball:
    """|| x' - x ||_2 <= epsilon over all of an image's pixels."""

    def __init__(self, images: Tensor, epsilon: float):
        self.images, self.epsilon = images, epsilon

    def random_point(self, generator: Generator | None) -> Tensor:
        """Uniform in the ball (a uniform direction, radius by the root of the dimension), then clipped."""
        device, dtype = self.images.device, precise(self.images)
        direction = torch.randn(self.images.shape, generator=generator, device=device, dtype=dtype)
        radius = torch.rand(len(self.images), generator=generator, device=device, dtype=dtype)
        share = radius ** (1 / self.images[0].numel())
        return self.moved(unit(direction) * _per_image(share * self.epsilon, direction))

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """One step of steepest ascent: `step_size` along the gradient, and back into the ball."""
        movement = (adversarial - self.images).to(precise(gradient))
        return self.moved(torch.add(movement, unit(gradient), alpha=step_size))

    def moved(self, movement: Tensor) -> Tensor:
        """The images, moved and put back into ball and pixel range."""
        return (self.images + _shortened(movement, self.epsilon)).clamp_(0, 1).to(self.images.dtype)


BALLS: dict[str, type[LinfBall] | type[L2Ball]] = {"linf": LinfBall, "l2": L2Ball}


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _length(movement: Tensor) -> Tensor:
    """(batch, ...) -> (batch, 1, ...): the L2 norm of each image."""
    return _per_image(torch.linalg.vector_norm(movement.flatten(1), dim=1), movement)


def unit(direction: Tensor) -> Tensor:
    """Each image's direction at length 1; zero where it is zero."""
    direction = direction.to(precise(direction))
    tiny = torch.finfo(direction.dtype).tiny
    # by its largest entry first: the squares of a confident network's gradients underflow
    direction = direction / _per_image(direction.abs().flatten(1).amax(1), direction).clamp(min=tiny)
    return direction / _length(direction).clamp(min=tiny)


def _shortened(movement: Tensor, epsilon: float) -> Tensor:
    """Each image's movement at a length of at most epsilon.

    Clipping to the pixel range afterwards only shortens a movement that starts at an image in the range.
    """
    length = _length(movement)
    return movement * (epsilon / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp_(max=1)


def ascended(perturbation: Tensor, gradient: Tensor, *, norm: str, epsilon: float, step_size: float) -> Tensor:
    """One step of steepest ascent of a perturbation on its own, within epsilon; the pixel range is not looked at."""
    if norm == "linf":
        return torch.add(perturbation, gradient.sign(), alpha=step_size).clamp_(-epsilon, epsilon)
    return _shortened(torch.add(perturbation, unit(gradient), alpha=step_size), epsilon)
