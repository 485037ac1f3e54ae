"""Tables: as cells, for the screen, Markdown, LaTeX and the page, and as rich prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsr.run.plain_text import lines, printable

if TYPE_CHECKING:
    from rich import table
    from rich.text import Text


@dataclass(frozen=True)
class Table:
    """A table; a number is shown as its text and sorted as the number."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1  # the first columns hold words, the others numbers
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A text, the number that it sorts by, and the column's best or a state ("triggered")."""

    text: str
    value: float | None = None
    best: bool = False
    state: str = ""


def screen_table(
    title: str, headings: Iterable[str], rows: Iterable[Sequence[str | Text]], *, texts: int = 1
) -> table.Table:
    """Return a table for a console without markup, in which no digit is cut off; the first columns hold words."""
    from rich.table import Table

    found = Table(title=title)
    for place, heading in enumerate(headings):
        found.add_column(lines(heading), justify="right" if place >= texts else "left", overflow="fold")
    for row in rows:
        found.add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in row))
    return found
