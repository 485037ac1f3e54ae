"""Which images go into which batch, on which process: a pure function of the settings, nothing is drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from nsr.errors import InputError, check_number


class TrainingBatches(Sampler[list[int]]):
    """Batches of shuffled indices; the order is a function of (seed, epoch) alone.

    The global batch has batch_size * world_size images and is cut into equal shares, one for each process. The last,
    incomplete global batch is kept where it divides into equal shares of at least 2 images, else dropped: BatchNorm
    cannot train on one image, and shares of unequal size would weigh the images of one process more. A set smaller
    than one global batch is one batch of all that divides evenly.

    Args:
        size: number of images.
        batch_size: images in a batch of one process.
        seed: with the epoch, decides the order.
        rank, world_size: this process, and how many there are.
    Errors:
        InputError: fewer than 2 images for a process.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size = check_number("size", size, lowest=1, whole=True)
        self.batch_size = check_number("data.batch_size", batch_size, lowest=1, whole=True)
        self.seed = check_number("data.seed", seed, lowest=0, whole=True)
        self.world_size = check_number("world_size", world_size, lowest=1, whole=True)
        self.rank = check_number("rank", rank, lowest=0, highest=world_size - 1, whole=True)
        self.epoch = 0
        self.full_batches, rest = divmod(size, batch_size * world_size)
        share, uneven = divmod(rest, world_size)
        keep_last = share >= 2 and (uneven == 0 or self.full_batches == 0)
        self.last_share = share if keep_last else 0
        if len(self) == 0:
            raise InputError(
                f"{size} training images are too few for {world_size} process{'es' if world_size > 1 else ''}: "
                "each needs at least 2; add images or set data.validation_images lower"
            )

    @property
    def sampler(self) -> TrainingBatches:
        """Itself: Lightning calls set_epoch on `batch_sampler.sampler`, never on the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.full_batches + (self.last_share > 0)

    def __iter__(self) -> Iterator[list[int]]:
        entropy = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(int(entropy[0]))).tolist()
        start = 0
        for number in range(len(self)):
            share = self.batch_size if number < self.full_batches else self.last_share
            mine = start + self.rank * share
            yield order[mine : mine + share]
            start += share * self.world_size


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
