"""What every data set shares: settings, the held-out validation part, loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nsr.data.augmentation import augmentation as augmentation_named
from nsr.data.batches import EvaluationBatches, TrainingBatches
from nsr.data.images import TensorImages, already_collated, check_labels
from nsr.data.split import stratified_split
from nsr.errors import InputError, check_number
from nsr.run.signals import leave_signals_to_the_run


class ImageData(pl.LightningDataModule):
    """A data set of images (channel, height, width) in [0, 1], without normalisation.

    A data set of your own is a subclass with `load(split)`, which returns a Dataset of (image, label) for 'train' or
    'test' that has `labels` (image,) and `subset(indices)`: `TensorImages` is one. `prepare()` is called before
    anything else of a run is made. The Trainer must run with use_distributed_sampler=False: batches are dealt out to
    the processes here.

    Args:
        channels, image_size, classes, mean, std: of the images; mean and std are the model's, one a channel.
        batch_size: training images in a batch, of all processes together.
        evaluation_batch_size: validation and test images in a batch.
        validation_images: held out of the training images, a count (int) or a fraction (float), by class.
        split_seed: alone decides which images are held out.
        seed: with the epoch, decides the order of the training images.
        augmentation: 'none' or 'crop_flip'; becomes `augment`, which the training step applies on the device.
        workers: processes that load images.
        root: the folder of the data.
    Errors:
        InputError: a setting outside its range.
    """

    reads_description = False  # whether channels, image_size, ... may be None, for `describe` to find out
    class_names: Sequence[str] = ()

    def __init__(
        self,
        *,
        channels: int | None,
        image_size: int | None,
        classes: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        batch_size: int,
        evaluation_batch_size: int = 250,
        validation_images: int | float,
        split_seed: int = 0,
        seed: int = 0,
        augmentation: str = "none",
        workers: int = 0,
        root: str | Path | None = None,
    ) -> None:
        super().__init__()
        # Any: numbers once `describe` has run
        self.channels: Any = channels
        self.image_size: Any = image_size
        self.classes: Any = classes
        self.mean: Any = mean
        self.std: Any = std
        self._check_description()
        self.batch_size = check_number("data.batch_size", batch_size, lowest=1, whole=True)
        self.evaluation_batch_size = check_number(
            "data.evaluation_batch_size", evaluation_batch_size, lowest=1, whole=True
        )
        self.validation_images = check_held_out(validation_images)
        self.split_seed = check_number("data.split_seed", split_seed, lowest=0, highest=2**32 - 1, whole=True)
        self.seed = check_number("data.seed", seed, lowest=0, whole=True)
        self.augment = augmentation_named(augmentation)
        self.workers = check_number("data.workers", workers, lowest=0, whole=True)
        self.root: Any = None if root is None else Path(root).expanduser().absolute()
        self.training_set: Any = None
        self.validation_set: Any = None
        self.test_set: Any = None

    def prepare(self) -> None:
        """Cheap check that the files are there, or their download; InputError in one line where they are not."""

    def check_splits(self, splits: Sequence[str]) -> None:
        """InputError where one of 'train' and 'test' is not there: known before anything is made."""

    def load(self, split: str) -> Any:
        """The 'train' or 'test' Dataset, with `labels` (image,) and `subset(indices)`."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """channels, image_size, classes, mean, std and class_names, as plain numbers, lists and texts."""
        names = list(self.class_names) or [str(label) for label in range(self.classes or 0)]
        return {
            "channels": self.channels,
            "image_size": self.image_size,
            "classes": self.classes,
            "mean": [float(value) for value in self.mean or ()],
            "std": [float(value) for value in self.std or ()],
            "class_names": names,
        }

    def rehearse(self, splits: Sequence[str]) -> None:
        """InputError for what is wrong with the images of a run about to begin; here nothing is looked at."""

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage ('fit', 'validate', 'test'; None: all) needs, once."""
        if stage in ("fit", "validate", None) and self.training_set is None:
            images = self._loaded("train")
            share = self.validation_images
            count = max(1, round(share * len(images))) if isinstance(share, float) else share
            kept, held_out = stratified_split(images.labels, count, seed=self.split_seed)
            self.training_set, self.validation_set = images.subset(kept), images.subset(held_out)
        if stage in ("test", None) and self.test_set is None:
            self.test_set = self._loaded("test")

    def limit_test(self, count: int, order: str) -> str:
        """Keeps so many test images, and gives their checksum; `setup` comes first.

        Args:
            count: of the test images; at least as many as there are: all.
            order: 'balanced': of every class its share, decided by split_seed; 'first': the first ones, as in the
                tables of the field.
        Errors:
            InputError: the first ones do not hold every class.
        """
        labels = self.test_set.labels
        indices = torch.arange(len(labels))
        if count < len(labels) and order == "first":
            indices = indices[:count]
            missing = sorted(set(labels.tolist()) - set(labels[:count].tolist()))
            if missing:
                raise InputError(
                    f"limit_order is first, but the first {count} test images hold none of class {missing[0]}; "
                    "take more, or limit_order=balanced"
                )
        elif count < len(labels):
            _, indices = stratified_split(labels, count, seed=self.split_seed, asked_by="limit")
        self.test_set = self.test_set.subset(indices)
        return hashlib.sha256(indices.numpy().tobytes()).hexdigest()[:12]

    def test_batches(self, indices: torch.Tensor) -> DataLoader:
        """Batches of these test images, all on this process; `setup` comes first."""
        images = self.test_set.subset(indices)
        return self._loader(images, EvaluationBatches(len(images), self.evaluation_batch_size))

    def train_dataloader(self) -> DataLoader:
        batches = TrainingBatches(len(self.training_set), self.batch_size, seed=self.seed, **self._process())
        return self._loader(self.training_set, batches)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.validation_set)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, images: Any) -> DataLoader:
        return self._loader(images, EvaluationBatches(len(images), self.evaluation_batch_size, **self._process()))

    def _loader(self, images: Any, batches: TrainingBatches | EvaluationBatches) -> DataLoader:
        return LateLoader(
            images,
            batch_sampler=batches,
            collate_fn=already_collated if isinstance(images, TensorImages) else None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=torch.cuda.is_available(),
        )

    def _process(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _loaded(self, split: str) -> Any:
        images, name = self.load(split), type(self).__name__
        check_labels(images.labels, self.classes)
        if split == "train" and len(images.labels.unique()) < 2:
            raise InputError(f"the training images of {name} are all of one class; a classifier needs at least 2")
        shape, expected = tuple(images[0][0].shape), (self.channels, self.image_size, self.image_size)
        if shape != expected:
            raise InputError(
                f"the images of {name} have shape {shape}, but data.channels and data.image_size make it {expected}"
            )
        return images

    def _check_description(self) -> None:
        for name, lowest in (("channels", 1), ("image_size", 1), ("classes", 2)):
            value = getattr(self, name)
            if not (value is None and self.reads_description):
                check_number(f"data.{name}", value, lowest=lowest, whole=True)
        bounds: dict[str, dict[str, Any]] = {"mean": {"lowest": 0}, "std": {"above": 0}}
        for name, bound in bounds.items():
            values = getattr(self, name)
            if values is None and self.reads_description:
                continue
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise InputError(f"data.{name} is {values!r}; it must be a list of numbers, one a channel")
            if self.channels is not None and len(values) != self.channels:
                raise InputError(f"data.{name} has {len(values)} numbers; it must have {self.channels}, one a channel")
            for value in values:
                check_number(f"data.{name}", value, highest=1, advice="pixels are in [0, 1]", **bound)


class LateLoader(DataLoader):
    """A DataLoader that draws no index before its first batch is asked for, and goes on in the middle of an epoch.

    On resuming, Lightning makes the iterator before it calls set_epoch, and worker processes would be given the order
    of another epoch. It asks for `state_dict` as a checkpoint is written: how far the epoch is.
    """

    place = (0, 0)  # (epoch, batches of it that were handed out)

    def __iter__(self) -> Any:
        epoch, first = getattr(self.batch_sampler, "epoch", 0), getattr(self.batch_sampler, "first", 0)
        self.place = (epoch, first)
        for done, batch in enumerate(super().__iter__(), start=first + 1):
            self.place = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were handed out."""
        return dict(zip(("epoch", "batches"), self.place, strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that `state_dict` counted."""
        self.batch_sampler.taken_up = (state["epoch"], state["batches"])  # type: ignore[union-attr]


def check_held_out(value: Any) -> int | float:
    """data.validation_images as it is: a count (int) from 1, or a fraction (float) between 0 and 1."""
    advice = "an int is a count of images, a float a fraction of the training images"
    if isinstance(value, float):
        return check_number("data.validation_images", value, above=0, highest=1, advice=advice)
    return check_number("data.validation_images", value, lowest=1, whole=True, advice=advice)
