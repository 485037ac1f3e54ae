"""The page on large runs: its counts, its fit, and its tables."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks import scaling


def test_flops_and_kept_tensors_of_a_small_network_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))
    convolution, linear = 2 * 64 * 4 * 3 * 9, 2 * 4 * 64 * 10
    assert scaling.flops(net, 8, trains=False) == 2 * (convolution + linear)  # forward, to the images
    assert scaling.flops(net, 8, trains=True) == 2 * convolution + 3 * linear  # no gradient of the images
    features = 4 * 64
    # images, rectified features, log-probabilities; labels of 8 bytes
    assert scaling.kept_bytes(net, 8) == pytest.approx(4 * (3 * 64 + features + 10) + 8, abs=8)


def test_the_fit_finds_the_model():
    work = [(1e9, 2), (4e9, 4), (9e9, 11), (3e8, 4)]
    measured = [{"flops": flops, "passes": passes, "ms": flops / 5e7 + 3 * passes} for flops, passes in work]
    rate, overhead, error = scaling.fitted(measured)
    assert (rate, overhead) == (pytest.approx(5e10), pytest.approx(3))
    assert error < 1e-9


def test_more_devices_take_less_time_and_read_faster():
    run = scaling.LARGE[1]._replace(make=lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)), size=8)
    one, eight = (scaling.predicted(run._replace(devices=devices, link=1e30), 0.1) for devices in (1, 8))
    assert one["hours"] == pytest.approx(8 * eight["hours"])
    assert eight["read"] == pytest.approx(8 * one["read"])
    slow = scaling.predicted(run._replace(link=1.0), 0.1)
    assert slow["exchange"] > 0.99


@pytest.mark.slow
def test_the_page_is_made_from_the_rows():
    assert scaling.PAGE.read_text() == scaling.page()
