"""Images and labels in .npz files: MedMNIST's, those of generated images, your own. Nothing in them is executed."""

from __future__ import annotations

import logging
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from nsr.data.images import MEMORY_LIMIT_BYTES, Item, LazyImages, TensorImages
from nsr.errors import InputError, check_fits_memory, one_line

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation", "test": "test"}
IMAGE_WORDS, LABEL_WORDS = {"x", "image", "images", "data"}, {"y", "label", "labels", "targets"}
FORMS = "it must have arrays such as x_train and y_train, train_images and train_labels, or image and label"
FAILURES = (OSError, ValueError, EOFError, LookupError, NotImplementedError, BadZipFile, struct.error, zlib.error)
LOCAL_HEADER = 30  # bytes of a zip entry before its name; the last four are the lengths of name and extra field


class Array(NamedTuple):
    """Where an array of a .npz file is, and what it holds."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_c_order: bool
    offset: int | None  # of its first byte in the file; None: it is compressed

    def read(self) -> np.ndarray:
        """Return the array: mapped, so that only what is used is read, or of a compressed one a copy in memory."""
        if self.offset is not None and self.is_c_order and all(self.shape):
            return np.memmap(self.path, self.dtype, "c", self.offset, self.shape)  # c: changes stay in memory
        size_bytes = self.dtype.itemsize * float(np.prod(self.shape, dtype=float))
        check_fits_memory(f"{self.name} in {self.path}", size_bytes, "save it with numpy.savez, without compression")
        with np.load(self.path, allow_pickle=False) as arrays:
            return arrays[self.name]


def npz(path: str | Path, test_path: str | Path | None = None) -> dict[str, TensorImages | LazyImages]:
    """Return the images of a .npz file by their split.

    An array is named by its split (train; val, valid or validation; test) and its content (x, image, images or data; y,
    label, labels or targets), in any order, joined by _. Arrays that name no split are training images. Arrays that are
    stored without compression are mapped; those of 2 GiB or more are read from the file when they are requested.

    Args:
        test_path: of a further file with the test images.
    Errors:
        InputError: a file that cannot be read, or arrays that are no images and labels.
    """
    found = {split: read_pair(path, pair) for split, pair in pairs(path).items()}
    if test_path is not None:
        if "test" in found:
            raise InputError(f"test_path is {test_path}, but {path} has test images: leave it out")
        others = pairs(test_path)
        found["test"] = read_pair(test_path, others.get("test") or next(iter(others.values())))
    return found


def pairs(path: str | Path) -> dict[str, tuple[Array, Array]]:
    """Return {'train', 'validation', 'test': (images, labels)} of a .npz file; nothing but its headers is read."""
    arrays, found, texts = headers(Path(path).expanduser()), dict[str, dict[bool, Array]](), dict[str, Array]()
    for name, array in arrays.items():
        words = name.lower().replace(".", "_").split("_")
        split = next((SPLITS[word] for word in words if word in SPLITS), "train")
        is_images, is_labels = bool(IMAGE_WORDS & {*words}), bool(LABEL_WORDS & {*words})
        if is_images == is_labels:
            continue
        if array.dtype.kind in "US":  # names of classes, beside the labels
            texts[split] = array
            continue
        other = found.setdefault(split, {}).setdefault(is_images, array)
        if other is not array:
            raise InputError(f"{path} has {other.name} and {name}; it must have one of them for {split}")
    for split, parts in found.items():
        if len(parts) == 1:
            is_images, lone = next(iter(parts.items()))
            missing = "labels" if is_images else "images"
            if (text := texts.get(split)) is not None:
                raise InputError(f"{text.name} in {path} has the type {text.dtype}; it must hold numbers")
            raise InputError(f"{path} has {lone.name}, but no {missing} for {split}; {FORMS}")
    if not found:
        raise InputError(f"{path} has the arrays {', '.join(arrays) or 'none'}; {FORMS}")
    return {split: (parts[True], parts[False]) for split, parts in found.items()}


def headers(path: Path) -> dict[str, Array]:
    """Return the arrays of a .npz file by their names; InputError where it cannot be read."""
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            found = {}
            for entry in archive.infolist():
                with archive.open(entry) as content:
                    shape, is_fortran, dtype = _header(content)
                    start = content.tell()
                offset = None
                if entry.compress_type == ZIP_STORED and not entry.flag_bits & 1:
                    file.seek(entry.header_offset + LOCAL_HEADER - 4)
                    offset = entry.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4))) + start
                name = entry.filename.removesuffix(".npy")
                found[name] = Array(path, name, shape, dtype, not is_fortran, offset)
    except FAILURES as error:
        kind = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({one_line(error)})"
        raise InputError(f"{path} {kind}; it must be a .npz file, as numpy.savez writes it") from None
    return found


def _header(content: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of numpy's format")
    return npy.read_array_header_1_0(content) if version == (1, 0) else npy.read_array_header_2_0(content)


def read_pair(path: str | Path, pair: tuple[Array, Array]) -> TensorImages | LazyImages:
    """Return the images and labels of a split.

    Args:
        pair: images (image, height, width), with the channel behind or before these, uint8 or floats in [0, 1]; whole
            numbers (image,) or (image, 1).
    Errors:
        InputError: other arrays.
    """
    for array in pair:
        if array.dtype.kind not in "uif":
            fix = "Python objects and texts are not read" if array.dtype.hasobject else "it must hold numbers"
            raise InputError(f"{array.name} in {path} has the type {array.dtype}; {fix}")
    try:
        images, numbers = channels_first(pair[0]), np.array(pair[1].read())
        labels = torch.from_numpy(numbers.astype(np.int64 if numbers.dtype.kind in "ui" else np.float64))
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        checked = TensorImages(images, labels)
    except FAILURES as error:
        raise InputError(f"{pair[0].name} and {pair[1].name} in {path}: {one_line(error)}") from None
    if images.nbytes < MEMORY_LIMIT_BYTES:
        return TensorImages(checked.images.contiguous(), checked.labels)
    log.info("%s of %s: %d images, read when needed", pair[0].name, path, len(images))
    return LazyImages(partial(_item, checked.images, checked.labels), checked.labels)


def channels_first(array: Array) -> Tensor:
    """Return images (image, channel, height, width) of an array; InputError where they are not square."""
    shape = array.shape
    is_last = len(shape) == 4 and shape[1] == shape[2] and (shape[2] != shape[3] or shape[3] in (1, 3))
    if not is_last and (len(shape) not in (3, 4) or shape[-1] != shape[-2]):
        raise InputError(f"images have shape {shape}; they must be (image, size, size), with a channel last or second")
    pixels = array.read()
    images = torch.from_numpy(pixels if pixels.dtype == np.uint8 or pixels.dtype.isnative else pixels.astype("=f8"))
    return images.permute(0, 3, 1, 2) if is_last else images[:, None] if images.ndim == 3 else images


def _item(images: Tensor, labels: Tensor, index: int) -> Item:
    return images[index].contiguous(), int(labels[index])
