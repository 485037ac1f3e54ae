"""Which images go into which batch, on which process: a pure function of the settings, nothing is drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from nsr.errors import InputError, check_number


class TrainingBatches(Sampler[list[int]]):
    """Batches of shuffled indices; the order is a function of (seed, epoch) alone.

    Each process takes its share of the global batch, so that any number of processes sees the same global batches. A
    last, incomplete batch is kept where every process gets at least 2 images of it, for BatchNorm cannot train on one;
    its shares may differ by an image, and `weight` makes up for that. A set smaller than one batch is one batch of all
    that divides evenly.

    Args:
        size: number of images.
        batch_size: images in a global batch.
        seed: with the epoch, decides the order.
        rank, world_size: this process, and how many there are.
    Errors:
        InputError: a batch size that does not divide among the processes; fewer than 2 images for each.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size = check_number("size", size, lowest=1, whole=True)
        self.world_size = check_number("world_size", world_size, lowest=1, whole=True)
        self.rank = check_number("rank", rank, lowest=0, highest=world_size - 1, whole=True)
        self.batch_size = check_divides(batch_size, world_size)
        self.seed = check_number("data.seed", seed, lowest=0, whole=True)
        self.epoch = 0
        self.taken_up = (0, 0)  # (epoch, batches of it that an interrupted run has trained on)
        full_batches, rest = divmod(size, batch_size)
        if full_batches == 0:
            rest -= rest % world_size  # Free's perturbations, of as many places as the first batch, are exchanged
        self.totals = [batch_size] * full_batches + [rest] * (rest >= 2 * world_size)
        if not self.totals:
            raise InputError(
                f"{size} training images are too few for {world_size} process{'es' if world_size > 1 else ''}: "
                "each needs at least 2; add images or set data.validation_images lower"
            )

    @property
    def sampler(self) -> TrainingBatches:
        """Itself: Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is drawn."""
        self.epoch = epoch

    def weight(self, batch_idx: int) -> float:
        """What this process's mean over its share is multiplied by: the mean over processes is the global mean."""
        return self._share(batch_idx)[1] * self.world_size / self.totals[batch_idx]

    def _share(self, number: int) -> tuple[int, int]:
        """(first, count) of this process among the images of a global batch."""
        share, more = divmod(self.totals[number], self.world_size)
        return self.rank * share + min(self.rank, more), share + (self.rank < more)

    @property
    def first(self) -> int:
        """The batch that the epoch begins with: not 0 where an interrupted run goes on."""
        epoch, batches = self.taken_up
        return batches if epoch == self.epoch else 0

    def __len__(self) -> int:
        return len(self.totals)

    def __iter__(self) -> Iterator[list[int]]:
        entropy = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(int(entropy[0]))).tolist()
        for number in range(self.first, len(self)):
            first, count = self._share(number)
            first += number * self.batch_size
            yield order[first : first + count]


def check_divides(batch_size: int, processes: int) -> int:
    """data.batch_size, or InputError where it does not divide among the processes or leaves one less than 2 images."""
    check_number("data.batch_size", batch_size, lowest=1, whole=True)
    if processes == 1 or (batch_size % processes == 0 and batch_size >= 2 * processes):
        return batch_size
    below = max(batch_size // processes, 2) * processes
    nearest = f"{below} or {below + processes}" if batch_size > below else str(below)
    raise InputError(
        f"data.batch_size is {batch_size}, shared by {processes} processes, each of which takes as many images and at "
        f"least 2: {nearest} would do"
    )


class EvaluationBatches(Sampler[list[int]]):
    """Batches of consecutive indices, dealt out to the processes in turn: rank r takes r, r + world_size, ...

    The global list of batches depends on size and batch_size alone, so two processes see exactly the batches of one.
    Where it does not divide, the processes that are short run batch 0 once more (DDP would hang otherwise); `repeated`
    tells these, which must not be counted.

    Args:
        size: number of images.
        batch_size: images in a batch; the last batch may be smaller.
        rank, world_size: this process, and how many there are.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.size = check_number("size", size, lowest=1, whole=True)
        self.batch_size = check_number("data.evaluation_batch_size", batch_size, lowest=1, whole=True)
        self.world_size = check_number("world_size", world_size, lowest=1, whole=True)
        self.rank = check_number("rank", rank, lowest=0, highest=world_size - 1, whole=True)
        self.batches = -(-size // batch_size)  # over all processes

    def repeated(self, batch_idx: int) -> bool:
        """Whether this process's batch `batch_idx` only keeps the others company and must not be counted."""
        return self.rank + batch_idx * self.world_size >= self.batches

    def number(self, batch_idx: int) -> int:
        """The number in the global list of this process's batch `batch_idx`; 0 for a repetition."""
        return 0 if self.repeated(batch_idx) else self.rank + batch_idx * self.world_size

    def __len__(self) -> int:
        return -(-self.batches // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch_idx in range(len(self)):
            start = self.number(batch_idx) * self.batch_size
            yield list(range(start, min(start + self.batch_size, self.size)))
