"""The style of every plot: as wide as a column of a paper, on white, so that dark pages can show it as well.

The same drawing gives the same files. The colors are those of Okabe and Ito (2008), which color-blind readers can
distinguish.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    P = ParamSpec("P")

COLUMN = 3.3  # inches
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PAPER = {"background": "#FFFFFF", "ink": "#1A1A1A", "grid": "#D9D9D9"}
DARK = {"background": "#14171C", "ink": "#E6E6E6", "grid": "#3A3F47"}
DOTS = 240  # per inch; a paper takes the PDF
ROW = 0.155  # inches of a row of a plot with a row for each layer or class
LONGEST_LABEL = 22
CLEAN, ROBUST, OTHER = COLORS[:3]
NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}
NOISY = ("fontTools", "matplotlib")  # log each table of an embedded font at INFO


@contextmanager
def styled(theme: Mapping[str, str] = PAPER) -> Iterator[None]:
    """Apply nsr's style inside the block; matplotlib is loaded here."""
    import matplotlib
    from cycler import cycler

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    sizes = (
        *("font.size", "axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize"),
        *("legend.fontsize", "legend.title_fontsize"),
    )
    style: dict[Any, Any] = {
        **dict.fromkeys(ink, theme["ink"]),
        **dict.fromkeys(("axes.facecolor", "figure.facecolor"), theme["background"]),
        **dict.fromkeys(sizes, 7),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        "axes.prop_cycle": cycler(color=COLORS),
        "text.parse_math": False,  # names may hold $
        "axes.linewidth": 0.6,
        "grid.color": theme["grid"],
        "grid.linewidth": 0.4,
        "lines.linewidth": 1,
        "lines.markersize": 3.2,
    }
    with matplotlib.rc_context(style), _warnings_only():
        yield


def plot(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in nsr's style, ticks included, which matplotlib would make when it renders, outside of the style."""

    @functools.wraps(draw)
    def in_style(*arguments: P.args, **settings: P.kwargs) -> Figure:
        with styled():
            figure = draw(*arguments, **settings)
            for axes in figure.axes:
                axes.get_xticklabels(), axes.get_yticklabels()
        return figure

    return in_style


def new_figure(*, height: float, width: float = COLUMN, title: str = "", layout: str = "constrained") -> Figure:
    """Create an empty figure, sizes in inches, without a window or pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    if title:
        figure.suptitle(title, fontsize=7)
    return figure


def array(values: Any) -> numpy.ndarray:
    """Return numbers as an array; a tensor may be on any device and have a graph."""
    return numpy.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def short(label: object) -> str:
    """Shorten a label to 22 characters. The middle is cut, because names of layers often differ only at the end."""
    text, half = str(label), LONGEST_LABEL // 2
    return text if len(text) <= LONGEST_LABEL else f"{text[: half - 1]}…{text[-half:]}"


def rounded(value: float, digits: int = 4) -> str:
    """Return a number with up to so many significant digits; 11030 stays 11,030, which is shorter than 1.103e+04."""
    found = float(f"{value:.{digits}g}")
    return f"{found:,.0f}" if 10**digits <= abs(found) < 1e7 else f"{found:.{digits}g}"


def name_rows(axes: Axes, labels: Sequence[object]) -> None:
    """Give each row of a plot its label, the first on top."""
    axes.set_yticks(range(len(labels)), [short(label) for label in labels], fontsize=6.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def whole_ticks(axes: Axes) -> None:
    """Put the ticks of the horizontal axis at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def legend(axes: Axes, *, columns: int = 2, title: str | None = None) -> None:
    """Put the legend above the axes, below the figure's title, over which matplotlib would write it."""
    figure: Any = axes.figure
    lines = [text for text in (figure.get_suptitle(), title) if text]
    if figure.get_suptitle():
        figure.suptitle("")
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "handletextpad": 0.5}
    figure.legend(*axes.get_legend_handles_labels(), title="\n".join(lines) or None, **place)


def save(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "pdf")) -> list[str]:
    """Write PATH.png and PATH.pdf and return their names.

    Args:
        path: without its suffix.
    """
    import matplotlib

    names = [f"{path.name}.{kind}" for kind in kinds]
    kept: dict[Any, Any] = {
        "pdf.fonttype": 42,
        "text.parse_math": False,
    }  # text stays text; ticks are made late
    with matplotlib.rc_context(kept), _warnings_only():
        for name, kind in zip(names, kinds, strict=True):
            partial, metadata = path.with_name(f"{name}.partial"), {"CreationDate": None} if kind == "pdf" else None
            figure.savefig(partial, format=kind, dpi=DOTS, metadata=metadata)
            partial.replace(path.with_name(name))
    return names


def png(figure: Figure, dots: int = DOTS) -> bytes:
    """Return the PNG of a figure with so many dots per inch and a small margin, for dark pages."""
    file = io.BytesIO()
    with styled():
        figure.savefig(file, format="png", dpi=dots, bbox_inches="tight", pad_inches=0.06)
    return file.getvalue()


@contextmanager
def _warnings_only() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
