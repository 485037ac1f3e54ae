"""How methods are drawn: a method keeps its colour and marker in every figure of a comparison.

Both go by objective, filled and with an unbroken line where the stabiliser is set. The colours are Okabe and Ito's,
grey and olive, told apart by all kinds of colour vision; on a dark ground as on white.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas

from nsr.comparison.settings import OBJECTIVES

INK = "ink"  # the theme's; of natural training
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C", "#999933")
PALETTE = (INK, *COLORS)
MARKERS = "osD^vp*<>hdP"
PAPER = {"background": "#FFFFFF", "ink": "#1A1A1A", "grid": "#D9D9D9"}
DARK = {"background": "#14171C", "ink": "#E6E6E6", "grid": "#3A3F47"}


class Look(NamedTuple):
    """How a method is drawn."""

    color: str
    marker: str
    filled: bool

    def points(self, theme: Mapping[str, str], size: float) -> dict[str, Any]:
        """Settings of matplotlib for its points, `size` points wide, and the line through them."""
        color = theme.get(self.color, self.color)
        inside = color if self.filled else theme["background"]
        line = "-" if self.filled else (0, (4, 1.5))
        return {
            "marker": self.marker,
            "markersize": size * (1.6 if self.marker == "*" else 1),  # a star fills little of its width
            "markerfacecolor": inside,
            "markeredgecolor": color,
            "markeredgewidth": 0.8,
            "color": color,
            "linestyle": line,
            "linewidth": 0.8,
        }


def style(theme: Mapping[str, str]) -> dict[str, Any]:
    """matplotlib's settings: sizes for a column of a paper, colours of the theme."""
    return {
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), theme["ink"]
        ),
        **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), theme["background"]),
        **dict.fromkeys(("font.size", "axes.labelsize"), 7),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 6.5),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        "grid.color": theme["grid"],
        "grid.linewidth": 0.4,
        "axes.linewidth": 0.6,
        "pdf.fonttype": 42,
    }


def looks(runs: pandas.DataFrame) -> dict[str, Look]:
    """{method: its look}: colour and marker by objective; further methods of an objective take those that are free."""
    known = list(dict.fromkeys([*OBJECTIVES, *runs["objective"]]))
    present = {known.index(objective) for objective in runs["objective"]}
    free = [place for place in range(max(len(MARKERS), len(known))) if place not in present] or list(
        range(len(MARKERS))
    )
    taken: set[tuple[str, bool]] = set()
    found: dict[str, Look] = {}
    for row in runs.drop_duplicates("method").to_dict("records"):
        kind = row["objective"], bool(row["stabilized"])
        place = free[0] if kind in taken else known.index(row["objective"])
        if kind in taken:
            free = [*free[1:], free[0]]
        taken.add(kind)
        found[str(row["method"])] = Look(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)], kind[1])
    return found
