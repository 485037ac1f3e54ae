"""Figures say what the rows say: axes with units, letters that can be read, every family told apart."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from nsr.interventions.effects import Row
from nsr.interventions.plots import FAMILIES, layer_figure, network_figure
from nsr.plotting import COLUMN, DOTS, save

SHARES = (0.1, 0.25, 0.5, 0.75)
LAYERS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]


def a_row(layer: str, kind: str, share: float, family: str, effect: float) -> Row:
    described = {
        "draws": 20,
        "neurons": 8.0,
        "layer_neurons": 16,
        "mass": 0.7,
        "energy": 0.8,
        "overlap": 0.5,
        "images": 203,
    }
    measured = {"effect": effect, "effect_low": effect - 0.05, "effect_high": effect + 0.05}
    contrast = {"contrast": 0.3 - effect, "contrast_low": 0.2 - effect, "contrast_high": 0.35 - effect}
    if family in ("most_sensitive", "whole_layer"):
        contrast = dict.fromkeys(contrast)
    of_margin = {f"margin{name.removeprefix('effect')}": value for name, value in measured.items()}
    of_margin |= {f"margin_{name}": value for name, value in contrast.items()}
    return Row(layer, kind, share, family, **described, **measured, **contrast, **of_margin)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        *(
            a_row(layer, kind, share, family, 0.1 + share / 2 - place / 50)
            for layer in LAYERS
            for kind in ("restore", "corrupt")
            for share in SHARES
            for place, family in enumerate(FAMILIES)
        ),
        *(a_row(layer, kind, 1.0, "whole_layer", 0.9) for layer in LAYERS for kind in ("restore", "corrupt")),
    ]


def texts(figure) -> list:
    from matplotlib.text import Text

    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def check_looks(figure) -> None:
    assert figure.get_size_inches()[0] == pytest.approx(COLUMN)
    assert figure.get_facecolor() == (1, 1, 1, 1)  # readable on a dark page
    figure.draw_without_rendering()
    page = figure.bbox
    for text in texts(figure):
        assert text.get_fontsize() >= 7
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= page.x1 + 1, text.get_text()
        assert box.y0 >= -1 and box.y1 <= page.y1 + 1, text.get_text()
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_text() and label.get_rotation() == 0]
        boxes = [label.get_window_extent() for label in labels] if axes.xaxis.get_tick_params()["labelbottom"] else []
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_a_layers_figure_shows_its_rows(rows):
    of_layer = [row for row in rows if row.layer == "layer1.0"]
    figure = layer_figure(of_layer)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "restored:\nimages right again (%)",
        "corrupted:\nimages made wrong (%)",
    ]
    assert figure.axes[-1].get_xlabel() == "share of the 16 neurons of layer1.0 (%)"
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "203 images, 95 % intervals"
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["the whole layer", *(label for label, _, _ in FAMILIES.values())]
    for axes, kind in zip(figure.axes, ("restore", "corrupt"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for family, (label, _, _) in FAMILIES.items():
            shown = [row for row in of_layer if row.kind == kind and row.family == family]
            assert list(lines[label].get_ydata()) == pytest.approx([100 * row.effect for row in shown])
            beside = [abs(x - 100 * row.share) for x, row in zip(lines[label].get_xdata(), shown, strict=True)]
            assert max(beside) <= 2.5
        assert len(axes.collections) == len(FAMILIES)  # an interval's band each
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == ["10", "25", "50", "75"]
    check_looks(figure)


def test_families_are_told_apart_by_colour_and_by_marker():
    assert len({colour for _, colour, _ in FAMILIES.values()}) == len(FAMILIES)
    assert len({marker for _, _, marker in FAMILIES.values()}) == len(FAMILIES)


def test_the_networks_figure_shows_the_contrasts(rows):
    figure = network_figure(rows, share=0.5)
    for axes, kind in zip(figure.axes, ("restore", "corrupt"), strict=True):
        assert axes.get_ylabel().endswith("difference (points)")
        for container, measure in zip(axes.containers, ("size", "mass", "energy"), strict=True):
            family = f"random_equal_{measure}"
            shown = [row for row in rows if (row.kind, row.family, row.share) == (kind, family, 0.5)]
            points, _, (bars,) = container
            assert list(points.get_ydata()) == pytest.approx([100 * row.contrast for row in shown])
            ends = [[end for _, end in segment] for segment in bars.get_segments()]
            assert ends == [pytest.approx([100 * row.contrast_low, 100 * row.contrast_high]) for row in shown]
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == LAYERS
    assert figure.axes[-1].get_xlabel() == "layer, 50 % of its neurons"
    check_looks(figure)


def test_many_layers_get_the_room_they_need(rows):
    many = [a_row(f"layer{n}", "restore", 0.5, family, 0.3) for n in range(50) for family in FAMILIES]
    assert network_figure(many, share=0.5).get_size_inches()[0] == pytest.approx(10)


def test_files(rows, tmp_path):
    save(layer_figure([row for row in rows if row.layer == "layer1.0"]), tmp_path / "layer1.0")
    png, pdf = ((tmp_path / f"layer1.0.{kind}").read_bytes() for kind in ("png", "pdf"))
    width, height = struct.unpack(">II", png[16:24])
    assert width == round(DOTS * COLUMN)
    assert height > width
    assert len(png) < 200_000
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf  # text stays text
    assert b"CreationDate" not in pdf
