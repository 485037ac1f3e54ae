"""Data sets that torchvision fetches: their files on this machine, unpacked or downloaded where they are missing."""

from __future__ import annotations

import gzip
import http.client
import inspect
import io
import logging
import pickle
import socket
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsr.data.images import TensorImages
from nsr.data.module import ImageData
from nsr.errors import InputError, check_choice, one_line

# first labels of each test set: they distinguish data sets whose files have the same names
FIRST_LABELS = {
    "MNIST": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6),
    "FashionMNIST": (9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5),
}
log = logging.getLogger(__name__)

# errors of torchvision and its libraries on missing or damaged files, and on a download without network
FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, ValueError, AssertionError, LookupError)
FAILURES += (tarfile.TarError, zlib.error, http.client.HTTPException, pickle.UnpicklingError)


class TorchvisionData(ImageData):
    """A data set that torchvision reads and, with `download`, fetches where its files are missing.

    Errors:
        InputError: the files are missing, damaged, or cannot be downloaded; it names the files and the folder.
    """

    source: str  # name in torchvision.datasets
    page: str  # web page of the archives
    archives: tuple[str, ...]  # their names, in `folder`
    files: tuple[str, ...]  # their contents, in `folder`
    subfolder = ""  # of root
    without_network = "data=mnist_5k and data=digits need no network"

    def __init__(self, *, download: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.download = check_choice("data.download", download, (True, False))
        if self.root is None:
            raise InputError("data.root is None; it must be the folder for data sets, such as data.root=datasets")
        self.folder = self.root / self.subfolder

    def place(self) -> Path | None:
        """Return the folder that contains all files, None where there is none."""
        return self.folder if all((self.folder / file).is_file() for file in self.files) else None

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        """Return images (image, channel, height, width) uint8 and labels (image,) int64."""
        found = self._torchvision(split)
        images = torch.as_tensor(found.data)  # with the channel first or last
        images = images if images.shape[1] == self.channels else images.permute(0, 3, 1, 2)
        return images.contiguous(), torch.as_tensor(found.targets if hasattr(found, "targets") else found.labels)

    def prepare(self) -> None:
        reason = "data.download is false"
        for attempt in (self._unpack, self._download) if self.download else (self._unpack,):
            if self.place() is not None:
                break
            try:
                attempt()
            except FAILURES as error:
                reason = _reason(error)
        place = self.place()
        if place is None:
            raise InputError(
                f"{self.title} is not in {self.folder} ({reason}): put {', '.join(self.archives)} from "
                f"{self.page} there, or set data.root to where it is{'' if self.download else ' or data.download=true'}"
                f"; {self.without_network}"
            )
        self.origin = str(place)

    def load(self, split: str) -> TensorImages:
        try:
            with _quiet():
                images, labels = self.read(split)
        except FAILURES as error:
            place = self.place() or self.folder
            damaged = sorted({str(place / file.partition("/")[0]) for file in self.files})
            raise InputError(
                f"{self.title} in {place} cannot be read ({_reason(error)}): delete {', '.join(damaged)} "
                "and run again with data.download=true, or set data.root"
            ) from None
        return TensorImages(images, labels.to(torch.int64))

    def _torchvision(self, split: str, *, download: bool = False) -> Any:
        from torchvision import datasets

        kind = getattr(datasets, self.source)
        has_train = "train" in inspect.signature(kind).parameters
        return kind(self.root, **({"train": split == "train"} if has_train else {"split": split}), download=download)

    def _unpack(self) -> None:
        # by hand: torchvision refuses archives packed by others for their checksum
        for path in (self.folder / archive for archive in self.archives if archive.endswith(".tar.gz")):
            try:
                if path.is_file():
                    with tarfile.open(path, "r:gz") as packed:
                        packed.extractall(path.parent, filter="data")
            except FAILURES as error:
                raise RuntimeError(f"{path.name} cannot be unpacked: {_reason(error)}") from error

    def _download(self) -> None:
        log.info("downloading %s to %s", self.title, self.folder)
        folders = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        archives = [path for path in map(self.folder.joinpath, self.archives) if not path.exists()]
        try:
            with _quiet():
                for split in ("test", "train"):
                    self._torchvision(split, download=True)
        except BaseException:
            for path in archives:  # perhaps incomplete
                path.unlink(missing_ok=True)
            raise
        finally:
            for folder in folders:  # torchvision creates them before it knows whether there is a network
                with suppress(OSError):
                    folder.rmdir()  # only where nothing came


class IdxData(TorchvisionData):
    """A data set in MNIST's files, packed or not: in `folder`, in root itself, or in a folder of a system package.

    Nothing is written where the files are found.
    """

    files = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    archives = tuple(f"{file}.gz" for file in files)
    packaged: tuple[str, ...] = ()  # folders where a system package puts the files

    def prepare(self) -> None:
        super().prepare()
        if (place := self.place()) is None:
            return
        try:
            first = tuple(self.read("test")[1][: len(FIRST_LABELS[self.source])].tolist())
        except FAILURES:  # reported where the images are read
            return
        other = next((name for name, labels in FIRST_LABELS.items() if labels == first), None)
        if other not in (None, self.source):
            choice = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}[other]
            raise InputError(
                f"data is {self.source}, but the files in {place} are those of {other}, which have the same names; "
                f"give data={choice}, or the folder of {self.source} as data.root"
            )
        if other is None:
            log.warning(
                "the test labels in %s are not those of %s: it is another data set in its files", place, self.source
            )

    def place(self) -> Path | None:
        for folder in (self.folder, self.root, *map(Path, self.packaged)):
            if all(any(path.is_file() for path in _packed_or_not(folder / file)) for file in self.files):
                return folder
        return None

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        place, part = self.place() or self.folder, self.files[:2] if split == "train" else self.files[2:]
        images, labels = (read_idx(next(filter(Path.is_file, _packed_or_not(place / file)))) for file in part)
        return images[:, None], labels


def read_idx(path: Path) -> Tensor:
    """Return the array of bytes of an idx file of MNIST's, uint8; packed by gzip where its name ends in .gz.

    Errors:
        ValueError, OSError, RuntimeError, EOFError, LookupError: it is damaged.
    """
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an idx file of bytes")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * len(sizes))
    return pixels.reshape(sizes.tolist())


def _packed_or_not(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}.gz")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torchvision's progress bars and numpy's warnings on old pickles, and set a timeout for the network."""
    before, hidden = socket.getdefaulttimeout(), io.StringIO()
    socket.setdefaulttimeout(30)  # seconds
    try:
        with redirect_stdout(hidden), redirect_stderr(hidden), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    return one_line(error).removesuffix(" You can use download=True to download it")
