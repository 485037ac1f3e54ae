"""Settings, splits and loaders that every data set has in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nsr.data.augmentation import Augmentation, build_augmentation
from nsr.data.batches import EvaluationBatches, TrainingBatches
from nsr.data.description import DataDescription, check_description
from nsr.data.images import check_labels
from nsr.data.loader import ResumableLoader
from nsr.data.split import stratified_split
from nsr.errors import InputError, check_fits_memory, check_number


class ImageData(pl.LightningDataModule):
    """A data set of images (channel, height, width) in [0, 1], without normalization.

    A subclass implements `load(split)`, which returns a Dataset of (image, label) for 'train' or 'test' that has
    `labels` (image,) and `subset(indices)`, such as `TensorImages`. A callable that returns datasets needs no subclass,
    see `nsr.data.image_data`. The Trainer must run with use_distributed_sampler=False: the batches made here are
    already divided among the processes.

    Args:
        channels, image_size, classes, mean, std: of the images; mean and std are the model's, one per channel.
        batch_size: training images in a batch, of all processes together.
        evaluation_batch_size: validation and test images in a batch.
        validation_images: held out of the training images, a count (int) or a fraction (float), stratified by class.
        split_seed: alone decides which images are held out.
        seed: with the epoch, decides the order of the training images.
        augmentation: 'none', 'crop_flip', a callable or a list of callables; becomes `augment`, which the training
            step applies on the device.
        num_workers: processes that load images.
        root: the folder of the data.
    Errors:
        InputError: a setting outside its range.
    """

    infers_description = False  # whether channels, image_size, ... may be None until `describe`
    has_validation = False  # whether `load('validation')` replaces the images held out of the training images
    class_names: Sequence[str] = ()

    def __init__(
        self,
        *,
        channels: int | None = None,
        image_size: int | None = None,
        classes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 128,
        evaluation_batch_size: int = 250,
        validation_images: int | float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        augmentation: str | Callable[[Tensor], Tensor] | Sequence[Any] | None = "none",
        num_workers: int = 0,
        root: str | Path | None = None,
    ) -> None:
        super().__init__()
        # Any: numbers after `describe`
        self.channels: Any = channels
        self.image_size: Any = image_size
        self.classes: Any = classes
        self.mean: Any = mean
        self.std: Any = std
        self.batch_size = check_number("data.batch_size", batch_size, lowest=1, whole=True)
        self.evaluation_batch_size = check_number(
            "data.evaluation_batch_size", evaluation_batch_size, lowest=1, whole=True
        )
        self._check_description()
        self.validation_images = check_held_out(validation_images)
        self.split_seed = check_number("data.split_seed", split_seed, lowest=0, highest=2**32 - 1, whole=True)
        self.seed = check_number("data.seed", seed, lowest=0, whole=True)
        self.augment = build_augmentation(augmentation)
        self.num_workers = check_workers(num_workers)
        self.root: Any = None if root is None else Path(root).expanduser().absolute()
        self.training_set: Any = None
        self.validation_set: Any = None
        self.test_set: Any = None

    @property
    def title(self) -> str:
        """The name of the data set in messages."""
        return type(self).__name__

    def prepare(self) -> None:
        """Check cheaply that the files are there, or download them; InputError where they are missing."""

    def check_splits(self, splits: Sequence[str]) -> None:
        """Raise InputError where one of 'train' and 'test' is missing, before anything is created."""

    def load(self, split: str) -> Any:
        """Return the 'train', 'validation' or 'test' Dataset, with `labels` (image,) and `subset(indices)`."""
        raise NotImplementedError

    def describe(self) -> DataDescription:
        """Return the facts that networks and attacks are built with."""
        return DataDescription(
            channels=self.channels,
            image_size=self.image_size,
            classes=self.classes,
            mean=tuple(float(value) for value in self.mean or ()),
            std=tuple(float(value) for value in self.std or ()),
            class_names=tuple(self.class_names) or tuple(str(label) for label in range(self.classes or 0)),
        )

    def preflight(self, splits: Sequence[str]) -> None:
        """Raise InputError for faults of images and augmentation that only show in use, before a run begins."""
        if "train" in splits and isinstance(self.augment, Augmentation):
            description = self.describe()
            self.augment.preflight((description.channels, description.image_size, description.image_size))

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage ('fit', 'validate', 'test'; None: all) needs, once."""
        if stage in ("fit", "validate", None) and self.training_set is None:
            images = self._loaded("train")
            if self.has_validation:
                self.training_set, self.validation_set = images, self._loaded("validation")
            else:
                part = self.validation_images
                count = max(1, round(part * len(images))) if isinstance(part, float) else part
                kept, held_out = stratified_split(images.labels, count, seed=self.split_seed)
                self.training_set, self.validation_set = images.subset(kept), images.subset(held_out)
        if stage in ("test", None) and self.test_set is None:
            self.test_set = self._loaded("test")

    def limit_test(self, n_examples: int, subset: str) -> str:
        """Keep so many test images and return their checksum; `setup` comes first.

        Args:
            n_examples: of the test images; at least as many as there are: all.
            subset: 'balanced': the same fraction of every class, decided by split_seed; 'first': the first ones, as in
                published tables.
        Errors:
            InputError: the first ones do not contain every class.
        """
        labels = self.test_set.labels
        indices = torch.arange(len(labels))
        if n_examples < len(labels) and subset == "first":
            indices = indices[:n_examples]
            missing = sorted(set(labels.tolist()) - set(labels[:n_examples].tolist()))
            if missing:
                raise InputError(
                    f"evaluation.subset is first, but the first {n_examples} test images contain none of class "
                    f"{missing[0]}; take more, or evaluation.subset=balanced"
                )
        elif n_examples < len(labels):
            _, indices = stratified_split(labels, n_examples, seed=self.split_seed, asked_by="evaluation.n_examples")
        self.test_set = self.test_set.subset(indices)
        return hashlib.sha256(indices.numpy().tobytes()).hexdigest()[:12]

    def test_batches(self, indices: Tensor) -> DataLoader:
        """Return batches of these test images, all on this process; `setup` comes first."""
        images = self.test_set.subset(indices)
        return self._loader(images, EvaluationBatches(len(images), self.evaluation_batch_size))

    def train_dataloader(self) -> DataLoader:
        batches = TrainingBatches(len(self.training_set), self.batch_size, seed=self.seed, **self._process())
        batches.overfits = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader(self.training_set, batches)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.validation_set)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, images: Any) -> DataLoader:
        return self._loader(images, EvaluationBatches(len(images), self.evaluation_batch_size, **self._process()))

    def _loader(self, images: Any, batches: TrainingBatches | EvaluationBatches) -> DataLoader:
        return ResumableLoader(images, batches, num_workers=self.num_workers)

    def _process(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _loaded(self, split: str) -> Any:
        images = self.load(split)
        check_labels(images.labels, self.classes)
        if split == "train" and len(images.labels.unique()) < 2:
            raise InputError(f"the training images of {self.title} are all of one class; a classifier needs at least 2")
        shape, expected = tuple(images[0][0].shape), (self.channels, self.image_size, self.image_size)
        if shape != expected:
            raise InputError(
                f"the images of {self.title} have shape {shape}, but data.channels and data.image_size make it "
                f"{expected}"
            )
        return images

    def _check_description(self) -> None:
        check_description(self, optional=self.infers_description)
        if self.image_size is not None:
            batch = max(self.batch_size, self.evaluation_batch_size)
            size_bytes = 4 * batch * (self.channels or 1) * self.image_size**2
            fix = "set a smaller data.image_size, data.batch_size or data.evaluation_batch_size"
            check_fits_memory(f"a batch of {batch} images of data.image_size={self.image_size}", size_bytes, fix)


def check_workers(value: Any) -> int:
    """Return data.num_workers; InputError beyond 4 processes per CPU, or 16 where that is less."""
    cpus = os.cpu_count() or 1
    advice = f"this machine has {cpus} CPUs"
    return check_number(
        "data.num_workers", value, lowest=0, highest=min(256, max(16, 4 * cpus)), whole=True, advice=advice
    )


def check_held_out(value: Any) -> int | float:
    """Return data.validation_images: a count (int) from 1, or a fraction (float) between 0 and 1."""
    advice = "an int is a count of images, a float a fraction of the training images"
    if isinstance(value, float):
        return check_number("data.validation_images", value, above=0, highest=1, advice=advice)
    return check_number("data.validation_images", value, lowest=1, whole=True, advice=advice)
