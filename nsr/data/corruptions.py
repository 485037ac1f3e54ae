"""Images of common corruptions (Hendrycks and Dietterich 2019) in the files that the authors publish.

CIFAR-10-C and similar: FOLDER/CORRUPTION.npy, (5 * images, height, width, channel) uint8, the test images at severity
1, then at 2, and so on; FOLDER/labels.npy (5 * images,). ImageNet-C: FOLDER/CORRUPTION/SEVERITY/CLASS/IMAGE.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nsr.data.batches import stratified_split
from nsr.data.decoding import Preprocessing, lazy_images
from nsr.data.image_folder import class_names, list_images, some
from nsr.data.images import LazyImages, TensorImages
from nsr.errors import InputError, check_number, did_you_mean, one_line

SEVERITIES = 5
LAYOUT = "it must contain labels.npy and CORRUPTION.npy (CIFAR-10-C), or CORRUPTION/SEVERITY/CLASS/IMAGE (ImageNet-C)"


class Corruptions:
    """The corrupted test images of a data set.

    Args:
        names: of the corruptions; None: all in the folder.
        severities: of 1 to 5.
        classes: the names of the data set's classes; a folder's must be the same, an array's as many.
        channels, image_size: of the data set's images.
        n_examples, subset, split_seed: select test images as in an evaluation, the same at every severity.
    Errors:
        InputError: no such folder or corruption, files of another length, shape or classes.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        names: Sequence[str] | None = None,
        severities: Sequence[int] = (1, 2, 3, 4, 5),
        classes: Sequence[str],
        channels: int,
        image_size: int,
        n_examples: int | None = None,
        subset: str = "balanced",
        split_seed: int = 0,
    ) -> None:
        if not isinstance(severities, (list, tuple)) or not severities or len(set(severities)) < len(severities):
            form = "it must be a list of different numbers from 1 to 5, at least one"
            raise InputError(f"corruptions.severities is {severities!r}; {form}")
        for each in severities:
            check_number("corruptions.severities entry", each, lowest=1, highest=SEVERITIES, whole=True)
        self.root, self.severities, self.classes = Path(root).expanduser(), list(severities), list(classes)
        self.channels, self.image_size = channels, image_size
        self.n_examples, self.subset, self.split_seed = n_examples, subset, split_seed
        if not self.root.is_dir():
            raise InputError(f"corruptions.root is {self.root}, which is not a folder; {LAYOUT}")
        self.is_folder = not (self.root / "labels.npy").is_file()
        if self.is_folder:
            first = str(self.severities[0])
            found = [name for name in class_names(self.root) if (self.root / name / first).is_dir()]
        else:
            found = sorted(path.stem for path in self.root.glob("*.npy") if path.stem != "labels")
        if not found:
            raise InputError(f"corruptions.root is {self.root}, which contains no corruptions; {LAYOUT}")
        for name in names or ():
            if name not in found:
                hint = did_you_mean(name, found)
                raise InputError(f"corruptions.names has {name!r}; {self.root} has {some(found)}{hint}")
        self.names = list(names or found)
        for name in self.names:
            self._check(name)

    def images(self, name: str) -> TensorImages | LazyImages:
        """Return the images of a corruption, severity after severity, as many of each."""
        contents, targets = zip(*(self._part(name, severity) for severity in self.severities), strict=True)
        content, labels = np.concatenate(contents), torch.cat(targets)
        if self.is_folder:
            return lazy_images(content, labels, Preprocessing(self.channels, self.image_size))
        return TensorImages(torch.from_numpy(content.transpose(0, 3, 1, 2).copy()), labels, classes=len(self.classes))

    def _check(self, name: str) -> None:
        """Raise InputError for files of another form, without reading the images."""
        if self.is_folder:
            for severity in self.severities:
                folder = self.root / name / str(severity)
                found = class_names(folder) if folder.is_dir() else []
                if found != self.classes:
                    got = some(found) or "none"
                    raise InputError(f"{folder} has the classes {got}; the data have {some(self.classes)}")
            self._check_counts(name)
            return
        shape, labels = self._array(name).shape, self._array("labels")
        expected = (len(labels), self.image_size, self.image_size, self.channels)
        if (*shape, *[1] * (4 - len(shape))) != expected or len(labels) % SEVERITIES:
            raise InputError(
                f"{self.root / name}.npy has shape {tuple(shape)}; with {len(labels)} labels and these data it must be "
                f"{expected}, the test images at severities 1 to {SEVERITIES}"
            )
        if labels.min() < 0 or labels.max() >= len(self.classes):
            got = f"labels from {labels.min()} to {labels.max()}"
            raise InputError(f"{self.root / 'labels.npy'} has {got}; the data have {len(self.classes)} classes")

    def _check_counts(self, name: str) -> None:
        """Raise InputError where severities of a folder have unequal numbers of images, which are measured together."""
        first, *others = (self.root / name / str(severity) for severity in self.severities)
        expected = len(list_images(first)[0]) if others else 0
        for folder in others:
            if (count := len(list_images(folder)[0])) != expected:
                raise InputError(
                    f"{folder} has {count} images, {first} has {expected}; every severity must have the same images: "
                    "complete the folder, or leave its severity out of corruptions.severities"
                )

    def _array(self, name: str) -> np.ndarray:
        try:
            array = np.load(self.root / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.root / name}.npy cannot be read ({one_line(error)})") from None
        return array[..., None] if name != "labels" and array.ndim == 3 else array

    def _part(self, name: str, severity: int) -> tuple[np.ndarray, Tensor]:
        """Return the images, or their paths, and the labels of one severity."""
        if self.is_folder:
            paths, classes = list_images(self.root / name / str(severity))
            content, labels = np.asarray(paths), torch.tensor(classes)
        else:
            every = self._array("labels")
            here = slice((severity - 1) * len(every) // SEVERITIES, severity * len(every) // SEVERITIES)
            content, labels = self._array(name)[here], torch.from_numpy(every[here].astype(np.int64))
        if self.n_examples is None or self.n_examples >= len(labels):
            return content, labels
        if self.subset == "first":
            return content[: self.n_examples], labels[: self.n_examples]
        setting = "evaluation.n_examples"
        _, chosen = stratified_split(labels, self.n_examples, seed=self.split_seed, asked_by=setting)
        return content[chosen.numpy()], labels[chosen]
