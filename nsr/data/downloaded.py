"""Data sets that torchvision reads: find, unpack or download their files, and say in one line what is missing."""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from typing import Any

from torch import Tensor

from nsr.data.images import TensorImages
from nsr.data.module import ImageData
from nsr.errors import InputError, check_choice

log = logging.getLogger(__name__)

# what missing or damaged files and a download without network raise in torchvision and below it
FAILURES = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    AssertionError,
    LookupError,
    tarfile.TarError,
    zlib.error,
    http.client.HTTPException,
    pickle.UnpicklingError,
)


class Downloaded(ImageData):
    """A data set that torchvision reads and downloads.

    Args:
        download: fetch the files where they are missing.
        settings: see ImageData.
    Errors:
        InputError: the files are missing, damaged, or cannot be downloaded; it tells what to put where.
    """

    page: str  # where a person finds the archives
    archives: tuple[str, ...]  # their names, in `folder`
    files: tuple[str, ...]  # what they hold, in `folder`
    subfolder = ""  # of root

    # ImageData's settings are not listed again: it names and checks them
    def __init__(self, *, download: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.download = check_choice("data.download", download, (True, False))
        if self.root is None:
            raise InputError("data.root is None; it must be the folder for data sets, such as data.root=datasets")
        self.folder = self.root / self.subfolder

    def read(self, split: str, *, download: bool = False) -> tuple[Tensor, Tensor]:
        """Images (image, channel, height, width) uint8 and labels (image,) int64, by torchvision."""
        raise NotImplementedError

    def prepare(self) -> None:
        reason = "data.download is false"
        for attempt in (self._unpack, self._download) if self.download else (self._unpack,):
            if self._is_there():
                return
            try:
                attempt()
            except FAILURES as error:
                reason = one_line(error)
        if not self._is_there():
            raise InputError(
                f"{type(self).__name__} is not in {self.folder} ({reason}): put {', '.join(self.archives)} from "
                f"{self.page} there, or set data.root to where it is{'' if self.download else ' or data.download=true'}"
            )

    def load(self, split: str) -> TensorImages:
        try:
            with quiet():
                images, labels = self.read(split)
        except FAILURES as error:
            raise InputError(
                f"{type(self).__name__} in {self.folder} cannot be read ({one_line(error)}): delete "
                f"{(self.folder / self.files[0]).parent} and run again with data.download=true, or set data.root"
            ) from None
        return TensorImages(images, labels)

    def _is_there(self) -> bool:
        return all((self.folder / file).is_file() for file in self.files)

    def _unpack(self) -> None:
        # by hand: torchvision refuses archives packed by others (Debian's Fashion-MNIST) for their checksum
        for path in (self.folder / archive for archive in self.archives):
            if path.is_file():
                try:
                    unpack(path)
                except FAILURES as error:
                    raise RuntimeError(f"{path.name} cannot be unpacked: {one_line(error)}") from error

    def _download(self) -> None:
        log.info("downloading %s to %s", type(self).__name__, self.folder)
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            with quiet():
                self.read("test", download=True)
        finally:
            for folder in new:  # torchvision makes them before it knows whether there is a network
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where nothing came


def unpack(archive: Path) -> None:
    """What a .tar.gz or .gz holds, beside it."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive, "r:gz") as packed:
            packed.extractall(archive.parent, filter="data")
    else:
        unfinished = archive.with_suffix(".part")  # a run that is killed here leaves no half file behind
        unfinished.write_bytes(gzip.decompress(archive.read_bytes()))
        unfinished.replace(archive.with_suffix(""))


@contextlib.contextmanager
def quiet(timeout_s: float = 30) -> Iterator[None]:
    """Keep torchvision's progress bars and numpy's warnings on old pickles off the screen, and a dead network short."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)


def one_line(error: BaseException) -> str:
    """The text of an error without its line breaks and torchvision's own advice, or its kind where it has no text."""
    return (
        " ".join(str(error).split()).removesuffix(" You can use download=True to download it") or type(error).__name__
    )
