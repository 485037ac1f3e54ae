"""The comparison of methods: metrics over seeds, differences at equal seeds, rank correlations with a bootstrap.

All functions take a frame with one row per run: `method`, `seed`, `status`, and metrics as fractions; runs that have
not finished are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import pandas
from scipy.stats import t

from nsr.comparison.frames import MEASURES, layers_of
from nsr.errors import InputError, check_choice, check_number

FEWEST_METHODS = 3  # of a rank correlation
RESAMPLES = 2000
LEVEL = 0.95
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


class Correlation(NamedTuple):
    """Spearman's rank correlation over runs, and its interval over methods."""

    correlation: float
    low: float
    high: float
    methods: int
    runs: int
    resamples: int  # those with more than one method and a rank order


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
    if accuracy is not None:
        names = [name.removesuffix("_accuracy") for name in attack_columns(runs)]
        accuracy = f"{check_choice('accuracy', accuracy.removesuffix('_accuracy'), names)}_accuracy"
    robust = accuracy or strongest_attack(runs)
    related = differences = pandas.DataFrame()
    if robust is not None:
        related = correlations(runs, robust, among=among, resamples=resamples, seed=seed)
    elif len(runs):
        notes.append("no correlation: no attack was evaluated in every finished run")
    if baseline is not None:
        differences = paired_differences(runs, baseline)
    return Comparison(runs, over_seeds(runs), differences, related, robust, baseline, notes)


def over_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row per method: mean, sample standard deviation and number of runs of each metric.

    Returns:
        Columns method, objective, stabilized, adversarial, runs, finished, and for each metric METRIC, METRIC_std (nan
        for a single run) and METRIC_n.
    """
    rows = []
    for method, group in runs.groupby("method", sort=False):
        done = finished(group)
        row: dict[str, Any] = {"method": method}
        row |= {name: group[name].iloc[0] for name in ("objective", "stabilized", "adversarial")}
        row |= {"runs": len(group), "finished": len(done)}
        for name in metric_names(runs):
            values = done[name].dropna()
            row |= {name: values.mean(), f"{name}_std": values.std(ddof=1), f"{name}_n": len(values)}
        rows.append(row)
    return pandas.DataFrame(rows)


def paired_differences(runs: pandas.DataFrame, baseline: str) -> pandas.DataFrame:
    """Return each method minus the baseline at the seeds that both have, with Student's t interval.

    Returns:
        Columns method, baseline, metric, difference, low, high (nan below two pairs), pairs; several runs of a seed
        count as their mean.
    """
    rows = []
    names = metric_names(runs)
    groups = finished(runs).groupby("method", sort=False)
    seeds = {method: group.groupby("seed")[names].mean() for method, group in groups}
    for method, means in seeds.items():
        if method != baseline and baseline in seeds:
            differences = means - seeds[baseline]  # by seed
            for name in names:
                interval = mean_interval(differences[name].dropna().to_numpy(dtype=float))
                rows.append({"method": method, "baseline": baseline, "metric": name, **interval})
    return pandas.DataFrame(rows, columns=["method", "baseline", "metric", "difference", "low", "high", "pairs"])


def mean_interval(differences: numpy.ndarray) -> dict[str, Any]:
    """Return the mean of paired differences (pair,) and its 95 % interval, Student's t."""
    pairs = len(differences)
    mean, half = float(differences.mean()) if pairs else math.nan, math.nan
    if pairs > 1:
        half = float(t.ppf((1 + LEVEL) / 2, pairs - 1) * differences.std(ddof=1) / pairs**0.5)
    return {"difference": mean, "low": mean - half, "high": mean + half, "pairs": pairs}


