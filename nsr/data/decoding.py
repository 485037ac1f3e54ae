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

from nsr.data.images import Item, LazyImages
from nsr.errors import InputError, one_line

GRAY_MODES = ("1", "L", "LA")
WIDE_MODES = ("I", "F")  # 16 and 32 bit: PIL would clip them to 255
IMAGES_AT_ONCE = 256  # given to the threads
# smaller images spend their time in Python, where threads block each other: 50,000 of 32 x 32 pixels take 16 s with
# eight threads and 8 s with none (2 cores), one of 500 x 375 half as long with two threads
THREADS_FROM_PIXELS = 200 * 200


def lazy_images(paths: Sequence[str], labels: Tensor, *, channels: int, image_size: int) -> LazyImages:
    """Return the images of these files, decoded when they are requested."""
    # one array: counting references to a list of texts copies it page by page into every worker process
    return LazyImages(partial(_read, np.asarray(paths), labels, channels, image_size), labels)


def _read(paths: np.ndarray, labels: Tensor, channels: int, image_size: int, index: int) -> Item:
    pixels = decode(str(paths[index]), channels=channels, image_size=image_size)
    return torch.from_numpy(pixels), int(labels[index])


def decode(path: str, *, channels: int, image_size: int) -> np.ndarray:
    """Return the pixels (channel, height, width) uint8 of an image file, 1 channel (gray) or 3 (red, green, blue).

    An image of another size is resized, shorter side to `image_size`, and cropped at the center.
    """
    return _opened(path, lambda image: pixels_of(image, channels, image_size))


def decoded(paths: Sequence[str], *, channels: int, image_size: int) -> Iterator[np.ndarray]:
    """Decode every path, in order; stop at the first that cannot be read."""
    width, height = _opened(paths[0], lambda image: image.size)
    one = partial(decode, channels=channels, image_size=image_size)
    if width * height < THREADS_FROM_PIXELS:
        yield from map(one, paths)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            yield from pool.map(one, paths[start : start + IMAGES_AT_ONCE])


def all_gray(paths: Sequence[str]) -> bool:
    """Return whether every image is grayscale."""
    return all(_opened(path, lambda image: image.mode) in GRAY_MODES for path in paths)


def common_size(paths: Sequence[str]) -> int:
    """Return the size of images that are all squares of one size; InputError for others, which need data.image_size."""
    first = _opened(paths[0], lambda image: image.size)
    for path in paths:
        size = _opened(path, lambda image: image.size)
        if size != first or size[0] != size[1]:
            kinds = "not square" if size == first else f"of different sizes ({paths[0]} is {first[0]} x {first[1]})"
            raise InputError(
                f"the images are {kinds}: {path} is {size[0]} x {size[1]} pixels; "
                "set data.image_size, to which they are resized and cropped, such as data.image_size=32"
            )
    return first[0]


def _opened(path: str, use: Callable[[Image.Image], Any]) -> Any:
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
    if image_size is not None and image.size != (image_size, image_size):
        shorter = min(image.size)
        width, height = (round(side * image_size / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased in PIL
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    pixels = np.array(image)  # a copy: PIL's own are read-only
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
