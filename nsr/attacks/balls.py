"""The sets an attack may search: the ball of radius epsilon around each image, within the pixel range [0, 1]."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from nsr.losses import precise
from nsr.randomness import Generators, draw


class Ball:
    """The images within epsilon of `images` in one norm, and within the pixel range."""

    def __init__(self, images: Tensor, epsilon: float):
        self.images, self.epsilon = images, epsilon

    def random_point(self, generator: Generators) -> Tensor:
        """Uniform in the ball, then projected onto the pixel range: (batch, channel, height, width)."""
        raise NotImplementedError

    def perturbed(self, perturbation: Tensor) -> Tensor:
        """The images plus a perturbation, projected onto ball and pixel range."""
        raise NotImplementedError

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """One projected step of ascent, `step_size` long in the norm."""
        raise NotImplementedError


class LinfBall(Ball):
    """|x' - x| <= epsilon in every pixel."""

    def __init__(self, images: Tensor, epsilon: float):
        super().__init__(images, epsilon)
        # ball and pixel range in one pair of bounds: a projection is one clamp
        self.lowest = (images - epsilon).clamp_(min=0)
        self.highest = (images + epsilon).clamp_(max=1)

    def random_point(self, generator: Generators) -> Tensor:
        settings: Any = {"generator": generator, "device": self.images.device, "dtype": self.images.dtype}
        noise = draw(torch.rand, *self.images.shape, **settings)
        return self.perturbed((2 * noise - 1) * self.epsilon)

    def perturbed(self, perturbation: Tensor) -> Tensor:
        return (self.images + perturbation).clamp_(self.lowest, self.highest)

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        return torch.add(adversarial, gradient.sign(), alpha=step_size).clamp_(self.lowest, self.highest)


class L2Ball(Ball):
    """|| x' - x ||_2 <= epsilon over all of an image's pixels."""

    def random_point(self, generator: Generators) -> Tensor:
        # a uniform direction, radius by the root of the dimension
        settings: Any = {"generator": generator, "device": self.images.device, "dtype": precise(self.images)}
        direction = draw(torch.randn, *self.images.shape, **settings)
        fraction = draw(torch.rand, len(self.images), **settings) ** (1 / self.images[0].numel())
        return self.perturbed(unit(direction) * per_image(fraction * self.epsilon, direction))

    def perturbed(self, perturbation: Tensor) -> Tensor:
        return (self.images + _shortened(perturbation, self.epsilon)).clamp_(0, 1).to(self.images.dtype)

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        perturbation = (adversarial - self.images).to(precise(gradient))
        return self.perturbed(torch.add(perturbation, unit(gradient), alpha=step_size))


class L1Ball(Ball):
    """|| x' - x ||_1 <= epsilon over all of an image's pixels."""

    def random_point(self, generator: Generators) -> Tensor:
        # a Laplace direction, radius by the root of the dimension
        settings: Any = {"generator": generator, "device": self.images.device, "dtype": precise(self.images)}
        uniform = 2 * draw(torch.rand, *self.images.shape, **settings) - 1
        direction = -torch.log1p(-uniform.abs()) * uniform.sign()
        fraction = draw(torch.rand, len(self.images), **settings) ** (1 / self.images[0].numel())
        length = direction.abs().flatten(1).sum(1)
        return self.perturbed(direction * per_image(fraction * self.epsilon / length, direction))

    def perturbed(self, perturbation: Tensor) -> Tensor:
        shrunk = _shrunk(perturbation, -self.images, 1 - self.images, self.epsilon)
        return (self.images + shrunk).clamp_(0, 1).to(self.images.dtype)

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """One projected step: `step_size` split among the pixels of largest gradient that the range lets change.

        A few of the pixels: steepest ascent in L1 would change a single one (Tramer and Boneh 2019).
        """
        perturbation = (adversarial - self.images).to(precise(gradient))
        is_free = torch.where(gradient > 0, adversarial < 1, adversarial > 0)  # Maini, Wong and Kolter 2020
        return self.perturbed(perturbation + step_size * _sparse_sign(torch.where(is_free, gradient, 0)))


