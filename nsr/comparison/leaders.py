"""The best method of each accuracy against the runner-up: a paired test at equal seeds, corrected over the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import pandas

from nsr.comparison.conditions import finished
from nsr.comparison.inference import ALPHA, Decision, Tested, holm, sign_flip_test
from nsr.comparison.statistics import with_seed


class Lead(NamedTuple):
    """The best mean of one accuracy, and its difference to the second-best at the seeds that both have."""

    best: tuple[str, ...]  # several where means are equal
    difference: float  # nan where there is no second method, or no common seed
    pairs: int
    test: Tested
    holm_p: float = math.nan

    @property
    def is_shown(self) -> bool:
        """Whether one method alone is best, also of the paired seeds, and its lead survives Holm's correction."""
        return len(self.best) == 1 and self.difference > 0 and self.holm_p <= ALPHA


def leads(
    runs: pandas.DataFrame, methods: pandas.DataFrame, columns: Sequence[str]
) -> tuple[dict[str, Lead], Decision]:
    """Return the lead in each accuracy that any method has, and Holm's correction over them.

    A tie for the best mean is a comparison too, whose p is 1 where the seeds are equal.

    Args:
        runs, methods: of a `Comparison`.
    """
    found = {name: _lead(runs, methods, name) for name in columns if name in methods and methods[name].notna().any()}
    decision = holm((lead.test.p for lead in found.values()), (lead.test.smallest_p for lead in found.values()))
    pairs = zip(found.items(), decision.p.tolist(), strict=True)
    return {name: lead._replace(holm_p=p) for (name, lead), p in pairs}, decision


def _lead(runs: pandas.DataFrame, methods: pandas.DataFrame, name: str) -> Lead:
    means = methods.set_index("method")[name].dropna().sort_values(ascending=False, kind="stable")
    best = tuple(str(method) for method, mean in means.items() if math.isclose(mean, means.iloc[0], rel_tol=1e-9))
    values = numpy.empty(0)
    if len(means) > 1:
        own = with_seed(finished(runs))
        first, second = (own[own["method"] == method].groupby("seed")[name].mean() for method in means.index[:2])
        values = (first - second).dropna().to_numpy(dtype=float)
    difference = float(values.mean()) if len(values) else math.nan
    return Lead(best, difference, len(values), sign_flip_test(values))
