"""The parts of a page: sections with paragraphs, figures and tables, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nsr.run.tables import Table


@dataclass(frozen=True)
class Figure:
    """A picture: the text of an SVG that nsr has drawn, or the bytes of a PNG or of any other SVG."""

    image: str | bytes
    alt: str  # what it shows, for a screen reader
    caption: str  # with population, norm, epsilon and units


@dataclass(frozen=True)
class Section:
    """One section of a page."""

    title: str
    id: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    data: Mapping[str, Any] = field(default_factory=dict)  # every number of the section, for the embedded JSON
    code: Sequence[str] = ()  # commands to paste
    level: int = 2  # of its heading
