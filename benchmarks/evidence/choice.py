"""What tuning chooses, by a fixed rule on validation images alone, and what the confirmation can find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy
from scipy.optimize import brentq
from scipy.stats import nct, t

from benchmarks.evidence.plan import Plan, settings
from benchmarks.evidence.rows import Row


def robust(row: Row) -> float:
    """Return the validated robust accuracy of a run's best checkpoint."""
    return row["validation_robust"][row["best_epoch"]]


def choose(plan: Plan, finished: Sequence[Row]) -> dict[str, dict[str, list[str]]]:
    """Return {objective: {arm: overrides of its best setting}}: mean over seeds; complete arms only.

    Without tuning in the plan the defaults stay.
    """
    if "tuning" not in plan:
        return {objective: {arm: [] for arm in plan["arms"]} for objective in plan["objectives"]}
    found: dict[str, dict[str, list[str]]] = {}
    for objective in plan["objectives"]:
        for arm in plan["arms"]:
            means = {}
            for setting in settings(plan, objective, arm):
                values = [robust(row) for row in tuned(finished, objective, arm) if row["setting"] == " ".join(setting)]
                if len(values) == len(plan["tuning"]["seeds"]):
                    means[tuple(setting)] = fmean(values)
            if len(means) == len(settings(plan, objective, arm)):
                found.setdefault(objective, {})[arm] = list(max(means, key=lambda setting: means[setting]))
    return found


def tuned(finished: Sequence[Row], objective: str, arm: str) -> list[Row]:
    """Return the tuning runs of an arm."""
    stages = ("rate", "tune")
    return [row for row in finished if row["stage"] in stages and (row["objective"], row["arm"]) == (objective, arm)]


def pilot(plan: Plan, finished: Sequence[Row], objective: str) -> numpy.ndarray:
    """Return validated robust accuracy (setting of any arm, seed) of the settings that have all tuning seeds."""
    table = []
    for arm in plan["arms"]:
        for setting in settings(plan, objective, arm):
            runs = [row for row in tuned(finished, objective, arm) if row["setting"] == " ".join(setting)]
            by_seed = {row["seed"]: robust(row) for row in runs}
            if all(seed in by_seed for seed in plan["tuning"]["seeds"]):
                table.append([by_seed[seed] for seed in plan["tuning"]["seeds"]])
    return numpy.array(table)


def tested(plan: Plan) -> list[str]:
    """Return the objectives whose primary contrast is tested."""
    if not plan["confirm"]["primary"]:
        return []
    return [objective for objective in plan["objectives"] if objective not in plan["confirm"].get("untested", ())]


def smallest_differences(plan: Plan, finished: Sequence[Row]) -> dict[str, float]:
    """Return {objective: points that its primary contrast detects with 80 % power}, stated before the confirmation.

    Alpha is 0.05 over the number of contrasts, Holm's first step. The deviation of a difference is the plan's, else
    that of validated accuracy in the tuning runs.
    """
    found, n = {}, len(plan["confirm"]["seeds"])
    for objective in tested(plan) if n > 1 else ():
        deviation = plan["confirm"].get("deviation")
        if isinstance(deviation, Mapping):
            deviation = deviation.get(objective)
        if deviation is None and len(table := pilot(plan, finished, objective)) > 1:
            deviation = paired_deviation(table)
        if deviation is not None:
            found[objective] = 100 * detectable(deviation, n, 0.05 / len(tested(plan)))
    return found


def paired_deviation(table: numpy.ndarray) -> float:
    """Return the standard deviation of a difference of two settings at equal seeds, from (setting, seed).

    sqrt(2 * residual variance) of the additive model setting + seed, (settings - 1)(seeds - 1) degrees of freedom.
    """
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return float((2 * (residual**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1))) ** 0.5)


def detectable(deviation: float, n: int, alpha: float, power: float = 0.8) -> float:
    """Return the mean difference that a two-sided paired t-test of n pairs finds with that power.

    Source: the noncentral t distribution, Cohen 1988, chapter 2; the permutation test over seeds has about its power.
    """
    limit = t.ppf(1 - alpha / 2, n - 1)

    def excess(shift: float) -> float:
        return nct.sf(limit, n - 1, shift) + numpy.nan_to_num(nct.cdf(-limit, n - 1, shift)) - power  # nan: too small

    return float(brentq(excess, 0.0, 8.0)) * deviation / n**0.5
