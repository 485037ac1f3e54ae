"""The comparison of runs by method: means over seeds, differences from a baseline, correlations, notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas

from nsr.comparison.statistics import (
    RESAMPLES,
    attack_columns,
    correlations,
    finished,
    over_seeds,
    paired_differences,
    strongest_attack,
)
from nsr.errors import InputError, check_choice, check_number

WORST = "worst_case_accuracy"


class Comparison(NamedTuple):
    """A comparison as data frames, with notes."""

    runs: pandas.DataFrame
    methods: pandas.DataFrame  # mean, _std and _n of each metric
    differences: pandas.DataFrame  # from the baseline at equal seeds, with t-intervals
    correlations: pandas.DataFrame  # Spearman's, of sensitivity with robust accuracy
    accuracy: str | None  # the column that robustness is read from
    baseline: str | None
    notes: list[str]


def compare(
    runs: pandas.DataFrame,
    *,
    baseline: str | None = None,
    accuracy: str | None = None,
    labels: Mapping[str, str] | None = None,
    among: Mapping[str, pandas.Series] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare methods over their seeds, paired with a baseline, and correlate sensitivity with robust accuracy.

    Args:
        runs: from `read_runs`; unfinished ones are left out.
        baseline: the method that others are paired with at equal seeds; None: PGD training alone, else the first.
        accuracy: the attack that robustness is read from; None: the strongest that every finished run has.
        labels: {method: another name for it}.
        among: {a set of runs, in words: mask of rows} to correlate; None: all, and the adversarially trained ones.
        resamples, seed: of the bootstrap over methods.

    Errors:
        InputError: an unknown method or attack.
    """
    check_number("resamples", resamples, lowest=100, whole=True)
    runs = runs.assign(method=_renamed(runs, labels or {}))
    notes, done = [], finished(runs)
    found = [text for text in runs.get("conditions", pandas.Series(dtype=str)).dropna().unique() if text]
    if found:
        differ = "these runs differ in data or threat model, so their metrics are not comparable"
        notes.append(f"{differ}: {'; '.join(found)}")
    if WORST in runs and "worst_case_of" in runs and done["worst_case_of"].nunique() > 1:
        runs = runs.drop(columns=WORST)
        notes.append("worst case left out: it covers different attacks in different runs")
    baseline = _baseline(done, baseline)
    robust = _accuracy(runs, accuracy)
    related = correlations(runs, robust, among=among, resamples=resamples, seed=seed) if robust else pandas.DataFrame()
    if robust is None and len(runs):
        notes.append("no correlation: no attack was evaluated in every finished run")
    return Comparison(
        runs=runs,
        methods=over_seeds(runs),
        differences=paired_differences(runs, baseline) if baseline else pandas.DataFrame(),
        correlations=related,
        accuracy=robust,
        baseline=baseline,
        notes=notes,
    )


def _renamed(runs: pandas.DataFrame, labels: Mapping[str, str]) -> pandas.Series:
    """Return the method of each run under the user's own labels."""
    there = list(dict.fromkeys(runs["method"]))
    for name in labels:
        check_choice("label", name, there)
    renamed = runs["method"].map(lambda name: labels.get(name, name))
    if renamed.nunique() < len(there):
        twice = next(text for name, text in labels.items() if (renamed[runs["method"] != name] == text).any())
        raise InputError(f"label {twice!r} is given to several methods; each needs its own")
    return renamed


def _baseline(done: pandas.DataFrame, wanted: str | None) -> str | None:
    """Return the method to compare with: the one asked for, PGD training alone, or the first."""
    methods = list(dict.fromkeys(done["method"]))
    if wanted is not None:
        return check_choice("baseline", wanted, methods)
    plain = done[(done["objective"] == "pgd") & ~done["stabilized"].astype(bool)]["method"].tolist()
    return next(iter([*plain, *methods]), None)


def _accuracy(runs: pandas.DataFrame, wanted: str | None) -> str | None:
    if wanted is None:
        return strongest_attack(runs)
    names = [name.removesuffix("_accuracy") for name in attack_columns(runs)]
    return f"{check_choice('accuracy', wanted.removesuffix('_accuracy'), names)}_accuracy"
