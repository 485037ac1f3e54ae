"""Hold out a part of the training images, the same fraction of every class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nsr.errors import InputError


def stratified_split(
    labels: Tensor, count: int, *, seed: int, asked_by: str = "data.validation_images"
) -> tuple[Tensor, Tensor]:
    """Return the indices of the images kept and of the `count` images held out, each in ascending order.

    Every class gives in proportion to its size, rounded so that the sum is exact (Webster's method: image k of a
    shuffled class of n comes at (k + 1/2) / n, and the first `count` of all images are taken). One image of each class
    is kept.

    Args:
        labels: (image,).
        count: images to hold out.
        seed: alone decides which.
        asked_by: the setting that an error names.
    Returns:
        kept (images - count,), held out (count,), int64.
    Errors:
        InputError: more than images - classes.
    """
    sizes = np.unique(labels.numpy(), return_counts=True)[1]
    if not 0 < count <= len(labels) - len(sizes):
        raise InputError(
            f"{asked_by} asks for {count} of {len(labels)} images in {len(sizes)} classes; "
            f"it must be from 1 to {len(labels) - len(sizes)}, so that each class keeps one"
        )
    # RandomState's stream is frozen (NEP 19), that of Generator and of torch.randperm is not
    order = np.random.RandomState(seed).permutation(len(labels))
    by_class = np.argsort(labels.numpy()[order], kind="stable")  # positions in `order`, class after class
    starts = np.cumsum(sizes) - sizes
    place = (np.arange(len(labels)) - np.repeat(starts, sizes) + 0.5) / np.repeat(sizes, sizes)
    place[starts + sizes - 1] = np.inf  # the one of each class that is kept
    places = np.empty(len(labels))
    places[by_class] = place
    held_out = np.sort(order[np.argsort(places, kind="stable")[:count]])
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    return torch.from_numpy(kept), torch.from_numpy(held_out)
