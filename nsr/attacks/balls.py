"""The sets an attack may move in: the ball of radius epsilon around each image, within the pixel range [0, 1]."""

from __future__ import annotations

from math import inf
from typing import Any

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


class L1Ball:
    """|| x' - x ||_1 <= epsilon over all of an image's pixels."""

    def __init__(self, images: Tensor, epsilon: float):
        self.images, self.epsilon = images, epsilon

    def random_point(self, generator: Generator | None) -> Tensor:
        """Uniform in the ball (a Laplace direction, radius by the root of the dimension), then put into the range."""
        settings: Any = {"generator": generator, "device": self.images.device, "dtype": precise(self.images)}
        sides = 2 * torch.rand(self.images.shape, **settings) - 1
        direction = -torch.log1p(-sides.abs()) * sides.sign()
        share = torch.rand(len(self.images), **settings) ** (1 / self.images[0].numel())
        length = direction.abs().flatten(1).sum(1)
        return self.moved(direction * _per_image(share * self.epsilon / length, direction))

    def step(self, adversarial: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """`step_size` shared by the pixels of largest gradient that can still move its way, and back into the ball.

        A few of the pixels: steepest ascent in L1 would move a single one (Tramer and Boneh 2019).
        """
        movement = (adversarial - self.images).to(precise(gradient))
        can_move = torch.where(gradient > 0, adversarial < 1, adversarial > 0)  # Maini, Wong and Kolter 2020
        return self.moved(movement + step_size * _sparse_sign(torch.where(can_move, gradient, 0)))

    def moved(self, movement: Tensor) -> Tensor:
        """The images, moved and put back into ball and pixel range."""
        shrunk = _shrunk(movement, -self.images, 1 - self.images, self.epsilon)
        return (self.images + shrunk).clamp_(0, 1).to(self.images.dtype)


BALLS: dict[str, type[LinfBall] | type[L2Ball] | type[L1Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}

L1_STEP_SHARE = 0.03  # of the pixels that a step in L1 moves: by trial the strongest on digits


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


def _sparse_sign(gradient: Tensor) -> Tensor:
    """1 in L1, spread evenly over the signs of each image's largest entries."""
    flat = gradient.flatten(1)
    count = max(1, round(L1_STEP_SHARE * flat.shape[1]))
    largest = flat.abs().topk(count, dim=1).indices
    sparse = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign() / count)
    return sparse.view_as(gradient)


def _shrunk(movement: Tensor, lowest: Tensor | float, highest: Tensor | float, epsilon: float) -> Tensor:
    """The nearest movement that is at most epsilon long in L1 and within [lowest, highest], which holds 0.

    Every entry is made smaller by the same amount and then cut to its bound; the amount is found exactly, between two
    of the places where an entry leaves its bound or reaches 0 (Croce and Hein 2021, proposition 2.1).
    """
    size = movement.abs().flatten(1)
    bound = torch.where(movement > 0, highest, -torch.as_tensor(lowest)).expand_as(movement).flatten(1)
    places, order = torch.cat([(size - bound).clamp(min=0), size], dim=1).sort(dim=1)
    leaves, arrives = torch.ones_like(size), -torch.ones_like(size)
    moving = torch.cat([leaves, arrives], dim=1).gather(1, order).cumsum(1)  # entries that shrink after each place
    unshrunk = torch.minimum(size, bound).sum(1, keepdim=True)
    fallen = (moving[:, :-1] * places.diff(dim=1)).cumsum(1)
    lengths = unshrunk - torch.cat([torch.zeros_like(unshrunk), fallen], dim=1)  # at each place
    last = ((lengths > epsilon).sum(1, keepdim=True) - 1).clamp(min=0)
    beyond = (lengths.gather(1, last) - epsilon) / moving.gather(1, last).clamp(min=1)
    amount = torch.where(unshrunk > epsilon, places.gather(1, last) + beyond, torch.zeros_like(unshrunk))
    return (torch.minimum((size - amount).clamp(min=0), bound)).view_as(movement) * movement.sign()


def ascended(perturbation: Tensor, gradient: Tensor, *, norm: str, epsilon: float, step_size: float) -> Tensor:
    """One step of steepest ascent of a perturbation on its own, within epsilon; the pixel range is not looked at."""
    if norm == "linf":
        return torch.add(perturbation, gradient.sign(), alpha=step_size).clamp_(-epsilon, epsilon)
    if norm == "l1":
        return _shrunk(perturbation + step_size * _sparse_sign(gradient), -inf, inf, epsilon)
    return _shortened(torch.add(perturbation, unit(gradient), alpha=step_size), epsilon)
