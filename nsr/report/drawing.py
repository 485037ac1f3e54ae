"""Figures as SVG text for a page: text stays text, and the colors of paper, ink and grid follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nsr.plotting import PAPER, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THEME = {PAPER["background"]: "var(--page)", PAPER["ink"]: "var(--ink)", PAPER["grid"]: "var(--grid)"}
ROW = 0.155  # inches of a row of a plot with a row for each layer or class
LONGEST_LABEL = 22
CLEAN, ROBUST, OTHER = "#0072B2", "#D55E00", "#009E73"


@contextmanager
def drawn(*, height: float, panels: int = 1) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Yield axes (several where there are several panels) and the function that returns the figure as SVG."""
    with styled():
        figure = new_figure(height=height)
        yield figure.subplots(1, panels, sharey=True), lambda: svg(figure)


def svg(figure: Any) -> str:
    """Return a figure as an <svg> element without metadata; images of heat maps are inside it."""
    import matplotlib

    file = io.BytesIO()
    kept: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nsr", "text.parse_math": False}
    with matplotlib.rc_context(kept):
        figure.savefig(file, format="svg", dpi=150, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, variable in THEME.items():
        text = text.replace(color.lower(), variable)
    used = set(re.findall(r'(?:url\(|xlink:href=")#([\w-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1 {attributes}>", text, count=1)
    return text.replace("\n", " ").strip()


def short(label: str) -> str:
    """Shorten a label to 22 characters. The middle is cut, because names of layers often differ only at the end."""
    half = LONGEST_LABEL // 2
    return label if len(label) <= LONGEST_LABEL else f"{label[: half - 1]}…{label[-half:]}"


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Give each row of a plot its label, the first on top."""
    axes.set_yticks(range(len(labels)), [short(label) for label in labels], fontsize=6.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def legend(axes: Axes, *, columns: int = 2) -> None:
    """Put the legend above the axes."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, handletextpad=0.5)
