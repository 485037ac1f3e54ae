"""Your own images: a folder ROOT/train/CLASS/IMAGE, ROOT/test/CLASS/IMAGE, and that of (Tiny) ImageNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsr.data.decoding import DrawnCrop, Preprocessing, all_gray, check_resizing, common_size, decoded, lazy_images
from nsr.data.description import DataDescription, sample_indices
from nsr.data.images import MEMORY_LIMIT_BYTES, LazyImages, TensorImages
from nsr.data.module import ImageData
from nsr.errors import InputError, check_choice, check_fits_memory

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "it must contain train/CLASS/IMAGE and test/CLASS/IMAGE"
FOLDERS = ("train", "test", "val", "valid")  # one of train and test at least
ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet's val/images: file, class and box, separated by tabs


class ImageFolder(ImageData):
    """ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, where the names of the class folders are the classes.

    Images in ROOT/val/CLASS/IMAGE, or ROOT/valid/, where it exists, replace those held out of train/. An evaluation
    needs test/ alone, training train/. In Tiny-ImageNet's layout (val/images, val/val_annotations.txt) val/ has the
    test images, for those of its test/ have no labels. channels, image_size, classes, mean and std that are None are
    inferred by `describe`; channels, mean and std from up to 2,000 evenly spaced images of train/, or test/ where there
    is no train/. Images of another size are resized and cropped at the center, see `Preprocessing`; with `train_crop`
    those that are trained on are parts of the whole pictures, drawn as a function of (seed, epoch, image).

    Args:
        resize_size: of the shorter side, in pixels, before image_size is cropped; None: image_size.
        interpolation: of resizing, antialiased: nearest, bilinear, bicubic, lanczos, box or hamming.
        train_crop: None; 'random', torchvision's RandomResizedCrop with its defaults, or another callable, PIL image ->
            PIL image of image_size, see `DrawnCrop`. Training images are then read from their files in each epoch.
        test_folder: the folder of the test images; None: test, or val in Tiny-ImageNet's layout.
        in_memory: decode all images once and keep them as uint8; None: where they take less than 2 GiB.
        settings: see ImageData.
    Errors:
        InputError: a fault of the folder, or an image that cannot be read.
    """

    infers_description = True

    def __init__(
        self,
        *,
        resize_size: int | None = None,
        interpolation: str = "bilinear",
        train_crop: str | Callable[[Any], Any] | None = None,
        test_folder: str | None = None,
        in_memory: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_resizing(self.image_size, resize_size, interpolation)
        self.resize_size, self.interpolation = resize_size, interpolation
        if train_crop not in (None, "random") and not callable(train_crop):
            allowed = "random, a transform of pictures (_target_: torchvision.transforms.v2.RandomResizedCrop) or null"
            raise InputError(f"data.train_crop is {train_crop!r}; it must be {allowed}")
        self.train_crop = train_crop
        check_choice("data.channels", self.channels, (None, 1, 3))
        self.in_memory = check_choice("data.in_memory", in_memory, (None, True, False))
        if in_memory and train_crop is not None:
            raise InputError("data.in_memory is true, but data.train_crop draws from the files: leave one of them out")
        if self.root is None:
            raise InputError("data.root is None; it must be the folder that contains train/CLASS/IMAGE")
        check_choice("data.test_folder", test_folder, (None, *FOLDERS[1:]))
        self.test_folder, self.folders = test_folder, dict[str, Path]()

    def prepare(self) -> None:
        if not self.class_names:
            self.folders = split_folders(self.root, self.test_folder)
            self._set_class_names(check_folders(self.root, self.folders), self.root)
            self.has_validation = "validation" in self.folders

    def check_splits(self, splits: Sequence[str]) -> None:
        self.prepare()
        if self.test_images is not None and "test" in self.folders:
            got = f"data.test_images is {self.test_images}, but the test images are in {self.folders['test']}"
            raise InputError(f"{got}: leave it out")
        for split in splits:
            name = "train" if self.test_images is not None else split
            if name not in self.folders:
                folder = self.root / (self.test_folder or name if name == "test" else name)
                cut = "; data.test_images=0.2 cuts them from train" if name == "test" else ""
                raise InputError(f"{self.root} has no {folder.name}; this needs {folder}/CLASS/IMAGE{cut}")

    def split_source(self, split: str) -> str:
        return super().split_source(split) or f"{self.folders[split].name}/"

    def describe(self) -> DataDescription:
        self.prepare()
        if None in (self.channels, self.image_size, self.mean, self.std):
            found = {split: self._listed(split)[0] for split in self.folders}
            paths = [path for group in found.values() for path in group]
            images = found.get("train", paths)
            sample = [images[index] for index in sample_indices(len(images))]
            self.channels = self.channels or (1 if all_gray(sample) else 3)
            self.image_size = self.image_size or common_size(paths)
            self._check_description()
            self._infer_mean_and_std(decoded(sample, self.preprocess))
            self._check_description()
        return super().describe()

    @property
    def preprocess(self) -> Preprocessing:
        """PIL image -> pixels; after `describe`."""
        return Preprocessing(self.channels, self.image_size, self.resize_size, self.interpolation)

    def file_names(self, split: str) -> list[str]:
        return [os.path.relpath(path, self.root) for path in self._listed(split)[0]]

    def load(self, split: str) -> TensorImages | LazyImages:
        paths, labels = self._listed(split)
        size_bytes = len(paths) * self.channels * self.image_size**2
        draws = split == "train" and self.train_crop is not None
        if draws or not (size_bytes < MEMORY_LIMIT_BYTES if self.in_memory is None else self.in_memory):
            return lazy_images(paths, labels, self.preprocess)
        what = f"{len(paths)} images of data.image_size={self.image_size}"
        check_fits_memory(what, size_bytes, "set a smaller data.image_size, or data.in_memory=false")
        images = np.empty((len(paths), self.channels, self.image_size, self.image_size), np.uint8)
        for index, image in enumerate(decoded(paths, self.preprocess)):
            images[index] = image
        return TensorImages(torch.from_numpy(images), labels)

    def drawn(self, images: Any) -> Any:
        if self.train_crop is None:
            return images
        crop: Any = self.train_crop
        if crop == "random":
            from torchvision.transforms import InterpolationMode, v2  # here, because it is slow to load

            crop = v2.RandomResizedCrop(self.image_size, interpolation=InterpolationMode(self.interpolation))
        drawn = copy(images)
        drawn.read = replace(images.read, preprocess=DrawnCrop(self.channels, self.image_size, crop))
        drawn.seed = self.seed
        drawn[0]  # a trial
        return drawn

    def _listed(self, split: str) -> tuple[list[str], Tensor]:
        """Return the paths of the images of a split, and their labels."""
        cuts = self.test_images is not None and split != "validation"
        paths, numbers = list_images(self.folders["train" if cuts else split])
        labels = torch.tensor(numbers)
        if not cuts:
            return paths, labels
        chosen = self._cut(labels, "test_images")[split == "test"]
        return [paths[index] for index in chosen.tolist()], labels[chosen]


def split_folders(root: Path, test_folder: str | None = None) -> dict[str, Path]:
    """Return {'train', 'test', 'validation': folder} of those that there are; InputError where there is none."""
    if not root.is_dir():
        raise InputError(f"data.root is {root}, which is not a folder; {LAYOUT}")
    found = {name: root / name for name in FOLDERS if (root / name).is_dir()}
    if {"val", "valid"} <= found.keys():
        raise InputError(f"{root} has val and valid; it must have one of them: move or rename the other")
    if test_folder is None:
        test_folder = "val" if (root / "val" / ANNOTATIONS).is_file() else "test"
    splits = {"train": "train", "test": test_folder, "validation": "valid" if "valid" in found else "val"}
    if splits["validation"] == test_folder:
        del splits["validation"]
    folders = {split: found[name] for split, name in splits.items() if name in found}
    if not folders.keys() & {"train", "test"}:
        names = class_names(root)
        hint = f"; it has {some(names)}: if these are the classes, move them into {root / 'train'}" if names else ""
        raise InputError(f"data.root is {root}, which has neither train nor {test_folder}; {LAYOUT}{hint}")
    return folders


def check_folders(root: Path, folders: Mapping[str, Path]) -> list[str]:
    """Return the names of the classes, in the order of their labels; InputError for another layout."""
    classes = {folder.name: class_names(folder) for folder in folders.values()}
    for split, names in classes.items():
        if len(names) < 2:
            got = f"only the class {names[0]!r}" if names else "no class folder"
            raise InputError(f"{root / split} has {got}; it must have a folder for each of 2 or more classes")
        for name in names if annotated(root / split) is None else ():
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
    names, by_class = class_names(folder), annotated(folder)
    found = [sorted(images_in(folder / name) if by_class is None else by_class[name]) for name in names]
    labels = [label for label, paths in enumerate(found) for _ in paths]
    return [path for paths in found for path in paths], labels


def class_names(folder: Path) -> list[str]:
    """Return the folders in `folder`, sorted, without hidden ones (.ipynb_checkpoints), or the classes annotated."""
    if (by_class := annotated(folder)) is not None:
        return sorted(by_class)
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def annotated(folder: Path) -> dict[str, list[str]] | None:
    """Return {class: paths in `folder`/images} of Tiny-ImageNet's val_annotations.txt, None where there is none."""
    path, found = folder / ANNOTATIONS, dict[str, list[str]]()
    if not path.is_file():
        return None
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        file, tab, rest = line.partition("\t")
        if not tab or "/" in file:
            raise InputError(f"{path}, line {number} is {line[:60]!r}; it must have a file and a class, after a tab")
        found.setdefault(rest.partition("\t")[0], []).append(str(folder / "images" / file))
    return found


def images_in(folder: Path) -> Iterator[str]:
    """Yield the images in `folder` and below it, in no order.

    Other files and hidden ones (._photo.jpg) are ignored, and so is what is in hidden folders (.ipynb_checkpoints).
    """
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk enters those that are left
        for file in files:
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                yield os.path.join(where, file)


def some(names: list[str], most: int = 5) -> str:
    """Return "'cat', 'dog', ... (12 more)"."""
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
