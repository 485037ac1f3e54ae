"""Facts of a data set that networks and attacks are built with: checked, or read from a sample of its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsr.errors import InputError, check_number

SAMPLE = 2_000  # images from which mean and std are computed


@dataclass(frozen=True)
class DataDescription:
    """Channels, image size, classes, and the mean and standard deviation of each channel (pixels in [0, 1])."""

    channels: int
    image_size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


def check_description(facts: Any, *, optional: bool) -> None:
    """Raise InputError where channels, image_size, classes, mean or std of `facts` are impossible.

    Args:
        optional: they may be None.
    """
    for name, lowest in (("channels", 1), ("image_size", 1), ("classes", 2)):
        value = getattr(facts, name)
        if not (value is None and optional):
            check_number(f"data.{name}", value, lowest=lowest, whole=True)
    bounds: dict[str, dict[str, Any]] = {"mean": {"lowest": 0}, "std": {"above": 0}}
    for name, bound in bounds.items():
        values = getattr(facts, name)
        if values is None and optional:
            continue
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"data.{name} is {values!r}; it must be a list of numbers, one per channel")
        if facts.channels is not None and len(values) != facts.channels:
            expected = f"it must have {facts.channels}, one per channel"
            raise InputError(f"data.{name} has {len(values)} numbers; {expected}")
        for value in values:
            check_number(f"data.{name}", value, highest=1, advice="pixels are in [0, 1]", **bound)


def mean_and_std(images: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of images (channel, height, width), to 4 digits.

    Args:
        images: uint8, or floats in [0, 1].
    """
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for image in images:
        values = image.reshape(len(image), -1)  # (channel, pixel)
        values = values / 255 if image.dtype == np.uint8 else values.astype(np.float64)
        count += values.shape[1]
        total = total + values.sum(axis=1)
        squares = squares + np.square(values).sum(axis=1)
    mean = total / count
    # the floor, one gray level, is for images of a single color: the model divides by it
    std = np.sqrt(np.maximum(squares / count - mean**2, 1 / 255**2))
    return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]


def sample_indices(count: int, most: int | None = None) -> list[int]:
    """Return the indices of up to `most` (None: 2,000) evenly spaced images."""
    return np.linspace(0, count - 1, min(count, most or SAMPLE)).round().astype(int).tolist()