def correlations(
    runs: pandas.DataFrame,
    accuracy: str,
    *,
    among: Mapping[str, pandas.Series] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pandas.DataFrame:
    """Correlate sensitivity with an accuracy (Spearman), for the mean over layers and for each layer.

    Args:
        accuracy: the column of the accuracy.
        among, resamples, seed: as in `compare`.

    Returns:
        Columns among, measure, layer ('mean' or its name), correlation, low, high, methods, runs, resamples, note: the
        reason where there is no correlation.
    """
    among = among or {"all runs": runs["status"] != "", "adversarially trained": runs["adversarial"].astype(bool)}
    rows = []
    for which, mask in among.items():
        for measure in MEASURES[:2]:
            for layer in ("mean", *layers_of(runs)):
                column = measure if layer == "mean" else f"{measure}/{layer}"
                row = {"among": which, "measure": measure, "layer": layer}
                if column in runs:
                    rows.append(row | _noted(finished(runs[mask]), column, accuracy, resamples=resamples, seed=seed))
    return pandas.DataFrame(rows, columns=["among", "measure", "layer", *Correlation._fields, "note"])


def rank_correlation(
    sensitivity: Sequence[float],
    accuracy: Sequence[float],
    methods: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Return Spearman's correlation over runs and its 95 % percentile interval, from a bootstrap over methods.

    A method is drawn with all its runs: they are not independent, since seeds differ less than methods do. Resamples
    that hold a single method, or no rank order, are left out.

    Args:
        sensitivity, accuracy, methods: one entry per run.

    Errors:
        InputError: fewer than 3 methods.
    """
    names, member = numpy.unique(numpy.asarray(methods, dtype=str), return_inverse=True)
    if len(names) < FEWEST_METHODS:
        raise InputError(f"a rank correlation needs at least {FEWEST_METHODS} methods; there are {len(names)}")
    first, second = numpy.asarray(sensitivity, dtype=float), numpy.asarray(accuracy, dtype=float)
    whole = float(weighted_spearman(numpy.ones((1, len(first))), first, second)[0])
    draws = numpy.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    counts = (draws[:, :, None] == numpy.arange(len(names))).sum(1)  # (resample, method)
    found = weighted_spearman(counts[:, member].astype(float), first, second)
    found = found[numpy.isfinite(found) & ((counts > 0).sum(1) > 1)]
    low, high = numpy.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(found) else (math.nan, math.nan)
    return Correlation(whole, float(low), float(high), len(names), len(first), len(found))


def weighted_spearman(weights: numpy.ndarray, first: numpy.ndarray, second: numpy.ndarray) -> numpy.ndarray:
    """Return Spearman's correlation of samples that hold run i weights[:, i] times; ties get their mean rank.

    Args:
        weights: (sample, run).
        first, second: (run,).

    Returns:
        (sample,), nan where all values of `first` or of `second` are equal.
    """
    ranks = [weights @ ((each < each[:, None]) + 0.5 * (each == each[:, None])).T for each in (first, second)]
    total = weights.sum(1, keepdims=True)
    one, two = (rank - (weights * rank).sum(1, keepdims=True) / total for rank in ranks)
    spread = (weights * one**2).sum(1) * (weights * two**2).sum(1)
    together = (weights * one * two).sum(1)
    return numpy.divide(together, spread**0.5, out=numpy.full(len(weights), numpy.nan), where=spread > 1e-9)


def strongest_attack(runs: pandas.DataFrame) -> str | None:
    """Return the column with the lowest mean, of the attacks that every finished run was evaluated with."""
    done = finished(runs)
    named = [name for name in attack_columns(runs) if name not in ("clean_accuracy", "worst_case_accuracy")]
    whole = [name for name in named if len(done) and done[name].notna().all()]
    return min(whole, key=lambda name: done[name].mean(), default=None)


def attack_columns(runs: pandas.DataFrame) -> list[str]:
    """List the accuracies on the test set: clean, the attacks, AutoAttack, the worst case."""
    names = [name for name in runs if name.endswith("_accuracy") and not name.startswith("validation_")]
    order = ["clean", "fgsm", "pgd", "", "autoattack", "worst_case"]
    places = {f"{name}_accuracy": place for place, name in enumerate(order)}
    return sorted(names, key=lambda name: places.get(name, order.index("")))


def metric_names(runs: pandas.DataFrame) -> list[str]:
    """List the columns that hold metrics: accuracies, and sensitivities before and after training."""
    measures = {f"{measure}{when}" for measure in MEASURES for when in ("", "_before")}
    return [name for name in runs if name.endswith("_accuracy") or name.partition("/")[0] in measures]


def finished(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Select the finished runs."""
    return runs[runs["status"] == "finished"]


def _noted(runs: pandas.DataFrame, column: str, accuracy: str, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the correlation, or a note why there is none."""
    measured = runs.dropna(subset=[column, accuracy])
    values = measured[column], measured[accuracy], measured["method"].tolist()
    try:
        found = rank_correlation(*values, resamples=resamples, seed=seed)
    except InputError as error:
        return {"methods": measured["method"].nunique(), "runs": len(measured), "note": str(error)}
    note = "" if numpy.isfinite(found.correlation) else "all values are equal"
    return {**found._asdict(), "note": note}


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
    """Return the method to compare with: the requested one, PGD training alone, or the first."""
    methods = list(dict.fromkeys(done["method"]))
    if wanted is not None:
        return check_choice("baseline", wanted, methods)
    plain = done[(done["objective"] == "pgd") & ~done["stabilized"].astype(bool)]["method"].tolist()
    return next(iter([*plain, *methods]), None)
