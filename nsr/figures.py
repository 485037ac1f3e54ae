"""How every figure looks: as wide as a paper's column, on white, so that it can be read on a dark page as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLUMN_INCHES = 3.3
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text
    # Okabe and Ito's colours, which colour-blind readers can tell apart
    "axes.prop_cycle": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
}


@contextmanager
def figure_file(
    path: Path, *, height: float = 2.3, width: float = COLUMN_INCHES, **settings: Any
) -> Iterator[tuple[Any, Any]]:
    """Inside, a matplotlib figure and its axes in nsr's style; then PATH.png, 200 dots an inch, and PATH.pdf.

    No window, no state of pyplot's. The same drawing gives the same files.

    Args:
        path: without its suffix.
        height, width: in inches.
        settings: of `Figure.subplots`.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    style = {**STYLE, "axes.prop_cycle": cycler(color=STYLE["axes.prop_cycle"])}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**settings)
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=200)
        figure.savefig(path.with_name(f"{path.name}.pdf"), metadata={"CreationDate": None})
