"""Plots of a comparison for a column of a paper (3.3 inches), and the same on a dark background for a dashboard.

A method keeps its color and marker in every plot. Both follow the objective, filled and with a solid line where a
stabilizer is set. The colors are those of Okabe and Ito, gray and olive, which color-blind readers can distinguish on a
dark background as on white.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsr.comparison.conditions import finished
from nsr.comparison.frames import MEASURES, layers_of
from nsr.comparison.settings import OBJECTIVES
from nsr.comparison.statistics import Comparison, attack_columns
from nsr.comparison.tables import headings
from nsr.plots.style import COLORS, DARK, PAPER, new_figure, save, styled

LINE = 0.125  # height of a legend's line, inches
UNITS = {
    "absolute": "absolute sensitivity\n(activation units)",
    "relative": "relative sensitivity\n(fraction of activation)",
}
INK = "ink"  # the theme's, for natural training
METHOD_COLORS = (*COLORS, "#8C8C8C", "#999933")
PALETTE = (INK, *METHOD_COLORS, *METHOD_COLORS)
MARKERS = "osD^vp*<>hdP"
Theme = Mapping[str, str]


class Style(NamedTuple):
    """The color and marker of a method."""

    color: str
    marker: str
    filled: bool

    def points(self, theme: Theme, size: float) -> dict[str, Any]:
        """Return matplotlib's settings for its points, `size` points wide, and the line through them."""
        color = theme.get(self.color, self.color)
        return {
            "marker": self.marker,
            "markersize": size * (1.6 if self.marker == "*" else 1),  # a star fills little of its width
            "markerfacecolor": color if self.filled else theme["background"],
            "color": color,
            "linestyle": "-" if self.filled else (0, (4, 1.5)),
            **dict.fromkeys(("markeredgewidth", "linewidth"), 0.8),
        }


def method_styles(runs: pandas.DataFrame) -> dict[str, Style]:
    """Return {method: style} by objective; a user's objectives, and further methods of one, take free styles."""
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


