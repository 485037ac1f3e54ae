"""Bootstrap intervals against the textbook, against loops, and by their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nsr.interventions.effects import contrast_interval, mean_interval


def flags(fractions, images=200, seed=0) -> torch.Tensor:
    """(set, image) of 0 and 1."""
    draws = torch.rand(len(fractions), images, generator=torch.Generator().manual_seed(seed))
    return (draws < torch.tensor(fractions)[:, None]).double()


def slow(first, second, *, n_bootstrap, seed=1):
    """Resample by resample in Python; both terms share the drawn images."""
    random = np.random.default_rng(seed)
    differences = []
    for _ in range(n_bootstrap):
        images = random.integers(0, first.shape[1], first.shape[1])
        means = []
        for values in (first, second):
            sets = random.integers(0, len(values), len(values))
            means.append(np.mean([values[s, i] for s in sets for i in images]))
        differences.append(means[0] - means[1])
    return np.quantile(differences, [0.025, 0.975])


def test_against_a_loop():
    first, second = flags([0.6], images=40), flags([0.2, 0.5, 0.3, 0.6], images=40, seed=1)
    got = contrast_interval(first, second, n_bootstrap=4000)
    assert got.mean == pytest.approx(float(first.mean() - second.mean()), abs=1e-12)
    low, high = slow(first.numpy(), second.numpy(), n_bootstrap=1500)
    assert got.low == pytest.approx(low, abs=0.03)
    assert got.high == pytest.approx(high, abs=0.03)
    assert got.high - got.low > 0.2


def test_it_is_paired():
    """Equal values differ by nothing, and values that differ on one image in ten by little."""
    first = flags([0.5])
    assert tuple(contrast_interval(first, first)) == (0, 0, 0)
    second = first.clone()
    second[0, ::10] = 0
    paired = contrast_interval(first, second)
    shuffled = contrast_interval(first, second[:, torch.randperm(200)])
    assert paired.low > 0 > shuffled.low
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_different_sets_widen_the_interval():
    """By as much as they should, where all images are alike."""
    control = torch.tensor([0.0, 1.0]).repeat(10)[:, None].expand(20, 500)
    half = 1.96 * 0.5 / 20**0.5
    assert tuple(mean_interval(control, n_bootstrap=4000)) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=0.05)


@pytest.mark.parametrize("effect", [0.0, 0.2])
def test_coverage_is_95_percent(effect):
    covered = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        hard = torch.rand(60, generator=generator)  # common to both terms: some images are easy
        first = (hard < 0.4 + effect).double()[None]
        fractions = 0.4 + 0.2 * (torch.rand(20, 1, generator=generator) - 0.5)
        second = (0.5 * hard + 0.5 * torch.rand(20, 60, generator=generator) < fractions).double()
        truth = 0.4 + effect - float(np.mean([two_uniforms(s) for s in np.linspace(0.3, 0.5, 201)]))
        interval = contrast_interval(first, second, n_bootstrap=300, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert 180 <= covered <= 199


def two_uniforms(fraction: float) -> float:
    """P((U + V) / 2 < fraction)."""
    return 2 * fraction**2 if fraction <= 0.5 else 1 - 2 * (1 - fraction) ** 2


def test_the_seed_decides_and_few_images_suffice():
    first, second = flags([0.6]), flags([0.3, 0.4], seed=1)
    intervals = [tuple(contrast_interval(first, second, seed=seed)) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]
    assert tuple(mean_interval(torch.ones(1, 1))) == (1, 1, 1)
    assert mean_interval(torch.tensor([[0.0, 1.0]])) == (0.5, 0, 1)
