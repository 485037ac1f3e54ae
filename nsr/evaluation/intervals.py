"""How far an accuracy over so many images can be trusted."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % Wilson interval (Wilson 1927) of a share: of other images drawn as these were, not of other seeds."""
    interval = binomtest(right, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p-value of McNemar's test that two attacks are equally strong.

    Args:
        first_only, second_only: images that withstand one attack and not the other.
    """
    different = first_only + second_only
    return 1.0 if different == 0 else float(binomtest(first_only, different, 0.5).pvalue)
