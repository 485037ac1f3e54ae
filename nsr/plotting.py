"""The style of every plot: as wide as a column of a paper, on white, so that dark pages can show it as well.

The same drawing gives the same files. The colors are those of Okabe and Ito (2008), which color-blind readers can
distinguish.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.3  # inches
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PAPER = {"background": "#FFFFFF", "ink": "#1A1A1A", "grid": "#D9D9D9"}
DARK = {"background": "#14171C", "ink": "#E6E6E6", "grid": "#3A3F47"}
DOTS = 240  # per inch; a paper takes the PDF
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


def new_figure(*, height: float, width: float = COLUMN) -> Figure:
    """Create an empty figure, sizes in inches, without a window or pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


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
