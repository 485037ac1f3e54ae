"""Assignment of images to batches and processes: a pure function of the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from nsr.errors import InputError, check_number

IMAGE_KEYS, LABEL_KEYS = ("image", "images", "pixel_values", "x"), ("label", "labels", "y", "target", "targets")


class TrainingBatches(Sampler[list[int]]):
    """Batches of shuffled indices; the order is a function of (seed, epoch) alone.

    Each process takes its part of the global batch, so that any number of processes sees the same global batches. A
    last, incomplete batch is kept where every process gets at least 2 images of it, because BatchNorm cannot train on
    one; its parts may differ by an image, which `weight` corrects. A set smaller than one batch is one batch of all
    images that divide evenly.

    Args:
        size: number of images.
        batch_size: images in a global batch.
        seed: with the epoch, decides the order.
        rank, world_size: this process, and the number of processes.
    Errors:
        InputError: a batch size that does not divide among the processes; fewer than 2 images for each.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size = check_number("size", size, lowest=1, whole=True)
        self.world_size = check_number("world_size", world_size, lowest=1, whole=True)
        self.rank = check_number("rank", rank, lowest=0, highest=world_size - 1, whole=True)
        self.batch_size = check_divides(batch_size, world_size)
        self.seed = check_number("data.seed", seed, lowest=0, whole=True)
        self.epoch, self.overfits = 0, False  # overfits: the same batches each epoch, for trainer.overfit_batches
        self.resume_at = (0, 0)  # (epoch, batches of it that an interrupted run has trained on)
        full_batches, rest = divmod(size, batch_size)
        if full_batches == 0:
            rest -= rest % world_size  # Free keeps a perturbation per image of the first batch, of equal parts
        self.totals = [batch_size] * full_batches + [rest] * (rest >= 2 * world_size)
        if not self.totals:
            raise InputError(
                f"{size} training images are too few for {world_size} process{'es' if world_size > 1 else ''}: "
                "each needs at least 2; add images or set data.validation_images lower"
            )

    @property
    def sampler(self) -> TrainingBatches:
        """Return itself: Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is drawn; with `overfits` that of the first serves all."""
        self.epoch = 0 if self.overfits else epoch

    def weight(self, batch_idx: int) -> float:
        """Return the factor on this process's mean loss that makes the mean over processes the global mean."""
        return self._part(batch_idx)[1] * self.world_size / self.totals[batch_idx]

    def _part(self, number: int) -> tuple[int, int]:
        """(first, count) of this process among the images of a global batch."""
        part, more = divmod(self.totals[number], self.world_size)
        return self.rank * part + min(self.rank, more), part + (self.rank < more)

    @property
    def first(self) -> int:
        """Return the batch that the epoch begins with: not 0 where an interrupted epoch is resumed."""
        epoch, batches = self.resume_at
        return batches if epoch == self.epoch else 0

    def __len__(self) -> int:
        return len(self.totals)

    def __iter__(self) -> Iterator[list[int]]:
        entropy = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(int(entropy[0]))).tolist()
        for number in range(self.first, len(self)):
            first, count = self._part(number)
            first += number * self.batch_size
            yield order[first : first + count]


def check_divides(batch_size: int, processes: int) -> int:
    """Return data.batch_size; InputError where it does not divide among the processes, 2 images for each at least."""
    check_number("data.batch_size", batch_size, lowest=1, whole=True)
    if processes == 1 or (batch_size % processes == 0 and batch_size >= 2 * processes):
        return batch_size
    below = max(batch_size // processes, 2) * processes
    nearest = f"{below} or {below + processes}" if batch_size > below else str(below)
    raise InputError(
        f"data.batch_size is {batch_size} for {processes} processes; it must divide among them, with at least 2 images "
        f"each; set it to {nearest}"
    )


class EvaluationBatches(Sampler[list[int]]):
    """Batches of consecutive indices, assigned to the processes in turn: rank r takes r, r + world_size, ...

    The global list of batches depends on size and batch_size alone, so two processes see exactly the batches of one.
    Where it does not divide, the remaining processes run batch 0 again (DDP would hang otherwise); `repeated` marks
    these, which must not be counted.

    Args:
        size: number of images.
        batch_size: images in a batch; the last batch may be smaller.
        rank, world_size: this process, and the number of processes.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.size = check_number("size", size, lowest=1, whole=True)
        self.batch_size = check_number("data.evaluation_batch_size", batch_size, lowest=1, whole=True)
        self.world_size = check_number("world_size", world_size, lowest=1, whole=True)
        self.rank = check_number("rank", rank, lowest=0, highest=world_size - 1, whole=True)
        self.batches = -(-size // batch_size)  # over all processes

    def repeated(self, batch_idx: int) -> bool:
        """Return whether this process's batch `batch_idx` is a repetition, which must not be counted."""
        return self.rank + batch_idx * self.world_size >= self.batches

    def number(self, batch_idx: int) -> int:
        """Return the number in the global list of this process's batch `batch_idx`; 0 for a repetition."""
        return 0 if self.repeated(batch_idx) else self.rank + batch_idx * self.world_size

    def __len__(self) -> int:
        return -(-self.batches // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch_idx in range(len(self)):
            start = self.number(batch_idx) * self.batch_size
            yield list(range(start, min(start + self.batch_size, self.size)))


Batch = tuple[Tensor, Tensor]  # images (batch, channel, height, width) in [0, 1], labels (batch,)


def place_of(loader: Any, batch_idx: int, *, rank: int, size: int) -> int | None:
    """The number of this process's batch in the global list of an evaluation; None for one that must not be counted.

    Args:
        loader: the DataLoader of the batch; one without `EvaluationBatches` deals its batches out in turn.
        batch_idx: counted by this process.
        rank, size: this process, and how many there are.
    """
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, EvaluationBatches):
        return None if batches.repeated(batch_idx) else batches.number(batch_idx)
    return rank + batch_idx * size


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a batch: its first two entries, or a mapping's entries under customary keys.

    Args:
        batch: (images, labels, ...), or a mapping with one of the keys IMAGE_KEYS and one of LABEL_KEYS.

    Errors:
        InputError: another kind of batch, or entries that are not tensors.
    """
    if isinstance(batch, Mapping):
        found: list[Any] = [
            next((batch[key] for key in keys if key in batch), None) for keys in (IMAGE_KEYS, LABEL_KEYS)
        ]
        got = f"a mapping with the keys {', '.join(map(str, batch))}"
    else:
        found = list(batch[:2]) if isinstance(batch, (tuple, list)) else []
        kinds = ", ".join(type(entry).__name__ for entry in found)
        got = f"a {type(batch).__name__}" + (f" that begins with {kinds}" if found else "")
    if len(found) < 2 or not all(isinstance(entry, Tensor) for entry in found):
        raise InputError(
            f"the batch is {got}; it must be (images, labels, ...), tensors, or a mapping of one of "
            f"{', '.join(IMAGE_KEYS)} and one of {', '.join(LABEL_KEYS)} to tensors"
        )
    return found[0], found[1]
