"""Tests and intervals of a comparison: permutation tests, Holm's correction, intervals over seeds and test images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations, product
from typing import Any, NamedTuple

import numpy
from scipy.stats import rankdata, t

LEVEL = 0.95
ALPHA = 1 - LEVEL
RANDOM_ARRANGEMENTS = 9999  # of a permutation test with more arrangements than that


class Tested(NamedTuple):
    """A two-sided p value, and the smallest that the test can give with so many seeds or methods."""

    p: float = math.nan
    smallest_p: float = math.nan


class Decision(NamedTuple):
    """Holm's correction of one table."""

    p: numpy.ndarray  # (comparison,), corrected; nan where there is no test
    comparisons: int
    smallest_p: float  # the smallest corrected p that the table can give; nan where nothing is tested

    @property
    def is_possible(self) -> bool:
        """Whether any comparison could reach 0.05."""
        return self.smallest_p <= ALPHA + 1e-12

    def sentence(self, unit: str) -> str:
        """Describe the correction, or that `unit` (seeds, methods) are too few for any decision."""
        if not self.comparisons:
            return ""
        over = f"{self.comparisons} comparison{'s' if self.comparisons > 1 else ''}"
        if self.is_possible:
            corrected = f"p: permutation test over {unit}, Holm's correction over {over}"
            return f"{corrected}; only bold entries (p <= 0.05) count as shown."
        smallest = f"the smallest attainable p after Holm's correction over {over} is {self.smallest_p:.2g}"
        return f"n too small to decide: with so few {unit} {smallest}."


def holm(p: Iterable[float], smallest_p: Iterable[float] | None = None) -> Decision:
    """Correct p values (comparison,) for multiple comparisons (Holm 1979); nan counts as no comparison.

    Args:
        smallest_p: the smallest value that each test can give; None: 0.
    """
    values = numpy.asarray(list(p), dtype=float)
    tested = numpy.flatnonzero(~numpy.isnan(values))
    order = tested[numpy.argsort(values[tested], kind="stable")]
    corrected = numpy.full(len(values), numpy.nan)
    steps = values[order] * numpy.arange(len(order), 0, -1)
    corrected[order] = numpy.minimum(1, numpy.maximum.accumulate(steps))
    if not len(tested):
        return Decision(corrected, 0, math.nan)
    least = 0.0 if smallest_p is None else float(numpy.nanmin(numpy.asarray(list(smallest_p), dtype=float)[tested]))
    return Decision(corrected, len(tested), min(1.0, len(tested) * least))


def sign_flip_test(differences: numpy.ndarray, *, seed: int = 0) -> Tested:
    """Test that paired differences (pair,) are symmetric around 0: their mean under every choice of signs.

    Exact up to 13 pairs; nothing is tested below two, or where a difference is infinite. No distribution is assumed, so
    n pairs give at least 2 / 2**n.
    """
    pairs = len(differences)
    if pairs < 2 or not numpy.isfinite(differences).all():
        return Tested()
    if exact := 2**pairs <= RANDOM_ARRANGEMENTS:
        signs = numpy.array(list(product((1.0, -1.0), repeat=pairs)))
    else:
        signs = numpy.random.default_rng(seed).choice((1.0, -1.0), size=(RANDOM_ARRANGEMENTS, pairs))
    return _tested(signs @ differences, differences.sum(), numpy.abs(differences).sum(), exact)


def rank_permutation_test(first: numpy.ndarray, second: numpy.ndarray, *, seed: int = 0) -> Tested:
    """Test Spearman's correlation of (method,) values under every assignment of one to the other; exact up to 7."""
    one, two = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    if not one.any() or not two.any():
        return Tested()
    if exact := math.factorial(len(one)) <= RANDOM_ARRANGEMENTS:
        assigned = numpy.array(list(permutations(one)))
    else:
        assigned = numpy.random.default_rng(seed).permuted(numpy.tile(one, (RANDOM_ARRANGEMENTS, 1)), axis=1)
    return _tested(assigned @ two, one @ two, numpy.abs(one) @ numpy.abs(two), exact)


def _tested(arranged: numpy.ndarray, observed: float, size: float, exact: bool) -> Tested:
    """Return the fraction of arrangements at least as far from 0; random ones count the observed one too."""
    extreme = int((numpy.abs(arranged) >= abs(observed) - 1e-9 * size).sum())
    total = len(arranged) + (not exact)
    return Tested((extreme + (not exact)) / total, 2 / total if exact else 1 / total)


def paired_interval(differences: numpy.ndarray, images: numpy.ndarray | None = None) -> dict[str, Any]:
    """Return the mean of paired differences and its 95 % interval, over seeds or over seeds and test images.

    The variance is that of both means added, which a bootstrap over seeds and images (Owen 2007) gives too, but with
    Student's t for the few seeds: with five seeds the bootstrap's interval is a third too narrow. It is never narrower
    than the interval over seeds alone.

    Args:
        differences: (seed,).
        images: (seed, image), whose mean over images they are; None: unknown.

    Returns:
        {'difference', 'low', 'high' (nan below two seeds, or for an infinite mean), 'pairs', 'over'}.
    """
    pairs, over = len(differences), "seeds"
    mean, half = float(differences.mean()) if pairs else math.nan, math.nan
    if pairs > 1 and math.isfinite(mean):
        variance = differences.var(ddof=1) / pairs
        if images is not None and images.shape[1] > 1:
            variance += images.mean(0).var(ddof=1) / images.shape[1]
            over = "seeds and images"
        half = float(t.ppf((1 + LEVEL) / 2, pairs - 1) * variance**0.5)
    return {"difference": mean, "low": mean - half, "high": mean + half, "pairs": pairs, "over": over}
