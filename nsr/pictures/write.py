"""The folder of pictures: PNG files and index.json, complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nsr.pictures.subject import Picture
from nsr.plots.style import png
from nsr.report.numbers import plain
from nsr.run.files import write_json
from nsr.run.plain_text import printable

DOTS = (200, 160, 130, 100, 75)  # per inch, the first with which a file is small enough
MOST_BYTES = 350_000


def write_pictures(directory: Path, pictures: Iterable[Picture], *, folder: str = "pictures") -> dict[str, Path]:
    """Write DIRECTORY/FOLDER in place of an earlier one; return {SECTION/ID: path}, empty for none."""
    place, made = directory / folder, list(pictures)
    if not made:
        return {}
    partial = directory / f"{folder}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        entries = []
        for picture in made:
            name = f"{picture.id}.png"
            (partial / name).write_bytes(small(picture))
            entries.append(
                {"id": picture.id, "section": picture.section, "file": name, "data": picture.data}
                | {"alt": printable(picture.alt), "caption": printable(picture.caption)}
            )
        write_json(partial / "index.json", plain(entries))
        if place.exists():
            shutil.rmtree(place)
        partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {f"{picture.section}/{picture.id}": place / f"{picture.id}.png" for picture in made}


def small(picture: Picture) -> bytes:
    """Return the PNG with the most dots per inch that is below 350 kB, else the one with the fewest."""
    found = b""
    for dots in DOTS:
        found = png(picture.figure, dots)
        if len(found) <= MOST_BYTES:
            break
    return found
