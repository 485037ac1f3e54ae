"""Your own images: a folder ROOT/train/CLASS/IMAGE, ROOT/test/CLASS/IMAGE."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsr.data.decoding import all_gray, common_size, decoded, lazy_images
from nsr.data.images import MEMORY_LIMIT_BYTES, LazyImages, TensorImages
from nsr.data.module import DataDescription, ImageData, sample_indices
from nsr.errors import InputError, check_choice, check_fits_memory

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "it must contain train/CLASS/IMAGE and test/CLASS/IMAGE"
FOLDERS = {"train": "train", "test": "test", "validation": "val"}  # of each split, one of train and test at least


class ImageFolder(ImageData):
    """ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, where the names of the class folders are the classes.

    Images in ROOT/val/CLASS/IMAGE, where it exists, replace those held out of train/. An evaluation needs test/ alone,
    training train/. channels, image_size, classes, mean and std that are None are inferred by `describe`; channels,
    mean and std from up to 2,000 evenly spaced images of train/, or test/ where there is no train/. Images of another
    size than image_size are resized (shorter side, antialiased) and cropped at the center.

    Args:
        in_memory: decode all images once and keep them as uint8; None: where they take less than 2 GiB.
        settings: see ImageData.
    Errors:
        InputError: a fault of the folder, or an image that cannot be read.
    """

    infers_description = True

    def __init__(self, *, in_memory: bool | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        check_choice("data.channels", self.channels, (None, 1, 3))
        self.in_memory = check_choice("data.in_memory", in_memory, (None, True, False))
        if self.root is None:
            raise InputError("data.root is None; it must be the folder that contains train/CLASS/IMAGE")

    def prepare(self) -> None:
        if not self.class_names:
            self._set_class_names(check_folder(self.root), self.root)
            self.has_validation = (self.root / FOLDERS["validation"]).is_dir()

    def check_splits(self, splits: Sequence[str]) -> None:
        for split in splits:
            folder = self.root / FOLDERS[split]
            if not folder.is_dir():
                raise InputError(f"{self.root} has no {folder.name}; this needs {folder}/CLASS/IMAGE")

    def describe(self) -> DataDescription:
        self.prepare()
        if None in (self.channels, self.image_size, self.mean, self.std):
            found = {name: list_images(self.root / name)[0] for name in FOLDERS.values() if (self.root / name).is_dir()}
            paths = [path for group in found.values() for path in group]
            images = found.get("train", paths)
            sample = [images[index] for index in sample_indices(len(images))]
            self.channels = self.channels or (1 if all_gray(sample) else 3)
            self.image_size = self.image_size or common_size(paths)
            self._check_description()
            self._infer_mean_and_std(decoded(sample, channels=self.channels, image_size=self.image_size))
            self._check_description()
        return super().describe()

    def file_names(self, split: str) -> list[str]:
        folder = self.root / FOLDERS[split]
        return [os.path.relpath(path, folder) for path in list_images(folder)[0]]

    def load(self, split: str) -> TensorImages | LazyImages:
        paths, labels = list_images(self.root / FOLDERS[split])
        shape = {"channels": self.channels, "image_size": self.image_size}
        size_bytes = len(paths) * self.channels * self.image_size**2
        if not (size_bytes < MEMORY_LIMIT_BYTES if self.in_memory is None else self.in_memory):
            return lazy_images(paths, torch.tensor(labels), **shape)
        what = f"{len(paths)} images of data.image_size={self.image_size}"
        check_fits_memory(what, size_bytes, "set a smaller data.image_size, or data.in_memory=false")
        images = np.empty((len(paths), self.channels, self.image_size, self.image_size), np.uint8)
        for index, image in enumerate(decoded(paths, **shape)):
            images[index] = image
        return TensorImages(torch.from_numpy(images), torch.tensor(labels))


def check_folder(root: Path) -> list[str]:
    """Return the names of the classes, in the order of their labels; InputError for another layout."""
    if not root.is_dir():
        raise InputError(f"data.root is {root}, which is no folder; {LAYOUT}")
    classes = {name: class_names(root / name) for name in FOLDERS.values() if (root / name).is_dir()}
    if not classes.keys() & {"train", "test"}:
        found = class_names(root)
        hint = f"; it has {some(found)}: if these are the classes, move them into {root / 'train'}" if found else ""
        raise InputError(f"data.root is {root}, which has neither train nor test; {LAYOUT}{hint}")
    for split, names in classes.items():
        if len(names) < 2:
            got = f"only the class {names[0]!r}" if names else "no class folder"
            raise InputError(f"{root / split} has {got}; it must have a folder for each of 2 or more classes")
        for name in names:
            if next(images_in(root / split / name), None) is None:
                suffixes = ", ".join(IMAGE_SUFFIXES)
                raise InputError(f"{root / split / name} has no image ({suffixes}); add some, or remove the folder")
    first, names = next(iter(classes.items()))
    for split, others in classes.items():
        only = {first: sorted(set(names) - set(others)), split: sorted(set(others) - set(names))}
        if names != others:
            different = ", ".join(f"only {folder} has {some(own)}" for folder, own in only.items() if own)
            raise InputError(f"{first} and {split} in {root} must have the same class folders; {different}")
    return names


def list_images(folder: Path) -> tuple[list[str], list[int]]:
    """Return the paths of all images of `folder`/CLASS, class after class, and their labels."""
    found = [sorted(images_in(folder / name)) for name in class_names(folder)]
    labels = [label for label, paths in enumerate(found) for _ in paths]
    return [path for paths in found for path in paths], labels


def class_names(folder: Path) -> list[str]:
    """Return the folders in `folder`, sorted, without hidden ones (.ipynb_checkpoints)."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> Iterator[str]:
    """Yield the images in `folder` and below it, in no order; other files and hidden ones (._photo.jpg) are ignored."""
    for where, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                yield os.path.join(where, file)


def some(names: list[str], most: int = 5) -> str:
    """Return "'cat', 'dog', ... (12 more)"."""
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
