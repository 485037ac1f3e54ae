"""Known data sets: scikit-learn's digits (no download), Fashion-MNIST and CIFAR-10 (read by torchvision)."""

from __future__ import annotations

import gzip
import http.client
import io
import logging
import pickle
import socket
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import torch
from torch import Tensor

from nsr.data.batches import stratified_split
from nsr.data.images import TensorImages
from nsr.data.module import ImageData
from nsr.errors import InputError, check_choice, one_line

log = logging.getLogger(__name__)

# errors of torchvision and its libraries on missing or damaged files, and on a download without network
FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, ValueError, AssertionError, LookupError)
FAILURES += (tarfile.TarError, zlib.error, http.client.HTTPException, pickle.UnpicklingError)


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn, (1, 8, 8): 500 for testing, by a fixed stratified split."""

    class_names = tuple("0123456789")

    def prepare(self) -> None:
        try:
            import sklearn.datasets  # noqa: F401
        except ImportError:
            raise InputError("data=digits needs scikit-learn: pip install scikit-learn") from None

    def load(self, split: str) -> TensorImages:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
        labels = torch.from_numpy(digits.target).to(torch.int64)
        train, test = stratified_split(labels, 500, seed=0)
        return TensorImages(images, labels).subset(train if split == "train" else test)


class Downloaded(ImageData):
    """A data set that torchvision reads and, with `download`, fetches where its files are missing.

    Errors:
        InputError: the files are missing, damaged, or cannot be downloaded; it names the files and the folder.
    """

    source: str  # name in torchvision.datasets
    page: str  # web page of the archives
    archives: tuple[str, ...]  # their names, in `folder`
    files: tuple[str, ...]  # their contents, in `folder`
    subfolder = ""  # of root

    def __init__(self, *, download: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.download = check_choice("data.download", download, (True, False))
        if self.root is None:
            raise InputError("data.root is None; it must be the folder for data sets, such as data.root=datasets")
        self.folder = self.root / self.subfolder

    def read(self, split: str, *, download: bool = False) -> tuple[Tensor, Tensor]:
        """Return images (image, channel, height, width) uint8 and labels (image,) int64, read by torchvision."""
        from torchvision import datasets

        found = getattr(datasets, self.source)(self.root, train=split == "train", download=download)
        data = torch.as_tensor(found.data)  # (image, height, width), or with the channel last
        images = data[:, None] if data.ndim == 3 else data.permute(0, 3, 1, 2).contiguous()
        return images, torch.as_tensor(found.targets)

    def prepare(self) -> None:
        reason = "data.download is false"
        for attempt in (self._unpack, self._download) if self.download else (self._unpack,):
            if self._is_there():
                return
            try:
                attempt()
            except FAILURES as error:
                reason = _reason(error)
        if not self._is_there():
            further = "" if self.download else " or ++data.download=true"
            raise InputError(
                f"{self.title} is not in {self.folder} ({reason}): put {', '.join(self.archives)} from "
                f"{self.page} there, or set data.root to where it is{further}"
            )

    def load(self, split: str) -> TensorImages:
        try:
            with _quiet():
                images, labels = self.read(split)
        except FAILURES as error:
            raise InputError(
                f"{self.title} in {self.folder} cannot be read ({_reason(error)}): delete "
                f"{(self.folder / self.files[0]).parent} and run again with ++data.download=true, or set data.root"
            ) from None
        return TensorImages(images, labels)

    def _is_there(self) -> bool:
        return all((self.folder / file).is_file() for file in self.files)

    def _unpack(self) -> None:
        # by hand: torchvision refuses archives packed by others (Debian's Fashion-MNIST) for their checksum
        for path in (self.folder / archive for archive in self.archives if (self.folder / archive).is_file()):
            try:
                if path.name.endswith(".tar.gz"):
                    with tarfile.open(path, "r:gz") as packed:
                        packed.extractall(path.parent, filter="data")
                else:
                    unfinished = path.with_suffix(".part")  # a run that is killed here leaves no incomplete file
                    unfinished.write_bytes(gzip.decompress(path.read_bytes()))
                    unfinished.replace(path.with_suffix(""))
            except FAILURES as error:
                raise RuntimeError(f"{path.name} cannot be unpacked: {_reason(error)}") from error

    def _download(self) -> None:
        log.info("downloading %s to %s", self.title, self.folder)
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            with _quiet():
                self.read("test", download=True)
        finally:
            for folder in new:  # torchvision creates them before it knows whether there is a network
                with suppress(OSError):
                    folder.rmdir()  # only where nothing came


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


class FashionMNIST(Downloaded):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), (1, 28, 28): 60,000 images for training, 10,000 for testing."""

    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    source, page = "FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"
    files = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    archives = tuple(f"{file}.gz" for file in files)
    subfolder = "FashionMNIST/raw"


class CIFAR10(Downloaded):
    """CIFAR-10 (Krizhevsky, 2009), (3, 32, 32): 50,000 images for training, 10,000 for testing."""

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    source, page = "CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar.html"
    archives = ("cifar-10-python.tar.gz",)
    files = tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*map("data_batch_{}".format, range(1, 6)), "test_batch", "batches.meta")
    )
