"""Pixels (channel, height, width) of image files, and of the items (image, label) of any dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsr.data.images import Item, LazyImages, checked_pixels
from nsr.errors import InputError, check_choice, check_number, dotted_name, one_line
from nsr.randomness import seeded

IMAGE_KEYS = ("image", "img", "pixel_values", "jpg", "jpeg", "png")
LABEL_KEYS = ("label", "labels", "cls")
TRIED_IMAGES, TRIED_SEEDS = 8, 4
GRAY_MODES = ("1", "L", "LA")
WIDE_MODES = ("I", "F")  # 16 and 32 bit: PIL would clip them to 255
IMAGES_AT_ONCE = 256  # given to the threads
# smaller images spend their time in Python, where threads block each other: 50,000 of 32 x 32 pixels take 16 s with
# eight threads and 8 s with none (2 cores), one of 500 x 375 half as long with two threads
THREADS_FROM_PIXELS = 200 * 200
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # PIL's, antialiased


@dataclass(frozen=True)
class Preprocessing:
    """PIL image -> pixels, as the transforms of torchvision's and timm's published weights make them.

    The shorter side is resized to `resize_size`, and the image is cropped at the center.

    Args:
        channels: 1 (gray) or 3 (red, green, blue).
        image_size: height and width of the result; None: the image keeps its size.
        resize_size: None: image_size, so that nothing of a square is cropped.
        interpolation: one of INTERPOLATIONS.
    """

    channels: int
    image_size: int | None
    resize_size: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return pixels (channel, height, width) uint8; ValueError where the image has more than 8 bits."""
        image = converted(image, self.channels)
        if self.image_size is not None:
            shorter, size = min(image.size), self.resize_size or self.image_size
            # as in torchvision: the longer side is rounded down, the place of the crop to the nearest pixel
            width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
            left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
            image = image.crop((left, top, left + self.image_size, top + self.image_size))
        return array_of(image)


