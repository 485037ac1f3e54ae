"""Items of any dataset as tensors: (image, label) in many forms -> pixels (channel, height, width) and a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsr.data.decoding import GRAY_MODES, pixels_of
from nsr.data.images import Item, checked_pixels
from nsr.errors import InputError, one_line
from nsr.randomness import seeded

IMAGE_KEYS = ("image", "img", "pixel_values", "jpg", "jpeg", "png")
LABEL_KEYS = ("label", "labels", "cls")
TRIED_IMAGES, TRIED_SEEDS = 8, 4


@dataclass(frozen=True)
class Reader:
    """Index -> pixels (channel, height, width), uint8 or float32 in [0, 1], and label, of a map-style dataset.

    Args:
        name: of the dataset in messages.
        channels, image_size: of the pixels; None: those of the image.
        resize: whether PIL images of another size are resized, shorter side to image_size, and cropped at the center.
    Errors:
        InputError: an item of another form, size or range, or what the dataset raised.
    """

    dataset: Any
    name: str
    channels: int | None = None
    image_size: int | None = None
    resize: bool = True

    def __call__(self, index: int) -> Item:
        try:
            image, label = item_parts(self.dataset[index])
            pixels = self._checked(_pixels(image, self.channels, self.image_size if self.resize else None))
            return pixels, _class(label)
        except Exception as error:
            kind = "" if isinstance(error, (InputError, ValueError)) else f"{type(error).__name__}: "
            raise InputError(f"{self.name}, item {index}: {kind}{one_line(error)}") from error

    def _checked(self, pixels: Tensor) -> Tensor:
        channels, height, width = pixels.shape
        if height != width or self.image_size not in (None, height):
            size = "square" if self.image_size is None else f"{self.image_size} x {self.image_size}"
            raise InputError(
                f"its image has {width} x {height} pixels; it must be {size}; set data.image_size, to which PIL images "
                "are resized and cropped"
            )
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
            raise InputError(
                f"it has the keys {', '.join(map(str, item))}; it must have one of {', '.join(IMAGE_KEYS)} and "
                f"one of {', '.join(LABEL_KEYS)}"
            )
        return item[keys[0]], item[keys[1]]
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise InputError(f"it is {type(item).__name__}; it must be (image, label), or a mapping with these keys")


def _pixels(image: Any, channels: int | None, image_size: int | None) -> Tensor:
    """(channel, height, width) of a PIL image, or of an array with the channels first, last or left out."""
    if isinstance(image, Image.Image):
        channels = channels or (1 if image.mode in GRAY_MODES else 3)
        return torch.from_numpy(pixels_of(image, channels, image_size))
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
