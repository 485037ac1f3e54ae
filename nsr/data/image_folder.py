"""Images of your own: a folder of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nsr.data.decoding import LazyImages, all_grey, common_size, decode_all, mean_and_std
from nsr.data.images import TensorImages
from nsr.data.listing import check_folder, list_images
from nsr.data.module import ImageData
from nsr.errors import InputError, check_choice

SAMPLE = 2_000  # images from which channels, mean and std are read off
MEMORY_LIMIT_BYTES = 2 * 2**30

_decoded_ahead: dict[tuple[str, int, int], torch.Tensor] = {}  # by `rehearse`, for the run that follows in this process


class ImageFolder(ImageData):
    """ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, where the names of the class folders are the classes.

    channels, image_size, classes, mean and std that are None are read off the folder by `describe`. Images of another
    size than image_size are resized (shorter side, antialiased) and their centre cut out. Without train/ a model can
    still be evaluated, without test/ one can be trained.

    Args:
        in_memory: decode all images once and keep them as uint8; None: where they take less than 2 GiB.
        settings: see ImageData.
    Errors:
        InputError: what is wrong with the folder, or the image that cannot be read.
    """

    reads_description = True

    # ImageData's settings are not listed again, but for those that may be left out here: it names and checks them
    def __init__(
        self,
        *,
        channels: int | None = None,
        image_size: int | None = None,
        classes: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        in_memory: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(channels=channels, image_size=image_size, classes=classes, mean=mean, std=std, **settings)
        check_choice("data.channels", channels, (None, 1, 3))
        self.in_memory = check_choice("data.in_memory", in_memory, (None, True, False))
        if self.root is None:
            raise InputError("data.root is None; it must be the folder that holds train/CLASS/IMAGE")

    def prepare(self) -> None:
        if self.class_names:
            return
        self.class_names = check_folder(self.root)
        if self.classes not in (None, len(self.class_names)):
            raise InputError(
                f"data.classes is {self.classes}, but {self.root} has {len(self.class_names)} classes; "
                "leave data.classes out to take theirs"
            )

    def check_splits(self, splits: Sequence[str]) -> None:
        for split in splits:
            if not (self.root / split).is_dir():
                raise InputError(f"{self.root} has no {split}; this needs {self.root / split}/CLASS/IMAGE")

    def describe(self) -> dict[str, Any]:
        """As ImageData.describe; what is None is read off the images and kept.

        Channels, mean and std come from up to 2,000 evenly spaced images of train/, or test/ where there is no train/.
        """
        self.prepare()
        self.classes = len(self.class_names)
        if None in (self.channels, self.image_size, self.mean, self.std):
            self._read_off()
            self._check_description()
        return super().describe()

    def rehearse(self, splits: Sequence[str]) -> None:
        """Decodes what is kept in memory, so that a damaged image is told before a run directory is made."""
        self.describe()
        for split in splits:
            paths, _ = list_images(self.root / split)
            if self._keeps_in_memory(len(paths)):
                _decoded_ahead[self._key(split)] = decode_all(paths, **self._shape())

    def load(self, split: str) -> TensorImages | LazyImages:
        self.check_splits([split])
        self.describe()
        paths, labels = list_images(self.root / split)
        if not self._keeps_in_memory(len(paths)):
            return LazyImages(paths, torch.tensor(labels), **self._shape())
        images = _decoded_ahead.pop(self._key(split), None)
        return TensorImages(decode_all(paths, **self._shape()) if images is None else images, torch.tensor(labels))

    def _keeps_in_memory(self, images: int) -> bool:
        size_bytes = images * self.channels * self.image_size**2
        return self.in_memory or (self.in_memory is None and size_bytes < MEMORY_LIMIT_BYTES)

    def _shape(self) -> dict[str, int]:
        return {"channels": self.channels, "image_size": self.image_size}

    def _key(self, split: str) -> tuple[str, int, int]:
        return (str((self.root / split).absolute()), self.channels, self.image_size)

    def _read_off(self) -> None:
        paths = [path for split in ("train", "test") for path in self._paths(split)]  # train first, where there is one
        first_split = self._paths("train") or paths
        places = np.linspace(0, len(first_split) - 1, min(len(first_split), SAMPLE)).round().astype(int)
        sample = [first_split[place] for place in places]
        self.channels = self.channels or (1 if all_grey(sample) else 3)
        self.image_size = self.image_size or common_size(paths)
        if self.mean is None or self.std is None:
            mean, std = mean_and_std(sample, channels=self.channels, image_size=self.image_size)
            self.mean, self.std = self.mean or mean, self.std or std

    def _paths(self, split: str) -> list[str]:
        return list_images(self.root / split)[0] if (self.root / split).is_dir() else []
