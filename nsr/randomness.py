"""Seeds as a function of a place in a run: resuming needs no stored generator state."""

from __future__ import annotations

import numpy as np


def draw_seed(*place: int) -> int:
    """A seed for one place, such as (seed, stream, epoch, batch, process); different places, different draws."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def frozen_stream(*place: int) -> np.random.RandomState:
    """Random numbers for one place that no later numpy changes (NEP 19)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(place)))
