"""Seeds as a function of a place in a run: resuming needs no stored generator state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from nsr.errors import InputError

Generators = Generator | Sequence[Generator] | None  # one for the batch, one for each image, torch's own


def draw_seed(*place: int) -> int:
    """Return a seed for one place, such as (seed, stream, epoch, batch, process); different places, different draws."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def frozen_stream(*place: int) -> np.random.RandomState:
    """Return random numbers for one place that no later numpy changes (NEP 19)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(place)))


def draw(distribution: Callable[..., Tensor], *shape: int, generator: Generators, **settings: Any) -> Tensor:
    """Draw numbers for a batch, each image's from its own generator where there is one for each.

    Args:
        distribution: torch.rand or torch.randn.
        shape: (batch, ...).
        generator: on the device of the numbers. With a sequence an image's numbers are the same in any batch.
        settings: dtype and device.

    Errors:
        InputError: a sequence of another length than the batch.
    """
    if not isinstance(generator, Sequence):
        return distribution(shape, generator=generator, **settings)
    if len(generator) != shape[0]:
        raise InputError(f"generator has {len(generator)} entries for {shape[0]} images; it must have one for each")
    drawn = [distribution(shape[1:], generator=each, **settings) for each in generator]
    return torch.stack(drawn) if drawn else distribution(shape, **settings)


def narrowed(generator: Generators, places: Tensor) -> Generators:
    """Return the generators of the images at `places` (image,) of a batch; any other generator as it is."""
    return [generator[place] for place in places.tolist()] if isinstance(generator, Sequence) else generator


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and torch (CPU) inside, and restore them afterwards."""
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
