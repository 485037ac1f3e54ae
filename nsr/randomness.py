"""Seeds as a function of a place in a run: resuming needs no stored generator state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def draw_seed(*place: int) -> int:
    """Return a seed for one place, such as (seed, stream, epoch, batch, process); different places, different draws."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def frozen_stream(*place: int) -> np.random.RandomState:
    """Return random numbers for one place that no later numpy changes (NEP 19)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(place)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and torch (CPU) inside, and restore them afterwards."""
    import torch  # here, so that this file stays quick to load

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
