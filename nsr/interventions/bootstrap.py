"""How far a mean effect, or the difference of two, can be trusted: intervals over images and random draws.

The percentile bootstrap (Efron 1979). Images are drawn with replacement, and where a control is a family of random
sets its draws too; both sides of a difference see the same images, so that it is paired. The ranking of the neurons is
not drawn anew: an interval speaks of other images and other random sets, not of another ranking half or network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nsr.randomness import frozen_stream

IMAGES, DRAWS = 3, 4  # streams of random numbers
LEVELS = torch.tensor([0.025, 0.975], dtype=torch.float64)


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Intervals of means over the same images.

    Args:
        images: how many there are, at least 1.
        replicates: how often they are drawn.
        seed: of all draws.
    """

    def __init__(self, images: int, *, replicates: int = 2000, seed: int = 0):
        self.images, self.replicates, self.seed = images, replicates, seed
        self._of_images = self._weights(images, IMAGES)  # (replicate, image)
        self._of_draws: dict[int, Tensor] = {}  # {draws: (replicate, draw)}

    def mean(self, values: Tensor) -> Interval:
        """Of (draw, image) values, one a random set and image; (1, image) where the set is no random one."""
        return self._interval(values.double().mean(), self._means(values))

    def contrast(self, first: Tensor, second: Tensor) -> Interval:
        """Of the mean of `first` minus that of `second`, each (draw, image), on the same images in the same order."""
        observed = first.double().mean() - second.double().mean()
        return self._interval(observed, self._means(first) - self._means(second))

    def _means(self, values: Tensor) -> Tensor:
        """(draw, image) -> (replicate,) means of what was drawn."""
        of_sets = self._of_images @ values.double().T  # (replicate, draw)
        if len(values) not in self._of_draws:
            self._of_draws[len(values)] = self._weights(len(values), DRAWS)
        return (of_sets * self._of_draws[len(values)]).sum(1)

    def _weights(self, count: int, stream: int) -> Tensor:
        """(replicate, count): how often each was drawn, as a share."""
        numbers = frozen_stream(self.seed, stream, count)
        drawn = numbers.multinomial(count, np.full(count, 1 / count), size=self.replicates)
        return torch.from_numpy(drawn / count)

    def _interval(self, observed: Tensor, replicates: Tensor) -> Interval:
        low, high = torch.quantile(replicates, LEVELS).tolist()
        return Interval(float(observed), low, high)
