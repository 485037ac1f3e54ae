"""Percentile bootstrap (Efron 1979) of mean effects and of paired contrasts between them.

Images are resampled with replacement, and so are the sets of a random control. Both terms of a contrast use the same
resampled images. The ranking of the neurons stays fixed: an interval covers other images and other random sets, not
another ranking half or another network.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nsr.randomness import frozen_stream

IMAGES, SETS = 3, 4  # streams of random numbers
LEVELS = torch.tensor([0.025, 0.975], dtype=torch.float64)


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Tensor, *, n_bootstrap: int = 2000, seed: int = 0) -> Interval:
    """The mean of values (set, image); one row for a control that is not random."""
    return _interval(values.double().mean(), _resampled_means(values, n_bootstrap, seed))


def contrast_interval(first: Tensor, second: Tensor, *, n_bootstrap: int = 2000, seed: int = 0) -> Interval:
    """The mean of `first` minus the mean of `second`, each (set, image), on the same images in the same order."""
    resampled = _resampled_means(first, n_bootstrap, seed) - _resampled_means(second, n_bootstrap, seed)
    return _interval(first.double().mean() - second.double().mean(), resampled)


def _resampled_means(values: Tensor, n_bootstrap: int, seed: int) -> Tensor:
    """(set, image) -> (resample,)"""
    of_sets = _weights(values.shape[1], n_bootstrap, seed, IMAGES) @ values.double().T  # (resample, set)
    return (of_sets * _weights(len(values), n_bootstrap, seed, SETS)).sum(1)


@lru_cache(maxsize=4)
def _weights(count: int, n_bootstrap: int, seed: int, stream: int) -> Tensor:
    """(resample, count): how often each was drawn, divided by the count."""
    drawn = frozen_stream(seed, stream, count).multinomial(count, np.full(count, 1 / count), size=n_bootstrap)
    return torch.from_numpy(drawn / count)


def _interval(observed: Tensor, resampled: Tensor) -> Interval:
    low, high = torch.quantile(resampled, LEVELS).tolist()
    return Interval(float(observed), low, high)
