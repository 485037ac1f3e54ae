"""How every figure looks: as wide as a paper's column, on white, so that it can be read on a dark page as well.

The same drawing gives the same files. Colours are Okabe and Ito's (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

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
DOTS = 240  # an inch; a paper takes the PDF


@contextmanager
def styled(theme: Mapping[str, str] = PAPER) -> Iterator[None]:
    """Inside, matplotlib draws in nsr's style; it is loaded here."""
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
        "axes.linewidth": 0.6,
        "grid.color": theme["grid"],
        "grid.linewidth": 0.4,
        "lines.linewidth": 1,
        "lines.markersize": 3.2,
    }
    with matplotlib.rc_context(style):
        yield


def new_figure(*, height: float, width: float = COLUMN) -> Figure:
    """An empty figure, in inches, without a window or a state of pyplot's."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "pdf")) -> list[str]:
    """PATH.png and PATH.pdf; gives their names.

    Args:
        path: without its suffix.
    """
    import matplotlib

    names = [f"{path.name}.{kind}" for kind in kinds]
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # text stays text
        for name, kind in zip(names, kinds, strict=True):
            figure.savefig(path.with_name(name), dpi=DOTS, metadata={"CreationDate": None} if kind == "pdf" else None)
    return names
