"""Read image files: sizes and pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from nsr.errors import InputError, check_fits_memory, one_line

GRAY_MODES = ("1", "L", "LA")
WIDE_MODES = ("I", "F")  # 16 and 32 bit: PIL would clip them to 255
IMAGES_AT_ONCE = 256  # given to the threads
# smaller images spend their time in Python, where threads block each other: 50,000 of 32 x 32 pixels take 16 s with
# eight threads and 8 s with none (2 cores), one of 500 x 375 half as long with two threads
THREADS_FROM_PIXELS = 200 * 200
FIX = "set a smaller data.image_size, or data.in_memory=false"


class LazyImages(Dataset[tuple[Tensor, int]]):
    """Images decoded when they are asked for.

    Args:
        paths, labels: of each image.
        channels, image_size: see `decode`.
    """

    def __init__(self, paths: Sequence[str], labels: Tensor, *, channels: int, image_size: int) -> None:
        # one array: counting references to a list of texts copies it page by page into every worker process
        self.paths, self.labels = np.asarray(paths), labels
        self.channels, self.image_size = channels, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(channel, height, width) float32 in [0, 1] and its label."""
        image = decode(str(self.paths[index]), channels=self.channels, image_size=self.image_size)
        return torch.from_numpy(image).to(torch.float32).div_(255), int(self.labels[index])

    def subset(self, indices: Tensor) -> LazyImages:
        """Return the images at these indices."""
        paths, labels = self.paths[indices.numpy()], self.labels[indices]
        return LazyImages(paths, labels, channels=self.channels, image_size=self.image_size)


def decode(path: str, *, channels: int, image_size: int) -> np.ndarray:
    """Return the pixels (channel, height, width) uint8 of an image file, 1 channel (gray) or 3 (red, green, blue).

    An image of another size is resized, shorter side to `image_size`, and cropped at the center.
    """
    return _reading(path, lambda image: pixels_of(image, channels, image_size))


def decode_all(paths: Sequence[str], *, channels: int, image_size: int) -> Tensor:
    """Return all images, (image, channel, height, width) uint8."""
    check_fits_memory(
        f"{len(paths)} images of data.image_size={image_size}", len(paths) * channels * image_size**2, FIX
    )
    images = np.empty((len(paths), channels, image_size, image_size), np.uint8)
    for index, image in enumerate(decoded(paths, channels=channels, image_size=image_size)):
        images[index] = image
    return torch.from_numpy(images)


def all_gray(paths: Sequence[str]) -> bool:
    """Return whether every image is grayscale."""
    return all(_reading(path, lambda image: image.mode) in GRAY_MODES for path in paths)


def common_size(paths: Sequence[str]) -> int:
    """Return the size of images that are all squares of one size; InputError for others, which need data.image_size."""
    first = _reading(paths[0], lambda image: image.size)
    for path in paths:
        size = _reading(path, lambda image: image.size)
        if size != first or size[0] != size[1]:
            kinds = "not square" if size == first else f"of different sizes ({paths[0]} is {first[0]} x {first[1]})"
            raise InputError(
                f"the images are {kinds}: {path} is {size[0]} x {size[1]} pixels; "
                "set data.image_size, to which they are resized and cropped, such as data.image_size=32"
            )
    return first[0]


def decoded(paths: Sequence[str], *, channels: int, image_size: int) -> Iterator[np.ndarray]:
    """Decode every path, in order; stop at the first that cannot be read."""
    width, height = _reading(paths[0], lambda image: image.size)
    one = partial(decode, channels=channels, image_size=image_size)
    if width * height < THREADS_FROM_PIXELS:
        yield from map(one, paths)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            yield from pool.map(one, paths[start : start + IMAGES_AT_ONCE])


def _reading(path: str, use: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ... for a damaged file
        raise InputError(f"{path} cannot be read as an image ({one_line(error)}); repair or remove it") from None


def pixels_of(image: Image.Image, channels: int, image_size: int | None) -> np.ndarray:
    """Return the pixels (channel, height, width) uint8 of an image, in its own size where `image_size` is None."""
    if image.mode.startswith(WIDE_MODES):
        raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}: save it with 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else PIL warns
    image = image.convert("L" if channels == 1 else "RGB")
    image = image if image_size is None else _square(image, image_size)
    pixels = np.array(image)  # a copy: PIL's own are read-only
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    shorter = min(width, height)
    width, height = round(width * size / shorter), round(height * size / shorter)
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased in PIL
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
