"""Intervals against the textbook's, against loops, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nsr.interventions.bootstrap import Bootstrap


def flags(shares, images=200, seed=0) -> torch.Tensor:
    """(draw, image) of 0 and 1."""
    draws = torch.rand(len(shares), images, generator=torch.Generator().manual_seed(seed))
    return (draws < torch.tensor(shares)[:, None]).double()


def slow(first, second, *, replicates, seed=1):
    """Replicate by replicate in Python, the draws of images shared by both sides."""
    random = np.random.default_rng(seed)
    differences = []
    for _ in range(replicates):
        images = random.integers(0, first.shape[1], first.shape[1])
        sides = []
        for side in (first, second):
            draws = random.integers(0, len(side), len(side))
            sides.append(np.mean([side[d, i] for d in draws for i in images]))
        differences.append(sides[0] - sides[1])
    return np.quantile(differences, [0.025, 0.975])


def test_means_are_those_of_the_data():
    first, second = flags([0.7]), flags([0.1, 0.2, 0.3], seed=1)
    bootstrap = Bootstrap(200)
    assert bootstrap.mean(second).mean == pytest.approx(float(second.mean()), abs=1e-12)
    contrast = bootstrap.contrast(first, second)
    assert contrast.mean == pytest.approx(float(first.mean() - second.mean()), abs=1e-12)
    assert contrast.low < contrast.mean < contrast.high


def test_against_a_loop():
    first, second = flags([0.6], images=40), flags([0.2, 0.5, 0.3, 0.6], images=40, seed=1)
    got = Bootstrap(40, replicates=4000).contrast(first, second)
    low, high = slow(first.numpy(), second.numpy(), replicates=1500)
    assert got.low == pytest.approx(low, abs=0.03)
    assert got.high == pytest.approx(high, abs=0.03)
    assert got.high - got.low > 0.2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_of_one_share_it_is_the_normal_interval(share):
    values = flags([share], images=1000)
    got, mean = Bootstrap(1000).mean(values), float(values.mean())
    half = 1.96 * (mean * (1 - mean) / 1000) ** 0.5
    assert got.low == pytest.approx(mean - half, abs=0.1 * half)
    assert got.high == pytest.approx(mean + half, abs=0.1 * half)


def test_it_is_paired():
    """Two sides that differ on no image differ by nothing; on one image in ten, by little."""
    first = flags([0.5])
    assert tuple(Bootstrap(200).contrast(first, first)) == (0, 0, 0)
    second = first.clone()
    second[0, ::10] = 0
    paired = Bootstrap(200).contrast(first, second)
    shuffled = Bootstrap(200).contrast(first, second[:, torch.randperm(200)])
    assert paired.low > 0
    assert shuffled.low < 0
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_draws_count():
    """Sets that differ among themselves widen the interval as they should, the images being all alike."""
    control = torch.tensor([0.0, 1.0]).repeat(10)[:, None].expand(20, 500)
    got = Bootstrap(500, replicates=4000).mean(control)
    half = 1.96 * 0.5 / 20**0.5
    assert got.low == pytest.approx(0.5 - half, abs=0.05)
    assert got.high == pytest.approx(0.5 + half, abs=0.05)


@pytest.mark.parametrize("effect", [0.0, 0.2])
def test_nineteen_of_twenty_hold_the_truth(effect):
    held = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        hard = torch.rand(60, generator=generator)  # what both sides share: some images are easy
        first = (hard < 0.4 + effect).double()[None]
        shares = 0.4 + 0.2 * (torch.rand(20, 1, generator=generator) - 0.5)
        second = (0.5 * hard + 0.5 * torch.rand(20, 60, generator=generator) < shares).double()
        truth = 0.4 + effect - float(np.mean([two_uniforms(s) for s in np.linspace(0.3, 0.5, 201)]))
        interval = Bootstrap(60, replicates=300, seed=seed).contrast(first, second)
        held += interval.low <= truth <= interval.high
    assert 180 <= held <= 199


def two_uniforms(share: float) -> float:
    """P((U + V) / 2 < share)."""
    return 2 * share**2 if share <= 0.5 else 1 - 2 * (1 - share) ** 2


def test_seeded():
    first, second = flags([0.6]), flags([0.3, 0.4], seed=1)
    intervals = [tuple(Bootstrap(200, seed=seed).contrast(first, second)) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_few_images_and_one():
    assert tuple(Bootstrap(1).mean(torch.ones(1, 1))) == (1, 1, 1)
    assert Bootstrap(2).mean(torch.tensor([[0.0, 1.0]])) == (0.5, 0, 1)
