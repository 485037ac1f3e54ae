"""Where the data of a run are: relative paths in its settings, found again from another working directory."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsr.data.description import sample_indices
from nsr.data.image_folder import FOLDERS, images_in
from nsr.errors import InputError

log = logging.getLogger(__name__)
READ = 200  # images of a folder whose bytes are compared
WHOLE = 2**26  # bytes of a file up to which all are compared
BLOCK, BLOCKS = 2**20, 32  # of a larger file, evenly spaced, the first and the last among them


def data_origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return {setting: {"path": absolute path, "content": checksums}} of the relative paths in the data's settings."""
    found = {name: Path(value) for name, value in settings.items() if _is_relative(value) and name != "_target_"}
    return {
        name: {"path": str(path.absolute()), "content": content(path)}
        for name, path in found.items()
        if os.path.exists(path)
    }


def found_again(name: str, typed: str, origin: Any) -> str:
    """Return the path of a relative setting `name` of a checkpoint's data: as typed, else where the run had it.

    Args:
        origin: the entry of `data_origin` that the checkpoint stores.
    Errors:
        InputError: a path that is there holds other content than the run's.
    """
    absolute = origin.get("path") if isinstance(origin, Mapping) else None
    if not _is_relative(typed) or not isinstance(absolute, str) or str(Path(typed).absolute()) == absolute:
        return typed
    if os.path.exists(typed):
        now, before = content(Path(typed)), origin.get("content")
        before = before if isinstance(before, Mapping) else {}
        different = [part for part in now if part in before and now[part] != before[part]]
        if different or (before and not now.keys() & before.keys()):
            where = ", ".join(str(Path(typed).absolute() / part) for part in different) or str(Path(typed).absolute())
            raise InputError(
                f"the checkpoint's data.{name} is {typed!r}, and {where} holds other content than the run's in "
                f"{absolute}; give data.{name}={absolute}, or the path of the data to evaluate"
            )
        return typed
    if os.path.exists(absolute):
        log.info("the checkpoint's data.%s, %r, is not in %s: %s is read", name, typed, Path.cwd(), absolute)
        return absolute
    return typed


def content(path: Path) -> dict[str, str]:
    """Return {part: checksum} of a file, or of train, val, valid and test of a folder of images.

    A folder's checksum is of the names of all images and of the bytes of up to 200 of them, evenly spaced; that of a
    file of more than 64 MiB is of its size and of 32 blocks of 1 MiB, so that it takes a bounded time.
    """
    if path.is_file():
        return {"": _digest(path)}
    return {name: _folder(path / name) for name in sorted(FOLDERS) if (path / name).is_dir()}


def _folder(folder: Path) -> str:
    paths = sorted(images_in(folder))
    names = [Path(path).relative_to(folder).as_posix() for path in paths]
    some = [_digest(Path(paths[index])) for index in sample_indices(len(paths), READ)] if paths else []
    return hashlib.sha256("\n".join([*names, *some]).encode(errors="surrogateescape")).hexdigest()[:16]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > WHOLE:
                digest.update(str(size).encode())
                for index in sample_indices(size - BLOCK + 1, BLOCKS):
                    file.seek(index)
                    digest.update(file.read(BLOCK))
            else:
                for block in iter(lambda: file.read(BLOCK), b""):
                    digest.update(block)
    except OSError:  # reported where the image is decoded
        return ""
    return digest.hexdigest()[:16]


def _is_relative(value: Any) -> bool:
    return (
        isinstance(value, str) and bool(value.strip()) and not value.startswith("~") and not Path(value).is_absolute()
    )
