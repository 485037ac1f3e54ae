"""Variants of SNS's term in docs/results.md: validated robust accuracy minus that of none at equal seeds."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import numpy

from benchmarks.common import bullet, interval, table, wrapped
from benchmarks.evidence import choice
from benchmarks.evidence.findings import Study
from nsr.comparison.inference import paired_interval


def by_seed(one: Study, arm: str) -> dict[int, float]:
    """Return {seed: validated robust accuracy in percent} of an arm's finished runs."""
    rows = (row for objective in one.plan["objectives"] for row in choice.tuned(one.finished, objective, arm))
    return {row["seed"]: 100 * choice.robust(row) for row in rows}


def differences(one: Study, arm: str) -> numpy.ndarray:
    """Return an arm minus none at equal seeds, (seed,) points."""
    own, none = by_seed(one, arm), by_seed(one, "none")
    return numpy.array([own[seed] - none[seed] for seed in sorted(own.keys() & none.keys())])


def is_complete(one: Study) -> bool:
    return all(len(by_seed(one, arm)) == len(one.plan["tuning"]["seeds"]) for arm in one.plan["arms"])


def short(one: Study) -> list[str]:
    """Return the sentence on what was tried."""
    found = {
        arm: fmean(differences(one, arm)) for arm in one.plan["arms"] if arm != "none" and len(differences(one, arm))
    }
    if not is_complete(one):
        return bullet("**A better term** than SNS's: undecided, the runs are not complete.")
    best = max(found, key=lambda arm: found[arm])
    minus = interval_of(differences(one, best))
    return bullet(
        f"**A better term** than SNS's: none was shown. Of {len(found)} variants, SNS itself among them, `{best}` has "
        f"the largest difference from none on validation images of Fashion-MNIST, {minus} "
        "points; the largest of so many is too high by selection."
    )


def interval_of(minus: numpy.ndarray) -> str:
    found = paired_interval(minus)
    return interval(found["difference"], found["low"], found["high"])


def section(one: Study) -> Iterator[str]:
    """Yield the table of all variants."""
    lines = []
    for arm in one.plan["arms"]:
        values, minus = by_seed(one, arm), differences(one, arm)
        each = ", ".join(f"{values[seed]:.1f}" for seed in sorted(values))
        mean = f"{fmean(values.values()):.2f}" if values else ""
        lines.append([arm, each, mean, interval_of(minus) if arm != "none" and len(minus) > 1 else ""])
    done, planned = len(one.finished), len(one.plan["tuning"]["seeds"]) * len(one.plan["arms"])
    plan = f"[{one.plan['name']}.yaml](../benchmarks/evidence_plans/{one.plan['name']}.yaml)"
    yield from wrapped(
        f"Plan: {plan}, which has the settings; {done} of {planned} runs are complete. Robust accuracy (PGD) on 1,000 "
        "validation images at the best epoch, percent, and its difference from none at equal seeds with a 95 % "
        "interval over seeds. So few seeds cannot give a p below 0.05 for so many variants after Holm's correction, so "
        "nothing is tested; no test image was used."
    )
    yield from ("", *table(["variant", "each seed", "mean", "minus none"], lines), "")
