"""A DataLoader that resumes inside an epoch."""

from __future__ import annotations

import signal
from typing import Any

import torch
from torch.utils.data import DataLoader

from nsr.data.batches import EvaluationBatches, TrainingBatches
from nsr.data.images import TensorImages, already_collated


class ResumableLoader(DataLoader):
    """A DataLoader that draws no index before its first batch is asked for, and resumes inside an epoch.

    On resuming, Lightning makes the iterator before it calls set_epoch, and worker processes would be given the order
    of another epoch. It asks for `state_dict` as a checkpoint is written: how far the epoch is.

    Args:
        images: a Dataset; where it has a tensor `epoch`, that is set to the number of the epoch.
        batches: its batches on this process.
        num_workers: processes that load images.
    """

    position = (0, 0)  # (epoch, batches of it that were handed out)

    def __init__(self, images: Any, batches: TrainingBatches | EvaluationBatches, *, num_workers: int) -> None:
        super().__init__(
            images,
            batch_sampler=batches,
            collate_fn=already_collated if isinstance(images, TensorImages) else None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=ignore_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Any:
        epoch, first = getattr(self.batch_sampler, "epoch", 0), getattr(self.batch_sampler, "first", 0)
        if hasattr(self.dataset, "epoch"):
            self.dataset.epoch.fill_(epoch)
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
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
