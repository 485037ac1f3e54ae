"""Assignment of images to splits, batches and processes: a pure function of the settings; the loader of the batches."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from nsr.data.images import JoinedImages, TensorImages, already_collated
from nsr.errors import InputError, check_number

Batch = tuple[Tensor, Tensor]  # images (batch, channel, height, width) in [0, 1], labels (batch,)
IMAGE_KEYS, LABEL_KEYS = ("image", "images", "pixel_values", "x"), ("label", "labels", "y", "target", "targets")


def stratified_split(
    labels: Tensor, count: int, *, seed: int, asked_by: str = "data.validation_images"
) -> tuple[Tensor, Tensor]:
    """Return the indices of the images kept and of the `count` images held out, the same fraction of every class.

    The counts by class are rounded so that the sum is exact (Webster's method: image k of a shuffled class of n comes
    at (k + 1/2) / n, and the first `count` of all images are taken). One image of each class is kept.

    Args:
        labels: (image,).
        seed: alone decides which images are held out.
        asked_by: the setting that an error names.
    Returns:
        kept (images - count,), held out (count,), int64, each in ascending order.
    Errors:
        InputError: `count` is more than images - classes.
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


class TrainingBatches(Sampler[list[int]]):
    """Batches of shuffled indices of `size` images; the order is a function of (seed, epoch) alone.

    Each process (rank of world_size) takes its part of the global batch of batch_size images, so that any number of
    processes sees the same global batches. A last, incomplete batch is kept where every process gets at least 2 images
    of it, because BatchNorm cannot train on one; its parts may differ by an image, which `weight` corrects. A set
    smaller than one batch is one batch of all images that divide evenly.

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
        """Set the epoch of the run that comes next."""
        self.epoch = epoch

    @property
    def drawn_epoch(self) -> int:
        """Return the epoch whose order is drawn: with `overfits` that of the first serves all."""
        return 0 if self.overfits else self.epoch

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
        entropy = np.random.SeedSequence((self.seed, self.drawn_epoch)).generate_state(1, np.uint64)
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

    The global list of batches depends on size (number of images) and batch_size alone, so two processes see exactly
    the batches of one; the last batch may be smaller. A shard has every `shards`-th of them, beginning with number
    `shard`. Where its batches do not divide, the remaining processes run its first again (DDP would hang otherwise);
    `repeated` marks these, which must not be counted.

    Args:
        places: (image,) index of each image in the whole data set, for those who ask `places_of`; None: 0, 1, ...

    Errors:
        InputError: a shard without a batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shard: int = 0,
        shards: int = 1,
        places: Tensor | None = None,
    ) -> None:
        self.size = check_number("size", size, lowest=1, whole=True)
        self.batch_size = check_number("data.evaluation_batch_size", batch_size, lowest=1, whole=True)
        self.world_size = check_number("world_size", world_size, lowest=1, whole=True)
        self.rank = check_number("rank", rank, lowest=0, highest=world_size - 1, whole=True)
        self.places = torch.arange(size) if places is None else places
        batches = -(-size // batch_size)
        self.numbers = range(shard, batches, shards)  # over all processes
        if not self.numbers:
            raise InputError(
                f"shard is {shard + 1}/{shards}, but {size} images are {batches} batches of {batch_size}; give at most "
                f"{batches} shards, or a smaller data.evaluation_batch_size"
            )

    def repeated(self, batch_idx: int) -> bool:
        """Return whether this process's batch `batch_idx` is a repetition."""
        return self.rank + batch_idx * self.world_size >= len(self.numbers)

    def number(self, batch_idx: int) -> int:
        """Return the number in the global list of this process's batch `batch_idx`; of a repetition the first."""
        return self.numbers[0 if self.repeated(batch_idx) else self.rank + batch_idx * self.world_size]

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch_idx in range(len(self)):
            start = self.number(batch_idx) * self.batch_size
            yield list(range(start, min(start + self.batch_size, self.size)))


class ResumableLoader(DataLoader):
    """A DataLoader that draws no index before its first batch is requested, and resumes inside an epoch.

    On resuming, Lightning makes the iterator before it calls set_epoch, and worker processes would be given the order
    of another epoch. It requests `state_dict` as a checkpoint is written: how far the epoch is. A tensor `epoch` of the
    dataset is set to the number of the epoch.
    """

    position = (0, 0)  # (epoch, batches of it that were handed out)

    def __init__(self, images: Any, batches: TrainingBatches | EvaluationBatches, *, num_workers: int) -> None:
        super().__init__(
            images,
            batch_sampler=batches,
            collate_fn=already_collated if isinstance(images, (TensorImages, JoinedImages)) else None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=ignore_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Any:
        epoch, first = getattr(self.batch_sampler, "epoch", 0), getattr(self.batch_sampler, "first", 0)
        if hasattr(self.dataset, "epoch"):
            self.dataset.epoch.fill_(getattr(self.batch_sampler, "drawn_epoch", epoch))
        self.position = (epoch, first)
        for done, batch in enumerate(super().__iter__(), start=first + 1):
            self.position = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were handed out."""
        return dict(zip(("epoch", "batches"), self.position, strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that `state_dict` counted."""
        self.batch_sampler.resume_at = (state["epoch"], state["batches"])  # type: ignore[union-attr]


def ignore_signals(worker: int) -> None:
    """Leave a signal for the whole process group, such as Ctrl-C, to the main process."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def place_of(loader: Any, batch_idx: int, *, rank: int, size: int) -> int | None:
    """Return the number of a process's batch in the global list of an evaluation; None: it must not be counted.

    The processes (rank of size) take the batches of a loader without `EvaluationBatches` in turn.
    """
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(batches, EvaluationBatches):
        return None if batches.repeated(batch_idx) else batches.number(batch_idx)
    return rank + batch_idx * size


def places_of(loader: Any, number: int, images: int) -> Tensor:
    """Return the indices in the whole data set of so many images, those of the `number`-th batch of an evaluation.

    A loader without batches of its own is taken to have batches of as many images in the order of the data set.
    """
    batches = getattr(loader, "batch_sampler", None)
    first = number * int(getattr(batches, "batch_size", None) or images)
    if isinstance(batches, EvaluationBatches):
        return batches.places[first : first + images]
    return torch.arange(first, first + images)


def images_and_labels(batch: Any, net: nn.Module | None = None) -> Batch:
    """Return the images and labels of a batch: its first two entries, or a mapping's under IMAGE_KEYS and LABEL_KEYS.

    Args:
        net: that takes the images, see `single_precision`.

    Errors:
        InputError: another kind of batch, or entries that are not tensors.
    """
    found: list[Any] = []
    if isinstance(batch, Mapping):
        found = [next((batch[key] for key in keys if key in batch), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
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
    images, labels = found
    images = images if net is None else single_precision(images, net)
    return images, labels if labels.is_floating_point() else labels.long()  # of any whole type


def single_precision(images: Tensor, net: nn.Module) -> Tensor:
    """Return images in float64, which numpy gives, in float32, unless the network has weights in float64."""
    is_wide = images.dtype == torch.float64 and all(each.dtype != torch.float64 for each in net.parameters())
    return images.float() if is_wide else images
