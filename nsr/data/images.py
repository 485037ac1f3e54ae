"""Data sets of images: in memory, where a batch is one indexing operation, or read when they are requested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nsr.errors import InputError
from nsr.randomness import draw_seed, seeded

Item = tuple[Tensor, int]
MEMORY_LIMIT_BYTES = 2 * 2**30  # larger data sets are read from their files in each epoch


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory.

    Args:
        images: (image, channel, height, width), uint8 (scaled to [0, 1] on access) or floating point in [0, 1].
        labels: (image,), whole numbers from 0.
        classes: the labels must be below it; None: not checked.
    Errors:
        InputError: a shape or type that does not fit, images outside [0, 1], a label outside the classes.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: int | None = None) -> None:
        if images.ndim != 4 or labels.shape != images.shape[:1] or len(images) == 0:
            raise InputError(
                f"images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}; "
                "they must be (image, channel, height, width) and (image,), at least one image"
            )
        check_labels(labels, classes)
        self.images, self.labels = checked_pixels(images), labels.to(torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(channel, height, width) float32 in [0, 1] and () int64."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, (batch, channel, height, width) and (batch,); needs `already_collated` in the loader."""
        chosen = torch.as_tensor(indices)
        return _scaled(self.images[chosen]), self.labels[chosen]

    def subset(self, indices: Tensor) -> TensorImages:
        """Return a copy of these images, so that the others can be freed."""
        return TensorImages(self.images[indices], self.labels[indices])


class LazyImages(Dataset[Item]):
    """Images that are read when they are requested.

    The random draws of `read` (a crop in a transform) are a function of (seed, epoch, image).

    Args:
        read: index -> pixels (channel, height, width), uint8 or float32 in [0, 1], and label.
        labels: (image,).
        indices: of the images; None: 0, 1, ...
        seed: of the draws; None: `read` draws nothing, and is not slowed down by seeding.
    """

    def __init__(
        self, read: Callable[[int], Item], labels: Tensor, indices: Tensor | None = None, *, seed: int | None = None
    ) -> None:
        self.read, self.labels, self.seed = read, labels, seed
        self.indices = torch.arange(len(labels)) if indices is None else indices
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes see it change

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        """(channel, height, width) float32 in [0, 1] and its label."""
        place = int(self.indices[index])
        with nullcontext() if self.seed is None else seeded(draw_seed(self.seed, int(self.epoch), place)):
            image, _ = self.read(place)
        return _scaled(image), int(self.labels[index])

    def subset(self, indices: Tensor) -> LazyImages:
        """Return the images at these indices."""
        return LazyImages(self.read, self.labels[indices], self.indices[indices], seed=self.seed)


class JoinedImages(Dataset[tuple[Tensor, Tensor]]):
    """The images of a set, followed by those of an extra set."""

    def __init__(self, own: Any, extra: Any) -> None:
        self.own, self.extra = own, extra

    def __len__(self) -> int:
        return len(self.own) + len(self.extra)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(channel, height, width) float32 in [0, 1] and () int64."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, (batch, channel, height, width) and (batch,); needs `already_collated` in the loader."""
        chosen, own = torch.as_tensor(indices), len(self.own)
        order = torch.argsort(chosen >= own, stable=True)
        parts = [(self.own, chosen[chosen < own]), (self.extra, chosen[chosen >= own] - own)]
        batches = [_batch(images, places) for images, places in parts if len(places)]
        images, labels = map(torch.cat, zip(*batches, strict=True))
        back = torch.argsort(order)
        return images[back], labels[back]

    @property
    def epoch(self) -> Tensor:
        """Return what the loader sets to the number of the epoch; AttributeError where the images draw nothing."""
        return self.own.epoch


def _batch(images: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(images, TensorImages):
        return images.__getitems__(places)  # type: ignore[arg-type]
    items = [images[index] for index in places.tolist()]
    return torch.stack([image for image, _ in items]), torch.tensor([int(label) for _, label in items])


class Relabeled(Dataset[Item]):
    """The images of any dataset with other labels (image,)."""

    def __init__(self, images: Any, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return self.images[index][0], int(self.labels[index])

    def subset(self, indices: Tensor) -> Relabeled:
        """Return the images at these indices."""
        return Relabeled(self.images.subset(indices), self.labels[indices])


def relabeled(images: Any, labels: Tensor) -> Any:
    """Return the images with other labels (image,); `images` stays as it is."""
    if not isinstance(images, (TensorImages, LazyImages)):
        return Relabeled(images, labels)
    changed = copy(images)
    changed.labels = labels
    return changed


def already_collated(batch: Any) -> Any:
    """Return the batch as it is: the collate function for `TensorImages.__getitems__`."""
    return batch


def check_labels(labels: Tensor, classes: int | None) -> None:
    """Raise InputError unless the labels (image,) are whole numbers from 0 to classes - 1."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are {str(labels.dtype).removeprefix('torch.')}; they must be whole numbers from 0")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (classes is not None and highest >= classes):
        allowed = "at least 0" if classes is None else f"from 0 to {classes - 1} (data.classes is {classes})"
        raise InputError(f"labels go from {lowest} to {highest}; they must be {allowed}")


def checked_pixels(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as they are and others as float32; InputError unless those are floats in [0, 1]."""
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        dtype = str(pixels.dtype).removeprefix("torch.")
        raise InputError(f"pixels are {dtype}; they must be uint8, or floating point in [0, 1]")
    lowest, highest = pixels.aminmax()
    if not (lowest >= 0 and highest <= 1):  # so that NaN is refused too
        advice = "they must be in [0, 1]; scale them, and leave normalization to the model"
        raise InputError(f"pixels are in [{lowest:g}, {highest:g}]; {advice}")
    return pixels.to(torch.float32)


def _scaled(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images
