"""Metrics over seeds, differences at equal seeds, and rank correlations with a bootstrap over methods.

All take a frame with one row per run: `method`, `seed`, `status`, and metrics as fractions; runs that have not finished
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import pandas
from scipy.stats import t

from nsr.comparison.frames import MEASURES, layers_of
from nsr.errors import InputError

FEWEST_METHODS = 3  # of a rank correlation
RESAMPLES = 2000
LEVEL = 0.95


class Correlation(NamedTuple):
    """Spearman's rank correlation over runs, and its interval over methods."""

    correlation: float
    low: float
    high: float
    methods: int
    runs: int
    resamples: int  # those with more than one method and a rank order


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
    seeds = {
        method: group.groupby("seed")[names].mean() for method, group in finished(runs).groupby("method", sort=False)
    }
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
    mean = float(differences.mean()) if pairs else float("nan")
    half = float("nan")
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
        among: {which runs, in words: mask of rows}; None: all runs, and the adversarially trained ones.
        resamples: of the bootstrap over methods.
        seed: of the bootstrap.

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
    columns = ["among", "measure", "layer", *Correlation._fields, "note"]
    return pandas.DataFrame(rows, columns=columns)


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
    low, high = numpy.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(found) else (float("nan"),) * 2
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
    try:
        found = rank_correlation(
            measured[column], measured[accuracy], measured["method"].tolist(), resamples=resamples, seed=seed
        )
    except InputError as error:
        return {"methods": measured["method"].nunique(), "runs": len(measured), "note": str(error)}
    note = "" if numpy.isfinite(found.correlation) else "all values are equal"
    return {**found._asdict(), "note": note}