def write_plots(comparison: Comparison, folder: Path) -> list[str]:
    """Write each plot as PNG and PDF, and as PNG on a dark background, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, draw in {"accuracy": accuracy, "robustness": robustness, "layers": layers}.items():
        for suffix, theme, kinds in (("", PAPER, ("png", "pdf")), ("_dark", DARK, ("png",))):
            if (figure := drawn(draw, comparison, theme)) is not None:
                names += save(figure, folder / f"{name}{suffix}", kinds)
    return names


def drawn(draw: Callable[..., Figure | None], comparison: Comparison, theme: Theme = PAPER) -> Figure | None:
    """Draw a plot in a theme; None where there is nothing to draw."""
    with styled(theme):
        return draw(comparison, theme)


def accuracy(comparison: Comparison, theme: Theme) -> Figure | None:
    """Plot test accuracy, clean and under each attack: one row per method, one point per seed, a bar at the mean."""
    runs = finished(comparison.runs)
    names = [name for name in attack_columns(runs) if runs[name].notna().any()]
    methods = list(dict.fromkeys(runs["method"]))
    if not names:
        return None
    figure = new_figure(height=0.7 + (0.11 + 0.035 * len(names)) * len(methods) + LINE * -(-len(names) // 3))
    axes = figure.subplots()
    offsets = numpy.linspace(-0.28, 0.28, len(names)) if len(names) > 1 else numpy.zeros(1)
    half = min(0.16, 0.28 / len(names))  # half of a bar's height
    markers, shown = MARKERS.replace("*", ""), headings(comparison)
    for number, name in enumerate(names):
        color, marker = METHOD_COLORS[number % len(METHOD_COLORS)], markers[number % len(markers)]
        for place, method in enumerate(methods):
            values = 100 * runs[runs["method"] == method][name].dropna()
            height = place + offsets[number]
            points: dict[str, Any] = {"marker": marker, "color": color, "markersize": 2.4, "alpha": 0.8}
            points["label"] = None if place else shown[name]
            axes.plot(values, [height] * len(values), linestyle="", **points)
            axes.plot([values.mean()] * 2, [height - half, height + half], color=theme["ink"], linewidth=0.8)
    axes.set_yticks(range(len(methods)), [textwrap.fill(method, 24) for method in methods])
    axes.set(xlim=(-2, 102), ylim=(len(methods) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    figure.supxlabel("accuracy on the test set (%): one point per seed, bars at means", fontsize=7)
    figure.legend(loc="outside upper center", ncols=min(3, len(names)), handletextpad=0.2, columnspacing=1.0)
    return figure


def robustness(comparison: Comparison, theme: Theme) -> Figure | None:
    """Plot accuracy under attack against absolute and relative sensitivity, one point per run."""
    runs = finished(comparison.runs)
    if comparison.accuracy is None or "absolute" not in runs or runs["absolute"].isna().all():
        return None
    styles = method_styles(comparison.runs)
    figure = new_figure(height=2.1 + _legend_height(runs["method"]))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(panels, MEASURES, strict=False):
        for method, group in runs.groupby("method", sort=False):
            points = {**styles[str(method)].points(theme, 3.2), "linestyle": ""}
            axes.plot(group[measure], 100 * group[comparison.accuracy], label=str(method), **points)
        _mark_natural(axes, runs, measure, comparison.accuracy)
        axes.set_xlabel(UNITS[measure])
    panels[0].set_ylabel(f"accuracy under {headings(comparison)[comparison.accuracy]} (%)")
    _legend(figure, panels[0])
    return figure


def layers(comparison: Comparison, theme: Theme) -> Figure | None:
    """Plot the sensitivity of each layer, one line per method: mean and standard deviation over seeds."""
    methods, names = comparison.methods, layers_of(comparison.runs)
    methods = methods[methods["finished"] > 0]
    if not names or methods.empty:
        return None
    styles = method_styles(comparison.runs)
    figure = new_figure(height=3.3 + _legend_height(methods["method"]))
    panels = figure.subplots(2, 1, sharex=True)
    for axes, measure in zip(panels, MEASURES, strict=False):
        for row in methods.to_dict("records"):
            _line(axes, row, measure, names, styles[row["method"]], theme)
        before = [f"{measure}_before/{layer}" for layer in names]
        if set(before) <= set(comparison.runs):
            means = comparison.runs[before].mean().tolist()
            axes.plot(range(len(names)), means, ":", color=theme["ink"], linewidth=1, label="untrained")
        axes.set(ylabel=UNITS[measure], ylim=(0, None))
    panels[1].set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0)
    panels[1].set_xlabel("layer, from the image to the logits")
    _legend(figure, panels[0])
    return figure


def _line(axes: Axes, row: Mapping[str, Any], measure: str, names: Sequence[str], style: Style, theme: Theme) -> None:
    means, deviations = ([row[f"{measure}/{layer}{suffix}"] for layer in names] for suffix in ("", "_std"))
    points = {**style.points(theme, 3.0), "elinewidth": 0.6}
    axes.errorbar(range(len(names)), means, numpy.nan_to_num(deviations), label=row["method"], **points)


def _mark_natural(axes: Axes, runs: pandas.DataFrame, measure: str, accuracy: str) -> None:
    natural = runs[(runs["objective"] == "natural") & ~runs["stabilized"].astype(bool)]
    if len(natural):
        place = natural[measure].mean(), 100 * natural[accuracy].max()
        axes.annotate("natural", place, xytext=(0, 4), textcoords="offset points", ha="center", fontsize=6.5)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    spacing = {"handletextpad": 0.4, "columnspacing": 1.0, "labelspacing": 0.3}
    figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels), **spacing)


def _legend_columns(labels: Sequence[str]) -> int:
    """Return the number of columns that fit side by side."""
    longest = max(map(len, labels), default=0)
    return 3 if longest <= 14 else 2 if longest <= 28 else 1


def _legend_height(methods: pandas.Series) -> float:
    labels = [*dict.fromkeys(methods), "untrained"]
    return LINE * -(-len(labels) // _legend_columns(labels))
