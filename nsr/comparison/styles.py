"""The style of a method: it keeps its color and marker in every plot of a comparison.

Both follow the objective, filled and with a solid line where a stabilizer is set. The colors are those of Okabe and
Ito, gray and olive, which color-blind readers can distinguish on a dark background as on white.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any, NamedTuple

import pandas

from nsr.comparison.settings import OBJECTIVES
from nsr.plotting import COLORS

INK = "ink"  # the theme's, for natural training
METHOD_COLORS = (*COLORS, "#8C8C8C", "#999933")
PALETTE = (INK, *METHOD_COLORS, *METHOD_COLORS)
MARKERS = "osD^vp*<>hdP"


class Style(NamedTuple):
    """The color and marker of a method."""

    color: str
    marker: str
    filled: bool

    def points(self, theme: Mapping[str, str], size: float) -> dict[str, Any]:
        """Return matplotlib's settings for its points, `size` points wide, and the line through them."""
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


def method_styles(runs: pandas.DataFrame) -> dict[str, Style]:
    """Return {method: style}: by objective; a user's objectives, and further methods of one, take what is free."""
    objectives = list(dict.fromkeys(runs["objective"]))
    places = {objective: OBJECTIVES.index(objective) for objective in objectives if objective in OBJECTIVES}
    free = cycle([place for place in range(len(MARKERS)) if place not in places.values()])
    places |= {objective: next(free) for objective in objectives if objective not in places}
    taken: set[tuple[str, bool]] = set()
    found: dict[str, Style] = {}
    for row in runs.drop_duplicates("method").to_dict("records"):
        kind = row["objective"], bool(row["stabilized"])
        place = next(free) if kind in taken else places[row["objective"]]
        taken.add(kind)
        found[str(row["method"])] = Style(PALETTE[place], MARKERS[place], kind[1])
    return found
