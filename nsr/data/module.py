"""Settings, description, splits and loaders that every data set has in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nsr.data.augmentation import Augmentation, build_augmentation
from nsr.data.batches import EvaluationBatches, ResumableLoader, TrainingBatches, stratified_split
from nsr.data.class_order import Matched, Names, match_classes, read_class_order
from nsr.data.description import DataDescription, check_description, mean_and_std
from nsr.data.extra import MixedBatches, check_extra, read_extra
from nsr.data.images import JoinedImages, check_labels, relabeled
from nsr.errors import InputError, check_amount, check_fits_memory, check_number


class ImageData(pl.LightningDataModule):
    """A data set of images (channel, height, width) in [0, 1], without normalization.

    A subclass implements `load(split)`, which `setup` calls after `describe`; it may return `TensorImages`. A callable
    that returns datasets needs no subclass, see `nsr.data.image_data`. The Trainer must run with
    use_distributed_sampler=False: the batches are already divided among the processes.

    Args:
        channels, image_size, classes, mean, std: of the images; mean and std are the model's, one per channel.
        batch_size: training images in a batch, of all processes together.
        evaluation_batch_size: validation and test images in a batch.
        validation_images: held out of the training images, a count (int) or a fraction (float), stratified by class.
        test_images: cut from the training images where there are no test images of their own, before validation_images
            are held out; a count or a fraction, stratified by class.
        split_seed: alone decides which images are held out or cut.
        seed: with the epoch, decides the order of the training images.
        augmentation: a name of `nsr.data.augmentation`, a callable or a list of these; becomes `augment` and `mix`,
            which the training step applies on the device, but for what the training loader applies image by image.
        num_workers: processes that load images.
        root: the folder of the data.
        extra, extra_fraction: a .npz file of further training images, and their part of each batch, see `MixedBatches`.
    Errors:
        InputError: a setting outside its range.
    """

    # whether channels, image_size, ... may be None until `describe`
    infers_description = False
    has_validation = False  # whether `load('validation')` replaces the images held out of the training images
    draws = False  # whether `load('train')` gave images that differ from one reading to the next
    class_names: Sequence[str] = ()  # of its own labels
    class_order: Sequence[Names] | None = None  # of the network's outputs
    ignores_names = False
    origin = ""  # where the images come from, in the summary

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
        test_images: int | float | None = None,
        split_seed: int = 0,
        seed: int = 0,
        augmentation: str | Callable[[Tensor], Tensor] | Sequence[Any] | None = "none",
        num_workers: int = 0,
        root: str | Path | None = None,
        extra: str | Path | None = None,
        extra_fraction: float | None = None,
    ) -> None:
        super().__init__()
        self.title = type(self).__name__  # in messages
        # Any: numbers after `describe`
        self.channels: Any = channels
        self.image_size: Any = image_size
        self.classes: Any = classes
        self.mean: Any = mean
        self.std: Any = std
        self.batch_size = check_number("data.batch_size", batch_size, lowest=1, whole=True)
        name = "data.evaluation_batch_size"
        self.evaluation_batch_size = check_number(name, evaluation_batch_size, lowest=1, whole=True)
        self._check_description()
        self.validation_images = check_amount("data.validation_images", validation_images, of=" of images")
        self.test_images = (
            None if test_images is None else check_amount("data.test_images", test_images, of=" of images")
        )
        self.split_seed = check_number("data.split_seed", split_seed, lowest=0, highest=2**32 - 1, whole=True)
        self.seed = check_number("data.seed", seed, lowest=0, whole=True)
        self.augment, self.mix = build_augmentation(augmentation)
        cpus = os.cpu_count() or 1
        bounds = {"lowest": 0, "highest": min(256, max(16, 4 * cpus))}
        advice = f"this machine has {cpus} CPUs"
        self.num_workers = check_number("data.num_workers", num_workers, **bounds, whole=True, advice=advice)
        self.root: Any = None if root is None else Path(root).expanduser().absolute()
        self.extra, self.extra_fraction = check_extra(extra, extra_fraction, self.batch_size), extra_fraction
        self.extra_set: Any = None
        self.training_set: Any = None
        self.validation_set: Any = None
        self.test_set: Any = None
        self.test_places: Tensor | None = None  # (image,) indices of the images of `test_set` in the whole test set
        self.chosen: str | None = None  # description of the test images, once they are chosen
        self.shard = (0, 1)  # of the batches of the test: number from 0, and how many there are
        self._ready: dict[str, Any] = {}  # {split: images} that were loaded and not yet handed over

    def prepare(self) -> None:
        """Check cheaply that the files are there, or download them; InputError where they are missing."""

    def check_splits(self, splits: Sequence[str]) -> None:
        """Raise InputError where one of 'train' and 'test' is missing, before anything is created."""
        if self.test_images is not None:
            raise InputError(f"data.test_images is {self.test_images}, but {self.title} has test images: leave it out")

    def load(self, split: str) -> Any:
        """Return the 'train', 'validation' or 'test' Dataset of (image, label), with `labels` and `subset(indices)`."""
        raise NotImplementedError

    def drawn(self, images: Any) -> Any:
        """Return the training images as they are trained on, such as with random crops as they are read."""
        return images

    def split_source(self, split: str) -> str:
        """Return where the images of a split come from, within `origin`; "" where that says all."""
        if split == "validation" and not self.has_validation:
            return "held out of train"
        return "cut from train" if split == "test" and self.test_images is not None else ""

    def describe(self) -> DataDescription:
        """Return the facts that networks and attacks are built with; the classes are those of the network's outputs."""
        names = self.matched.names
        self._check_class_count(tuple(self.class_names), self.title)
        if self.class_order is not None:
            counts = {None, len(self.class_names), len(names)}  # of the data's own classes, and of the outputs
            if self.class_names and self.classes not in counts:
                got = f"data.classes is {self.classes}, but {self.title} has {len(self.class_names)} classes"
                raise InputError(f"{got} and the network {len(names)} outputs; leave data.classes out to use them")
            self.classes = len(names)
        return DataDescription(
            channels=self.channels,
            image_size=self.image_size,
            classes=self.classes,
            mean=tuple(float(value) for value in self.mean or ()),
            std=tuple(float(value) for value in self.std or ()),
            class_names=names or tuple(str(label) for label in range(self.classes or 0)),
        )

    def set_class_order(self, source: str | Path | Sequence[str], *, ignore: bool = False) -> None:
        """Map labels to the outputs of a network, before `describe`.

        Args:
            source: names of the outputs, or a file of them, see `read_class_order`.
            ignore: do not compare names: label k is output k.
        """
        self.class_order, self.ignores_names = read_class_order(source), ignore

    @property
    def matched(self) -> Matched:
        """Outputs of the data set's own classes, `class_names`; after `prepare`."""
        names = tuple(self.class_names)
        if self.class_order is None:
            return Matched(None, names, None)
        return match_classes(names, self.class_order, self.title, ignore=self.ignores_names)

    def relabeled(self, images: Any) -> Any:
        """Return images of this data set's own labels with those of the network's outputs."""
        outputs = self.matched.outputs
        if outputs is None:
            return images
        check_labels(images.labels, len(outputs))
        return relabeled(images, torch.tensor(outputs)[images.labels])

    def preflight(self, splits: Sequence[str]) -> None:
        """Raise InputError for faults of images and augmentation that only show in use, before a run begins."""
        description = self.describe()
        self.check_splits(splits)
        for split in splits:
            self.setup("fit" if split == "train" else split)
        shape = (description.channels, description.image_size, description.image_size)
        if "train" in splits and isinstance(self.augment, Augmentation):
            self.augment.preflight(shape)
        if "train" in splits and self.mix is not None:
            self.mix.preflight(shape, description.classes)

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage ('fit', 'validate', 'test'; None: all) needs, once."""
        if stage in ("fit", "validate", None) and self.training_set is None:
            self._set_extra()
            images = self._checked("train")
            if self.has_validation:
                self.training_set, self.validation_set = images, self._checked("validation")
            else:
                if self.draws:
                    fix = "return a validation set without the random transform, or move it to data.augmentation"
                    held = "data.validation_images are held out of train"
                    raise InputError(f"train of {self.title} gives another image at each reading, and {held}; {fix}")
                kept, held_out = self._cut(images.labels, "validation_images")
                self.training_set, self.validation_set = images.subset(kept), images.subset(held_out)
            self.training_set = self.drawn(self.training_set)
        if stage in ("test", None) and self.test_set is None:
            self.test_set = self._checked("test")

    def limit_test(self, n_examples: int, subset: str) -> str:
        """Keep `n_examples` test images, or all where there are fewer, and return their checksum; after `setup`.

        Args:
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
                got = f"the first {n_examples} test images contain none of class {missing[0]}"
                raise InputError(f"evaluation.subset is first, but {got}; take more, or evaluation.subset=balanced")
        elif n_examples < len(labels):
            _, indices = stratified_split(labels, n_examples, seed=self.split_seed, asked_by="evaluation.n_examples")
        self.keep_test(indices)
        return hashlib.sha256(indices.numpy().tobytes()).hexdigest()[:12]

    def keep_test(self, indices: Tensor) -> None:
        """Keep these images of `test_set` alone, (image,) indices in it; after `setup`."""
        self.test_set = self.test_set.subset(indices)
        self.test_places = indices if self.test_places is None else self.test_places[indices]

    def file_names(self, split: str) -> Sequence[str]:
        """Return the names of the files of a split's images, in their order; empty where they have none."""
        return ()

    def test_batches(self, indices: Tensor) -> DataLoader:
        """Return batches of these test images, all on this process; `setup` comes first."""
        return self._evaluation_loader(self.test_set.subset(indices))

    def train_dataloader(self) -> DataLoader:
        images, process = self.training_set, {"seed": self.seed, **self._process()}
        if self.extra_set is None:
            batches = TrainingBatches(len(images), self.batch_size, **process)
        else:
            extra: dict[str, Any] = {"extra": len(self.extra_set), "fraction": self.extra_fraction}
            batches = MixedBatches(len(images), self.batch_size, **extra, **process)
            images = JoinedImages(images, self.extra_set)
        batches.overfits = getattr(self.trainer, "overfit_batches", 0) > 0
        if isinstance(self.augment, Augmentation):
            images = self.augment.loaded(images, seed=self.seed)
        return ResumableLoader(images, batches, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.validation_set, **self._process())

    def test_dataloader(self) -> DataLoader:
        shard, shards = self.shard
        chosen = {"shard": shard, "shards": shards, "places": self.test_places}
        return self._evaluation_loader(self.test_set, **chosen, **self._process())

    def _evaluation_loader(self, images: Any, **process: Any) -> DataLoader:
        batches = EvaluationBatches(len(images), self.evaluation_batch_size, **process)
        return ResumableLoader(images, batches, num_workers=self.num_workers)

    def _process(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _cut(self, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return the indices of the images kept and of those held out by the setting of this name."""
        part = getattr(self, name)
        count = max(1, round(part * len(labels))) if isinstance(part, float) else part
        return stratified_split(labels, count, seed=self.split_seed, asked_by=f"data.{name}")

    def _images(self, split: str) -> Any:
        if split not in self._ready:
            self._ready[split] = self.load(split)
        return self._ready[split]

    def _checked(self, split: str) -> Any:
        self.check_splits([split])
        self.describe()
        images = self._fitting(self._images(split), self.title)
        del self._ready[split]
        if split == "train" and len(images.labels.unique()) < 2:
            raise InputError(f"the training images of {self.title} are all of one class; a classifier needs at least 2")
        return images

    def _fitting(self, images: Any, title: str) -> Any:
        """Return images with the labels of the network's outputs; InputError where shape or labels do not fit."""
        images = self.relabeled(images)
        check_labels(images.labels, self.classes)
        shape, expected = tuple(images[0][0].shape), (self.channels, self.image_size, self.image_size)
        if shape != expected:
            reason = f"but data.channels and data.image_size make it {expected}"
            raise InputError(f"the images of {title} have shape {shape}, {reason}")
        return images

    def _set_extra(self) -> None:
        if self.extra is not None and self.extra_set is None:
            self.describe()
            try:
                self.extra_set = self._fitting(read_extra(self.extra), str(self.extra))
            except InputError as error:
                raise InputError(f"data.extra: {error}") from None

    def _set_class_names(self, names: Sequence[str], source: str) -> None:
        """Set the names of the classes that `source` has; InputError where data.classes is another number."""
        self._check_class_count(names, source)
        self.class_names, self.classes = names, len(names) or self.classes

    def _check_class_count(self, names: Sequence[str], source: str) -> None:
        if names and self.class_order is None and self.classes not in (None, len(names)):
            advice = "leave data.classes out to use them"
            raise InputError(f"data.classes is {self.classes}, but {source} has {len(names)} classes; {advice}")

    def _infer_mean_and_std(self, images: Iterable[np.ndarray]) -> None:
        """Set mean and std, where they are None, to those of images (channel, height, width)."""
        if None in (self.mean, self.std):
            mean, std = mean_and_std(images)
            self.mean, self.std = self.mean or mean, self.std or std

    def _check_description(self) -> None:
        check_description(self, optional=self.infers_description)
        if self.image_size is not None:
            batch = max(self.batch_size, self.evaluation_batch_size)
            size_bytes = 4 * batch * (self.channels or 1) * self.image_size**2
            fix = "set a smaller data.image_size, data.batch_size or data.evaluation_batch_size"
            check_fits_memory(f"a batch of {batch} images of data.image_size={self.image_size}", size_bytes, fix)
