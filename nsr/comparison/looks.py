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
MARKERS = "osD^vp*<>hdP"
PAPER = {"background": "#FFFFFF", "ink": "#1A1A1A", "grid": "#D9D9D9"}
DARK = {"background": "#14171C", "ink": "#E6E6E6", "grid": "#3A3F47"}


class Look(NamedTuple):
    """How a method is drawn."""

    color: str
    marker: str
    filled: bool

    def points(self, theme: Mapping[str, str]) -> dict[str, Any]:
        """Settings of matplotlib for its points and the line through them."""
        color = theme.get(self.color, self.color)
        inside = color if self.filled else theme["background"]
        line = "-" if self.filled else (0, (4, 1.5))
        return {
            "marker": self.marker,
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
    """{method: its look}: colour and marker by objective, a further marker for further methods of the same kind."""
    found: dict[str, Look] = {}
    kinds: dict[tuple[str, bool], int] = {}
    known = list(dict.fromkeys([*OBJECTIVES, *runs["objective"]]))
    palette = (INK, *COLORS)
    methods = runs.drop_duplicates("method")
    for method, objective, stabilized in zip(
        methods["method"], methods["objective"], methods["stabilized"], strict=True
    ):
        place, before = known.index(objective), kinds.get((objective, bool(stabilized)), 0)
        kinds[objective, bool(stabilized)] = before + 1
        marker = MARKERS[(place + 5 * before) % len(MARKERS)]
        found[str(method)] = Look(palette[(place + before) % len(palette)], marker, bool(stabilized))
    return found
