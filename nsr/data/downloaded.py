"""Data sets that torchvision reads: find, unpack or download their files, and report in one line what is missing."""

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
from nsr.errors import InputError, check_choice, one_line

log = logging.getLogger(__name__)

# errors of torchvision and its libraries on missing or damaged files, and on a download without network
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
        InputError: the files are missing, damaged, or cannot be downloaded; it names the files and the folder.
    """

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
        raise NotImplementedError

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
                f"{type(self).__name__} in {self.folder} cannot be read ({_reason(error)}): delete "
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
                    raise RuntimeError(f"{path.name} cannot be unpacked: {_reason(error)}") from error

    def _download(self) -> None:
        log.info("downloading %s to %s", type(self).__name__, self.folder)
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            with quiet():
                self.read("test", download=True)
        finally:
            for folder in new:  # torchvision creates them before it knows whether there is a network
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where nothing came


def unpack(archive: Path) -> None:
    """Unpack a .tar.gz or .gz file beside it."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive, "r:gz") as packed:
            packed.extractall(archive.parent, filter="data")
    else:
        unfinished = archive.with_suffix(".part")  # a run that is killed here leaves no incomplete file
        unfinished.write_bytes(gzip.decompress(archive.read_bytes()))
        unfinished.replace(archive.with_suffix(""))


@contextlib.contextmanager
def quiet(timeout_s: float = 30) -> Iterator[None]:
    """Hide torchvision's progress bars and numpy's warnings on old pickles, and set a timeout for the network."""
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


def _reason(error: BaseException) -> str:
    return one_line(error).removesuffix(" You can use download=True to download it")
