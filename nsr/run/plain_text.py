"""Names that others chose (classes, layers, files, runs) as plain text: on a terminal, in CSV files and in Markdown."""

from __future__ import annotations

import html
from typing import Any

FORMULA = tuple("=+-@")  # a spreadsheet evaluates a cell that begins with one


def printable(text: object) -> str:
    """Return the text in one line, with escapes for line breaks and control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def lines(text: object) -> str:
    """Return the text with its line breaks and tabs and with escapes for other control characters."""
    return "".join(c if c in "\n\t" else printable(c) for c in str(text))


def csv_cell(value: Any) -> Any:
    """Return a text as one that no spreadsheet evaluates, in one line; other values as they are."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)


def markdown_cell(text: object) -> str:
    """Return a text for a cell of a Markdown table, without HTML."""
    return html.escape(printable(text), quote=False).replace("|", r"\|")
