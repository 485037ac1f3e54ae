"""The L1 ball: its projection against a minimizer that knows nothing of it, its steps and draws against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PROPERTY, pattern_images, trained_net
from scipy.optimize import minimize

from nsr.attacks import AutoAttack, GradientAttack, KeptPerturbation
from nsr.attacks.balls import L1_STEP_FRACTION, L1Ball


def nearest_by_bisection(perturbation: np.ndarray, image: np.ndarray, epsilon: float) -> np.ndarray:
    """Shrink every entry by one amount, cut to the range; the amount by halving an interval."""

    def shrunk(amount: float) -> np.ndarray:
        return np.clip(np.sign(perturbation) * np.maximum(np.abs(perturbation) - amount, 0), -image, 1 - image)

    if np.abs(shrunk(0)).sum() <= epsilon:
        return shrunk(0)
    low, high = 0.0, float(np.abs(perturbation).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(shrunk(middle)).sum() > epsilon else (low, middle)
    return shrunk(high)


@settings(PROPERTY, max_examples=80)
@given(seed=st.integers(0, 10_000), epsilon=st.floats(0.01, 12), size=st.sampled_from([0.1, 1.0, 5.0]))
def test_the_projection_is_the_nearest_point(seed, epsilon, size):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 1, 3, 3, generator=generator, dtype=torch.float64)
    images[0].view(-1)[:4] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    perturbation = size * torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64)
    perturbation[1] = perturbation[1].round()  # equal entries
    got = L1Ball(images, epsilon).perturbed(perturbation) - images
    for i in range(4):
        expected = nearest_by_bisection(perturbation[i].flatten().numpy(), images[i].flatten().numpy(), epsilon)
        np.testing.assert_allclose(got[i].flatten().numpy(), expected, atol=1e-9)


def test_the_slow_projection_is_the_nearest_point_by_a_general_minimizer():
    generator = np.random.default_rng(0)
    for _ in range(5):
        image, perturbation = generator.random(4), generator.normal(size=4)
        # perturbation = up - down, both at least 0: a smooth problem
        found = minimize(
            lambda parts, perturbation=perturbation: ((parts[:4] - parts[4:] - perturbation) ** 2).sum(),
            np.full(8, 0.05),
            bounds=[(0, 1 - value) for value in image] + [(0, value) for value in image],
            constraints={"type": "ineq", "fun": lambda parts: 0.8 - parts.sum()},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        nearest = found.x[:4] - found.x[4:]
        np.testing.assert_allclose(nearest_by_bisection(perturbation, image, 0.8), nearest, atol=1e-5)


def test_a_step_moves_the_largest_entries_that_can_move():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 10, 10, generator=generator, dtype=torch.float64)
    images[:, :, :5] = images[:, :, :5].round()  # half the pixels at an end of the range
    gradient = torch.randn(3, 1, 10, 10, generator=generator, dtype=torch.float64)
    got = L1Ball(images, math.inf).step(images, gradient, 0.03)
    count = round(L1_STEP_FRACTION * 100)
    for i in range(3):
        flat, slope = images[i].flatten(), gradient[i].flatten()
        movable = [j for j in range(100) if (flat[j] < 1 if slope[j] > 0 else flat[j] > 0)]
        largest = sorted(movable, key=lambda j, slope=slope: -abs(float(slope[j])))[:count]
        assert len(movable) < 100
        for j in range(100):
            moved = 0.03 / count * float(slope[j].sign()) if j in largest else 0.0
            assert float(got[i].flatten()[j]) == pytest.approx(min(1, max(0, float(flat[j]) + moved)), abs=1e-12)


def test_a_start_is_uniform_in_the_ball():
    images = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    difference = (L1Ball(images, 0.4).random_point(torch.Generator().manual_seed(3)) - images).flatten(1) / 0.4
    radius = difference.abs().sum(1)
    # for a uniform point of the ball radius^3 is uniform, and so is each fraction of the radius in two dimensions less
    for values in (
        radius**3,
        1 - (1 - difference[:, 0].abs() / radius) ** 2,
        (difference[:, 1] > 0).double() * 0.5 + 0.25,
    ):
        ordered = values.sort().values
        steps = torch.arange(1, 4001, dtype=torch.float64) / 4000
        if values.unique().numel() > 2:
            assert (ordered - steps).abs().max() < 1.63 / math.sqrt(4000)
        else:
            assert abs(float((values > 0.5).double().mean()) - 0.5) < 3 * 0.5 / math.sqrt(4000)


def test_the_kept_perturbation_stays_in_the_ball():
    kept = KeptPerturbation(epsilon=1.5, norm="l1")
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    for seed in range(4):
        kept.ascend(torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)))
    kept.perturbed(images)
    lengths = kept.perturbation.abs().flatten(1).sum(1)
    assert (lengths <= 1.5 * (1 + 1e-6)).all()
    assert (lengths > 1.4).all()


def test_it_is_not_far_behind_apgd():
    """An attack of the training loop is weaker than APGD's 100 steps, not by much, or it would train for nothing."""
    images, labels = pattern_images(100, classes=4)
    net = trained_net(images, labels).eval()
    right = {}
    for name, attack in {
        "pgd": GradientAttack(epsilon=3.0, steps=40, norm="l1"),
        "apgd": AutoAttack(epsilon=3.0, norm="l1", version="custom", attacks=["apgd-ce"]),
    }.items():
        right[name] = int((net(attack(net, images, labels)).argmax(1) == labels).sum())
    clean = int((net(images).argmax(1) == labels).sum())
    assert right["apgd"] < 0.8 * clean
    assert clean - right["pgd"] >= 0.8 * (clean - right["apgd"])
