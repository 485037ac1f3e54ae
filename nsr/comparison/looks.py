"""How methods are drawn: a method keeps its colour and marker in every figure of a comparison.

Both go by objective, filled and with an unbroken line where the stabiliser is set. The colours are Okabe and Ito's,
grey and olive, told apart by all kinds of colour vision; on a dark ground as on white.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas

from nsr.comparison.settings import OBJECTIVES
from nsr.plotting import COLORS

INK = "ink"  # the theme's; of natural training
METHOD_COLORS = (*COLORS, "#8C8C8C", "#999933")
PALETTE = (INK, *METHOD_COLORS)
MARKERS = "osD^vp*<>hdP"


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
