"""Further training images, generated or unlabeled ones with pseudo-labels: a fixed fraction of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsr.data.arrays import pairs, read_pair
from nsr.data.batches import TrainingBatches
from nsr.errors import InputError, check_number

OWN, EXTRA = 1, 2  # of the seeds of the two orders


class MixedBatches(TrainingBatches):
    """Training batches of which a fraction are images of an extra set; a pure function of (seed, epoch, step).

    An epoch has the batches that the `size` images have without an extra set, as in Rebuffi et al. 2021 (arXiv
    2103.01946) and Wang et al. 2023 (arXiv 2302.04638). Of n images, round(fraction * n) are extra, in a smaller last
    batch at most n - 1; they are spread evenly over the batch, so over the processes. Both sets are passed through
    without replacement, over the ends of epochs: each image comes once before any comes again.

    Args:
        extra: images of the extra set, whose indices start at `size`.
        fraction: in (0, 1).
    Errors:
        InputError: see TrainingBatches.
    """

    def __init__(self, size: int, batch_size: int, *, extra: int, fraction: float, **settings: Any) -> None:
        super().__init__(size, batch_size, **settings)
        self.extra = check_number("extra", extra, lowest=1, whole=True)
        self.fraction = fraction
        full_batches, rest = divmod(size, batch_size)
        # of one process: what an epoch takes of both sets must not depend on the number of processes
        totals = np.array([batch_size] * full_batches + [rest] * (rest >= 2))
        extras = np.array([self.extra_count(total) for total in totals])
        self.ends = {OWN: np.cumsum(totals - extras), EXTRA: np.cumsum(extras)}  # of the batches

    def extra_count(self, total: int) -> int:
        """Return the extra images in a batch of `total` images of all processes together."""
        return min(round(self.fraction * int(total)), int(total) - 1)

    def __iter__(self) -> Iterator[list[int]]:
        orders = {OWN: self._pass(self.size, OWN), EXTRA: self._pass(self.extra, EXTRA) + self.size}
        for number in range(self.first, len(self)):
            total, extra = self.totals[number], self.extra_count(self.totals[number])
            places = np.arange(total)
            is_extra = (places + 1) * extra // total > places * extra // total
            batch = np.empty(total, np.int64)
            for which, chosen, count in ((OWN, ~is_extra, total - extra), (EXTRA, is_extra, extra)):
                start = self.ends[which][number - 1] if number else 0
                batch[chosen] = orders[which][start : start + count]
            first, count = self._part(number)
            yield batch[first : first + count].tolist()

    def _pass(self, size: int, which: int) -> np.ndarray:
        """Return the indices of this epoch, a part of the endless sequence of shuffled passes through a set."""
        count = int(self.ends[which][-1])
        first, start = divmod(self.drawn_epoch * count, size)
        orders = []
        for number in range(first, first + -(-(start + count) // size)):
            seed = np.random.SeedSequence((self.seed, number, which)).generate_state(1, np.uint64)
            orders.append(torch.randperm(size, generator=torch.Generator().manual_seed(int(seed[0]))).numpy())
        return np.concatenate(orders)[start : start + count] if orders else np.empty(0, np.int64)


def read_extra(path: Path) -> Any:
    """Return the images of data.extra: the training images of a .npz file, such as its arrays image and label.

    Errors:
        InputError: a file that cannot be read, or that has no such arrays.
    """
    found = pairs(path)
    if "train" not in found:
        raise InputError(f"{path} has only images for {', '.join(found)}; it must have the arrays image and label")
    return read_pair(path, found["train"])


def check_extra(path: Any, fraction: Any, batch_size: int) -> Path | None:
    """Return data.extra as an absolute path, None where there is none; InputError where the fraction does not fit."""
    if path is None or fraction is None:
        if path is not fraction:
            got, other = ("extra", "extra_fraction=0.7") if fraction is None else ("extra_fraction", "extra=FILE.npz")
            raise InputError(f"data.{got} is given alone; add data.{other}, or leave both out")
        return None
    check_number("data.extra_fraction", fraction, above=0, highest=1, advice="it is the extra part of each batch")
    count = round(fraction * batch_size)
    if not 0 < count < batch_size:
        got = f"{count} extra images and {batch_size - count} others in a batch of {batch_size}"
        raise InputError(f"data.extra_fraction is {fraction}, which makes {got}; each batch must have both")
    return Path(path).expanduser().absolute()
