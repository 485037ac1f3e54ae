"""Your own images: a folder of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nsr.data.decoding import LazyImages, all_gray, common_size, decode_all, decoded
from nsr.data.description import DataDescription, mean_and_std, sample_indices
from nsr.data.images import MEMORY_LIMIT_BYTES, TensorImages
from nsr.data.listing import FOLDERS, check_folder, list_images
from nsr.data.module import ImageData
from nsr.errors import InputError, check_choice


class ImageFolder(ImageData):
    """ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE, where the names of the class folders are the classes.

    Images in ROOT/val/CLASS/IMAGE, where it exists, replace those held out of train/. channels, image_size, classes,
    mean and std that are None are inferred by `describe`. Images of another size than image_size are resized (shorter
    side, antialiased) and cropped at the center. Without train/ a model can still be evaluated, without test/ one can
    be trained.

    Args:
        in_memory: decode all images once and keep them as uint8; None: where they take less than 2 GiB.
        settings: see ImageData.
    Errors:
        InputError: a fault of the folder, or an image that cannot be read.
    """

    infers_description = True

    # ImageData's settings are not listed again: it names and checks them
    def __init__(self, *, in_memory: bool | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        check_choice("data.channels", self.channels, (None, 1, 3))
        self.in_memory = check_choice("data.in_memory", in_memory, (None, True, False))
        if self.root is None:
            raise InputError("data.root is None; it must be the folder that contains train/CLASS/IMAGE")
        self.decoded: dict[str, torch.Tensor] = {}  # by the preflight, {split: images}

    @property
    def has_validation(self) -> bool:  # type: ignore[override]
        return (self.root / FOLDERS["validation"]).is_dir()

    def prepare(self) -> None:
        if self.class_names:
            return
        self.class_names = check_folder(self.root)
        if self.classes not in (None, len(self.class_names)):
            raise InputError(
                f"data.classes is {self.classes}, but {self.root} has {len(self.class_names)} classes; "
                "leave data.classes out to use them"
            )

    def check_splits(self, splits: Sequence[str]) -> None:
        for split in splits:
            folder = self.root / FOLDERS[split]
            if not folder.is_dir():
                raise InputError(f"{self.root} has no {folder.name}; this needs {folder}/CLASS/IMAGE")

    def describe(self) -> DataDescription:
        """Return the description; what is None is inferred from the images.

        Channels, mean and std come from up to 2,000 evenly spaced images of train/, or test/ where there is no train/.
        """
        self.prepare()
        self.classes = len(self.class_names)
        if None in (self.channels, self.image_size, self.mean, self.std):
            self._infer()
            self._check_description()
        return super().describe()

    def preflight(self, splits: Sequence[str]) -> None:
        """Decode the images that are kept in memory, so that a damaged one is reported before a run begins."""
        self.describe()
        for split in (*splits, *(["validation"] if self.has_validation and "train" in splits else [])):
            paths, _ = list_images(self.root / FOLDERS[split])
            if self._keeps_in_memory(len(paths)):
                self.decoded[split] = decode_all(paths, **self._shape())
        super().preflight(splits)

    def load(self, split: str) -> TensorImages | LazyImages:
        self.check_splits([split])
        self.describe()
        paths, labels = list_images(self.root / FOLDERS[split])
        if not self._keeps_in_memory(len(paths)):
            return LazyImages(paths, torch.tensor(labels), **self._shape())
        images = self.decoded.pop(split, None)
        return TensorImages(decode_all(paths, **self._shape()) if images is None else images, torch.tensor(labels))

    def _keeps_in_memory(self, images: int) -> bool:
        size_bytes = images * self.channels * self.image_size**2
        return self.in_memory or (self.in_memory is None and size_bytes < MEMORY_LIMIT_BYTES)

    def _shape(self) -> dict[str, int]:
        return {"channels": self.channels, "image_size": self.image_size}

    def _infer(self) -> None:
        paths = [path for split in FOLDERS for path in self._paths(split)]  # train first, where there is one
        first_split = self._paths("train") or paths
        sample = [first_split[index] for index in sample_indices(len(first_split))]
        self.channels = self.channels or (1 if all_gray(sample) else 3)
        self.image_size = self.image_size or common_size(paths)
        self._check_description()
        if self.mean is None or self.std is None:
            mean, std = mean_and_std(decoded(sample, **self._shape()))
            self.mean, self.std = self.mean or mean, self.std or std

    def _paths(self, split: str) -> list[str]:
        folder = self.root / FOLDERS[split]
        return list_images(folder)[0] if folder.is_dir() else []
