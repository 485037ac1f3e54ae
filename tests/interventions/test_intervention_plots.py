"""Plots show what the rows say, with axes, units and readable text."""

from __future__ import annotations

from itertools import pairwise

import pandas
import pytest

from nsr.interventions.controls import RANDOM
from nsr.interventions.effects import Row
from nsr.plots import intervention_effects, interventions
from nsr.plots.contrasts import CONTROLS
from nsr.plots.style import COLUMN

FRACTIONS = (0.1, 0.25, 0.5, 0.75)
LAYERS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
KINDS = ("patch_clean", "patch_adversarial")


def a_row(layer: str, kind: str, fraction: float, control: str, effect: float) -> Row:
    interval = (effect, effect - 0.05, effect + 0.05)
    contrast = (0.3 - effect, 0.2 - effect, 0.35 - effect)
    if control in ("most_sensitive", "whole_layer"):
        contrast = (None, None, None)
    return Row(layer, kind, fraction, control, 20, 8.0, 16, 0.7, 0.8, 0.5, 203, *(2 * (*interval, *contrast)))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        *(
            a_row(layer, kind, fraction, control, 0.1 + fraction / 2 - place / 50)
            for layer in LAYERS
            for kind in KINDS
            for fraction in FRACTIONS
            for place, control in enumerate(CONTROLS)
        ),
        *(a_row(layer, kind, 1.0, "whole_layer", 0.9) for layer in LAYERS for kind in KINDS),
    ]


def in_view(tick) -> bool:
    low, high = sorted(tick.get_view_interval())
    return low <= tick.get_loc() <= high


def check_looks(figure) -> None:
    from matplotlib.text import Text

    assert figure.get_size_inches()[0] == pytest.approx(COLUMN)
    assert figure.get_facecolor() == (1, 1, 1, 1)  # readable on a dark page
    figure.draw_without_rendering()
    page = figure.bbox
    ticks = {tick for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()}
    beyond = {tick.label1 for tick in ticks if not in_view(tick)}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text not in beyond:
            assert text.get_fontsize() >= 6.5
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= page.x1 + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= page.y1 + 1, text.get_text()
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text() and label.get_rotation() == 0]
        boxes = [label.get_window_extent() for label in labels] if axes.xaxis.get_tick_params()["labelbottom"] else []
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_the_plot_of_a_layer_shows_its_rows(rows):
    of_layer = [row for row in rows if row.layer == "layer1.0"]
    figure = intervention_effects(pandas.DataFrame(of_layer))
    assert figure.axes[-1].get_xlabel() == "fraction of the 16 neurons of layer1.0 (%)"
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "203 images, 95 % intervals"
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["whole layer", *(label for label, _, _ in CONTROLS.values())]
    for axes, kind in zip(figure.axes, KINDS, strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for control, (label, _, _) in CONTROLS.items():
            shown = [row for row in of_layer if row.kind == kind and row.control == control]
            assert list(lines[label].get_ydata()) == pytest.approx([100 * row.effect for row in shown])
            beside = [abs(x - 100 * row.fraction) for x, row in zip(lines[label].get_xdata(), shown, strict=True)]
            assert max(beside) <= 2.5
        assert len(axes.collections) == len(CONTROLS)  # the band of an interval each
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == ["10", "25", "50", "75"]
    check_looks(figure)
    for places in (1, 2):  # distinct colors, distinct markers
        assert len({entry[places] for entry in CONTROLS.values()}) == len(CONTROLS)


def test_the_plot_of_the_network_shows_the_contrasts(rows):
    frame = pandas.DataFrame([row for row in rows if row.fraction == 0.5])
    figure = interventions(frame, title="50 % of each layer's neurons")
    for axes, kind in zip(figure.axes, KINDS, strict=True):
        assert axes.get_xlabel().endswith("difference (% points)")
        for container, control in zip(axes.containers, RANDOM, strict=True):
            shown = [row for row in rows if (row.kind, row.control, row.fraction) == (kind, control, 0.5)]
            points, _, (bars,) = container
            assert list(points.get_xdata()) == pytest.approx([100 * row.contrast for row in shown])
            ends = [[end for end, _ in segment] for segment in bars.get_segments()]
            assert ends == [pytest.approx([100 * row.contrast_low, 100 * row.contrast_high]) for row in shown]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == LAYERS
    assert figure.legends[0].get_title().get_text() == "50 % of each layer's neurons\n203 images, 95 % intervals"
    check_looks(figure)