@dataclass(frozen=True)
class DrawnCrop:
    """PIL image -> pixels of a part of the whole picture, which `transform` draws.

    Args:
        channels: 1 (gray) or 3 (red, green, blue).
        image_size: height and width of the result.
        transform: PIL image -> PIL image of this size, such as torchvision.transforms.v2.RandomResizedCrop; it draws
            from torch, numpy.random or random.
    """

    channels: int
    image_size: int
    transform: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return pixels (channel, height, width) uint8; InputError where the transform fails or gives another size."""
        image, name = converted(image, self.channels), f"data.train_crop ({dotted_name(self.transform)})"
        try:
            drawn = self.transform(image)
        except Exception as error:  # whatever a third-party transform raises
            raise InputError(f"{name} takes no picture: {type(error).__name__}: {one_line(error)}") from error
        got = "x".join(map(str, drawn.size)) if isinstance(drawn, Image.Image) else type(drawn).__name__
        if got != f"{self.image_size}x{self.image_size}":
            wanted = f"a PIL image of {self.image_size}x{self.image_size} pixels, data.image_size"
            raise InputError(f"{name} gives {got}; it must give {wanted}")
        return array_of(converted(drawn, self.channels))


def converted(image: Image.Image, channels: int) -> Image.Image:
    """Return the image in gray (1 channel) or in color (3); ValueError where it has more than 8 bits."""
    if image.mode.startswith(WIDE_MODES):
        raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}: save it with 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else PIL warns
    return image.convert("L" if channels == 1 else "RGB")


def array_of(image: Image.Image) -> np.ndarray:
    """Return the pixels (channel, height, width) of an image."""
    pixels = np.array(image)  # a copy: PIL's own are read-only
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def check_resizing(image_size: int | None, resize_size: Any, interpolation: Any) -> None:
    """Raise InputError for settings that make no `Preprocessing`."""
    check_choice("data.interpolation", interpolation, INTERPOLATIONS)
    if resize_size is None:
        return
    if image_size is None:
        raise InputError(
            f"data.resize_size is {resize_size}, but data.image_size, which is cropped, is null: give both"
        )
    advice = "the shorter side is resized to it, then data.image_size is cropped"
    check_number("data.resize_size", resize_size, lowest=image_size, whole=True, advice=advice)


def lazy_images(paths: Sequence[str] | np.ndarray, labels: Tensor, preprocess: Preprocessing) -> LazyImages:
    """Return the images of these files, decoded when they are requested."""
    # one array: counting references to a list of texts copies it page by page into every worker process
    return LazyImages(FileReader(np.asarray(paths), labels, preprocess), labels)


@dataclass(frozen=True)
class FileReader:
    """Index -> pixels (channel, height, width) uint8 and label, of image files (image,) and their labels (image,)."""

    paths: np.ndarray
    labels: Tensor
    preprocess: Preprocessing | DrawnCrop

    def __call__(self, index: int) -> Item:
        return torch.from_numpy(decode(str(self.paths[index]), self.preprocess)), int(self.labels[index])


def decode(path: str, preprocess: Preprocessing | DrawnCrop) -> np.ndarray:
    """Return the pixels (channel, height, width) uint8 of an image file."""
    return _opened(path, preprocess)


def decoded(paths: Sequence[str], preprocess: Preprocessing) -> Iterator[np.ndarray]:
    """Decode every path, in order; stop at the first that cannot be read."""
    width, height = _opened(paths[0], lambda image: image.size)
    one = partial(decode, preprocess=preprocess)
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
    except InputError:  # of a transform, not of the file
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ... for a damaged file
        raise InputError(f"{path} cannot be read as an image ({one_line(error)}); repair or remove it") from None


@dataclass(frozen=True)
class Reader:
    """Index -> pixels (channel, height, width), uint8 or float32 in [0, 1], and label, of a map-style dataset.

    Args:
        name: of the dataset in messages.
        channels, image_size: of the pixels; None: those of the image.
        resize: whether PIL images of another size are resized and cropped.
        resize_size, interpolation: how, see `Preprocessing`.
    Errors:
        InputError: an item of another form, size or range, or what the dataset raised.
    """

    dataset: Any
    name: str
    channels: int | None = None
    image_size: int | None = None
    resize: bool = True
    resize_size: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, index: int) -> Item:
        try:
            image, label = item_parts(self.dataset[index])
            return self._checked(self._pixels(image)), _class(label)
        except Exception as error:
            kind = "" if isinstance(error, (InputError, ValueError)) else f"{type(error).__name__}: "
            raise InputError(f"{self.name}, item {index}: {kind}{one_line(error)}") from error

    def _pixels(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            channels = self.channels or (1 if image.mode in GRAY_MODES else 3)
            size = self.image_size if self.resize else None
            return torch.from_numpy(Preprocessing(channels, size, self.resize_size, self.interpolation)(image))
        if self.resize_size is not None:
            raise InputError(f"data.resize_size is {self.resize_size}; only PIL images are resized: leave it out")
        return _pixels(image)

    def _checked(self, pixels: Tensor) -> Tensor:
        channels, height, width = pixels.shape
        if height != width or self.image_size not in (None, height):
            size = "square" if self.image_size is None else f"{self.image_size} x {self.image_size}"
            advice = "set data.image_size, to which PIL images are resized and cropped"
            raise InputError(f"its image has {width} x {height} pixels; it must be {size}; {advice}")
        if self.channels not in (None, channels):
            raise InputError(f"its image has {channels} channels; data.channels is {self.channels}")
        return pixels

    def draws(self) -> bool:
        """Return whether the dataset draws: some image differs from one reading to the next."""
        for index in range(min(len(self.dataset), TRIED_IMAGES)):
            images = []
            for seed in range(TRIED_SEEDS):
                with seeded(seed):
                    images.append(self(index)[0])
            if not all(torch.equal(images[0], image) for image in images):
                return True
        return False

    def labels(self) -> Tensor:
        """Return all labels (image,): `targets`, `labels` or a column where the items agree, else read one by one."""
        count = len(self.dataset)
        columns = [getattr(self.dataset, name, None) for name in ("targets", "labels")]
        features = getattr(self.dataset, "features", None) or {}  # Hugging Face
        columns += [self.dataset[key][:] for key in LABEL_KEYS if key in features]
        for column in columns:
            labels = np.asarray(column)
            is_label = labels.shape == (count,) and labels.dtype.kind in "iu"
            if is_label and all(self(index)[1] == labels[index] for index in {0, count // 2, count - 1}):
                return torch.from_numpy(labels.astype(np.int64))
        return torch.tensor([self(index)[1] for index in range(count)])


def item_parts(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item (image, label, ...) or of a mapping."""
    if isinstance(item, Mapping):
        keys = [next((key for key in known if key in item), None) for known in (IMAGE_KEYS, LABEL_KEYS)]
        if None in keys:
            allowed = f"one of {', '.join(IMAGE_KEYS)} and one of {', '.join(LABEL_KEYS)}"
            raise InputError(f"it has the keys {', '.join(map(str, item))}; it must have {allowed}")
        return item[keys[0]], item[keys[1]]
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise InputError(f"it is {type(item).__name__}; it must be (image, label), or a mapping with these keys")


def _pixels(image: Any) -> Tensor:
    """(channel, height, width) of an array with the channels first, last or left out."""
    pixels = image.detach() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise InputError(f"its image has shape {tuple(pixels.shape)}; it must be (channel, height, width)")
    # the channel is the axis beside a square; in a cube, or where there is no square, the smaller of first and last
    first, last = pixels.shape[1] == pixels.shape[2], pixels.shape[0] == pixels.shape[1]
    if first == last:
        first = pixels.shape[0] < pixels.shape[2] + isinstance(image, Tensor)
    if not first:
        pixels = pixels.permute(2, 0, 1)
    return checked_pixels(pixels).contiguous()


def _class(label: Any) -> int:
    value = np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "iu":
        shown = " ".join(repr(label).split())
        raise InputError(f"its label is {shown[:60]}; it must be a whole number from 0")
    return int(value.reshape(-1)[0])
