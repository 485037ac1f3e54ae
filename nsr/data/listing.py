"""Find the images of a folder ROOT/train/CLASS/IMAGE, ROOT/test/CLASS/IMAGE."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nsr.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "it must contain train/CLASS/IMAGE and test/CLASS/IMAGE"
FOLDERS = {
    "train": "train",
    "test": "test",
    "validation": "val",
}  # of each split; train and test may be missing, val too


def check_folder(root: Path) -> list[str]:
    """Return the names of the classes, in the order of their labels.

    Errors:
        InputError: no such folder, neither train/ nor test/, no class, one class, a class without images, or other
            classes in test/ or val/ than in train/.
    """
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
        different = [
            f"only {folder} has {some(sorted(only))}"
            for folder, only in ((first, set(names) - set(others)), (split, set(others) - set(names)))
            if only
        ]
        if different:
            raise InputError(f"{first} and {split} in {root} must have the same class folders; {', '.join(different)}")
    return names


def list_images(folder: Path) -> tuple[list[str], list[int]]:
    """Return the paths of all images of `folder`/CLASS, class after class, and their labels."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names(folder)):
        found = sorted(images_in(folder / name))
        paths += found
        labels += [label] * len(found)
    return paths, labels


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
