"""Intervals and tests for accuracies over a number of images."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval (Wilson 1927) of a fraction: over other images like these, not over seeds."""
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test that two attacks are equally strong.

    Args:
        first_only, second_only: images that are robust to one attack and not to the other.
    """
    different = first_only + second_only
    return 1.0 if different == 0 else float(binomtest(first_only, different, 0.5).pvalue)
