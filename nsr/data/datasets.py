"""Data sets by any callable that returns datasets: torchvision's, arrays, Hugging Face's, webdataset's, your own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from nsr.data.decoding import LABEL_KEYS, Preprocessing, Reader, check_resizing, item_parts
from nsr.data.description import DataDescription, sample_indices
from nsr.data.images import MEMORY_LIMIT_BYTES, LazyImages, TensorImages
from nsr.data.module import ImageData
from nsr.errors import InputError, call_checked, check_fits_memory, dotted_name, named_arguments, one_line
from nsr.randomness import seeded

log = logging.getLogger(__name__)

LOADER_SETTINGS = inspect.signature(ImageData.__init__).parameters.keys() - {"self", "root"}
LOADER_SETTINGS |= {"resize_size", "interpolation"}  # of PIL images
ALLOWED = "it must be {'train': dataset, 'test': dataset}, with 'validation' if there is one, or (train, test)"
SPLITS = ("train", "validation", "test")


def image_data(factory: Callable[..., Any], settings: Mapping[str, Any]) -> ImageData:
    """Return the data module of a configuration's data group.

    Args:
        factory: the ImageData subclass, or the callable that returns datasets, which `_target_` names.
        settings: the others of the group. A callable gets its own, and those of the loader (batch_size, ...) that its
            signature names.
    Errors:
        InputError: settings that do not fit, or what the factory raised, in one line.
    """
    if isinstance(factory, type) and issubclass(factory, ImageData):
        return call_checked("data", factory, settings)
    if not callable(factory):
        raise InputError(f"data._target_ is {factory!r}; it must be a callable that returns datasets")
    loader = {name: value for name, value in settings.items() if name in LOADER_SETTINGS}
    own = {name: value for name, value in settings.items() if name not in LOADER_SETTINGS}
    return DatasetImages(factory, own, **loader)


class DatasetImages(ImageData):
    """Images of the datasets that a callable returns.

    channels, image_size, classes, mean and std that are None are inferred from the training images by `describe`.
    Images are read once and kept in memory where they take less than 2 GiB and their dataset draws nothing.

    Args:
        factory: returns the datasets as {'train': ..., 'test': ..., 'validation': ...}, (train, test) or (train,
            validation, test); each of (image, label) items. Its random draws depend on split_seed alone.
        arguments: of the factory, beside those of `loader` (see ImageData) that its signature names.
        resize_size, interpolation: of PIL images, where image_size is given, see `Preprocessing`.
    """

    infers_description = True

    def __init__(
        self,
        factory: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        resize_size: int | None = None,
        interpolation: str = "bilinear",
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        check_resizing(self.image_size, resize_size, interpolation)
        self.resize = self.image_size is not None
        self.resizing: dict[str, Any] = {"resize_size": resize_size, "interpolation": interpolation}
        self.factory, self.arguments, self.loader = factory, dict(arguments), {**loader, **self.resizing}
        self.title, self.datasets = dotted_name(factory), dict[str, Any]()
        self.origin = str(arguments.get("path") or arguments.get("root") or self.title)

    def prepare(self) -> None:
        if not self.datasets:
            call = _one_by_one if isinstance(self.factory, type) and issubclass(self.factory, Dataset) else call_checked
            with seeded(self.split_seed):
                returned = call("data", self.factory, self.arguments, **self.loader)
            self.datasets = named_datasets(returned, self.title)
            self.has_validation = "validation" in self.datasets
            if self.test_images is not None:
                self._cut_test()

    def check_splits(self, splits: Sequence[str]) -> None:
        self.prepare()
        for split in splits:
            if split not in self.datasets:
                cut = "; data.test_images=0.2 cuts it from train" if split == "test" else ""
                raise InputError(f"{self.title} returns {', '.join(self.datasets)}; this needs {split}{cut}")

    def _cut_test(self) -> None:
        if "test" in self.datasets:
            super().check_splits(["test"])  # refuses
        train = self.datasets["train"]
        is_read = isinstance(train, (TensorImages, LazyImages))
        labels = train.labels if is_read else Reader(train, f"train of {self.title}").labels()
        for split, chosen in zip(("train", "test"), self._cut(labels, "test_images"), strict=True):
            self.datasets[split] = train.subset(chosen) if is_read else Subset(train, chosen.tolist())

    def describe(self) -> DataDescription:
        self.prepare()
        split, dataset = next(iter(self.datasets.items()))  # train, where there is one
        if None in (self.channels, self.image_size):
            read = Reader(dataset, f"{split} of {self.title}", self.channels, self.image_size)
            shapes = [read(index)[0].shape for index in sample_indices(len(dataset), 16)]
            self.channels = self.channels or max(shape[0] for shape in shapes)  # some of many PIL images may be gray
            self.image_size = self.image_size or shapes[0][1]
            self._check_description()
        self._set_class_names(class_names(dataset), self.title)
        if self.classes is None:
            self.classes = int(self._images(split).labels.max()) + 1
            if split == "train" and self.classes > len(dataset):
                got = f"the labels of {self.title} go up to {self.classes - 1}, for {len(dataset)} training images"
                raise InputError(f"{got}; they must be numbers of classes, 0, 1, ...; or set data.classes")
        self._infer_mean_and_std(self._images(split)[index][0].numpy() for index in sample_indices(len(dataset)))
        self._check_description()
        return super().describe()

    @property
    def preprocess(self) -> Preprocessing | None:
        """PIL image -> pixels, after `describe`; None where they are not resized."""
        return Preprocessing(self.channels, self.image_size, **self.resizing) if self.resize else None

    def load(self, split: str) -> TensorImages | LazyImages:
        """Read a split into memory, or its labels alone where it is too large or drawn again in each epoch."""
        name, size = f"{split} of {self.title}", self.resizing["resize_size"]
        if isinstance(self.datasets[split], (TensorImages, LazyImages)):
            if size is not None:
                raise InputError(f"data.resize_size is {size}, but {name} is an array, which is not resized")
            return self.datasets[split]
        read = Reader(self.datasets[split], name, self.channels, self.image_size, self.resize, **self.resizing)
        count, draws = len(self.datasets[split]), read.draws()
        if draws and split != "train":
            advice = "images that are evaluated must stay the same; leave random transforms out of it"
            raise InputError(f"{name} gives another image at each reading; {advice}")
        self.draws = self.draws or draws
        with seeded(self.split_seed):
            if draws or count * read(0)[0].nbytes > MEMORY_LIMIT_BYTES:
                log.info("%s: %d images, read %s", name, count, "again in each epoch" if draws else "when needed")
                return LazyImages(read, read.labels(), seed=self.seed)
            images, labels = zip(*map(read, range(count)), strict=True)
        if len({image.dtype for image in images}) > 1:
            raise InputError(f"{name} has uint8 and floating-point images; they must all be of one type")
        return TensorImages(torch.stack(images), torch.tensor(labels))


def _one_by_one(group: str, kind: Callable[..., Any], settings: Mapping[str, Any], **offered: Any) -> Any:
    """Make each split of a class of datasets whose signature names `train` or `split`, as those of torchvision."""
    named = named_arguments(kind)[0]
    name = next((name for name in ("train", "split") if name in named and name not in settings), None)
    if name is None:
        return call_checked(group, kind, settings, **offered)
    if name == "train":
        return {split: call_checked(group, kind, {**settings, name: split == name}, **offered) for split in SPLITS[::2]}
    found = {}
    for split in ("train", "val", "test"):
        try:
            found[split] = call_checked(group, kind, {**settings, name: split}, **offered)
        except InputError as error:
            if "Unknown value" not in str(error):  # of torchvision's verify_str_arg: it has no such split
                raise
    return found


def named_datasets(returned: Any, name: str) -> dict[str, Any]:
    """Return {split: map-style dataset} of what a factory of this name returned; InputError for anything else."""
    if isinstance(returned, Mapping):
        found = {("validation" if key in ("val", "valid") else str(key)): dataset for key, dataset in returned.items()}
        got = f"a mapping with the keys {', '.join(found) or 'none'}"
    elif isinstance(returned, (tuple, list)) and len(returned) in (2, 3):
        found = dict(zip(SPLITS if len(returned) == 3 else ("train", "test"), returned, strict=True))
        got = "no dataset"
    else:
        found, got = {}, type(returned).__name__
    unused = [split for split in found if split not in SPLITS]
    found = {split: found[split] for split in SPLITS if found.get(split) is not None}
    if not {"train", "test"} & found.keys():
        raise InputError(f"{name} returns {got}; {ALLOWED}")
    if unused:
        log.warning("%s: not used: %s; the splits are train, validation and test", name, ", ".join(unused))
    return {split: _map_style(dataset, f"{split} of {name}") for split, dataset in found.items()}


def _map_style(dataset: Any, name: str) -> Any:
    """Return the dataset itself, a pair of arrays as a dataset, or the items of one that can only be iterated."""
    if isinstance(dataset, (tuple, list)) and len(dataset) == 2 and all(hasattr(part, "shape") for part in dataset):
        images, labels = dataset
        if len(images) != len(labels):
            raise InputError(f"{name} has {len(images)} images and {len(labels)} labels; it must have as many of each")
        try:
            dataset = TensorDataset(torch.as_tensor(images), torch.as_tensor(labels))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name}: its arrays must be of numbers ({one_line(error)})") from error
    elif not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or isinstance(dataset, IterableDataset):
        if not isinstance(dataset, Iterable):
            raise InputError(f"{name} is {type(dataset).__name__}; it must be a dataset of (image, label)")
        dataset = _read_items(dataset, name)
    if len(dataset) == 0:
        raise InputError(f"{name} has no images; it must have at least one")
    return dataset


class Items(list[Any]):
    """The items of a dataset that can only be iterated, and the names of its classes."""

    classes: tuple[str, ...] = ()


def _read_items(dataset: Iterable[Any], name: str) -> Items:
    items, size_bytes = Items(), 0
    items.classes = class_names(dataset)
    try:
        for item in dataset:
            items.append(item)
            size_bytes = size_bytes or np.asarray(item_parts(item)[0]).nbytes
            check_fits_memory(f"{name}, read from {type(dataset).__name__},", len(items) * size_bytes, "limit it")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: {one_line(error)}") from error
    log.info("%s: %d images read into memory from %s", name, len(items), type(dataset).__name__)
    return items


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the class names that a dataset of torchvision or Hugging Face has, () where it has none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    for key, feature in (getattr(dataset, "features", None) or {}).items():
        names = getattr(feature, "names", None) if key in LABEL_KEYS else names
    if not isinstance(names, (list, tuple)):
        return ()
    return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names)