BALLS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}
L1_STEP_FRACTION = 0.03  # of the pixels, changed by a step in L1: by trial the strongest on digits


def distance(images: Tensor, others: Tensor, norm: str) -> Tensor:
    """(batch,): the distance of each image from its counterpart in 'linf', 'l2' or 'l1'."""
    order = {"linf": inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm((others - images).flatten(1), ord=order, dim=1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ...): as many axes as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _length(perturbation: Tensor) -> Tensor:
    return per_image(torch.linalg.vector_norm(perturbation.flatten(1), dim=1), perturbation)  # (batch, 1, ...)


def unit(direction: Tensor) -> Tensor:
    """Each image's direction at length 1; zero where it is zero."""
    direction = direction.to(precise(direction))
    tiny = torch.finfo(direction.dtype).tiny
    # by its largest entry first: the squares of a confident network's gradients underflow
    direction = direction / per_image(direction.abs().flatten(1).amax(1), direction).clamp(min=tiny)
    return direction / _length(direction).clamp(min=tiny)


def _shortened(perturbation: Tensor, epsilon: float) -> Tensor:
    """Each image's perturbation at a length of at most epsilon; clipping to the pixel range shortens it further."""
    length = _length(perturbation)
    return perturbation * (epsilon / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp_(max=1)


def _sparse_sign(gradient: Tensor) -> Tensor:
    """1 in L1, spread evenly over the signs of each image's largest entries."""
    flat = gradient.flatten(1)
    count = max(1, round(L1_STEP_FRACTION * flat.shape[1]))
    largest = flat.abs().topk(count, dim=1).indices
    sparse = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign() / count)
    return sparse.view_as(gradient)


def _shrunk(perturbation: Tensor, lowest: Tensor | float, highest: Tensor | float, epsilon: float) -> Tensor:
    """The nearest perturbation that is at most epsilon long in L1 and within [lowest, highest], which holds 0.

    Every entry shrinks by the same amount and is then cut to its bound; the amount is found exactly, between two of
    the breakpoints where an entry leaves its bound or reaches 0 (Croce and Hein 2021, proposition 2.1).
    """
    size = perturbation.abs().flatten(1)
    bound = torch.where(perturbation > 0, highest, -torch.as_tensor(lowest)).expand_as(perturbation).flatten(1)
    breakpoints, order = torch.cat([(size - bound).clamp(min=0), size], dim=1).sort(dim=1)
    leaves, arrives = torch.ones_like(size), -torch.ones_like(size)
    shrinking = torch.cat([leaves, arrives], dim=1).gather(1, order).cumsum(1)  # entries, after each breakpoint
    unshrunk = torch.minimum(size, bound).sum(1, keepdim=True)
    decrease = (shrinking[:, :-1] * breakpoints.diff(dim=1)).cumsum(1)
    lengths = unshrunk - torch.cat([torch.zeros_like(unshrunk), decrease], dim=1)  # at each breakpoint
    last = ((lengths > epsilon).sum(1, keepdim=True) - 1).clamp(min=0)
    beyond = (lengths.gather(1, last) - epsilon) / shrinking.gather(1, last).clamp(min=1)
    amount = torch.where(unshrunk > epsilon, breakpoints.gather(1, last) + beyond, torch.zeros_like(unshrunk))
    return (torch.minimum((size - amount).clamp(min=0), bound)).view_as(perturbation) * perturbation.sign()


def ascended(perturbation: Tensor, gradient: Tensor, *, norm: str, epsilon: float, step_size: float) -> Tensor:
    """One step of steepest ascent of a perturbation by itself, within epsilon and whatever the pixel range."""
    if norm == "linf":
        return torch.add(perturbation, gradient.sign(), alpha=step_size).clamp_(-epsilon, epsilon)
    if norm == "l1":
        return _shrunk(perturbation + step_size * _sparse_sign(gradient), -inf, inf, epsilon)
    return _shortened(torch.add(perturbation, unit(gradient), alpha=step_size), epsilon)
