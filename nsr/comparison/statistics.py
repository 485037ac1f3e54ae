"""The comparison of methods: metrics over seeds, differences at equal seeds, rank correlations; Holm-corrected tests.

All functions take a frame with one row per run: `method`, `seed`, `status`, and metrics as fractions; runs that have
not finished are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import pandas

from nsr.comparison.conditions import finished, unequal
from nsr.comparison.frames import MEASURES, layers_of
from nsr.comparison.inference import LEVEL, holm, paired_interval, rank_permutation_test, sign_flip_test
from nsr.comparison.outcomes import WORST, image_differences, outcomes_by_seed
from nsr.errors import InputError, check_choice, check_number
from nsr.run.rows import is_weak

FEWEST_METHODS = 3  # of a rank correlation
FEWEST_FOR_BOOTSTRAP = 8  # over fewer, 8 to 30 % of its 95 % intervals exclude a correlation of 0 that is true
RESAMPLES = 2000


class Comparison(NamedTuple):
    """A comparison as data frames, with notes."""

    runs: pandas.DataFrame
    methods: pandas.DataFrame  # mean, _std and _n of each metric
    differences: pandas.DataFrame  # from the baseline at equal seeds, with intervals and corrected p values
    correlations: pandas.DataFrame  # Spearman's, of sensitivity with robust accuracy, with corrected p values
    accuracy: str | None  # the column that robustness is read from
    baseline: str | None
    notes: list[str]


class Correlation(NamedTuple):
    """Spearman's rank correlation over runs, its interval over methods and the permutation test of their means."""

    correlation: float
    low: float  # nan for fewer than 8 methods
    high: float
    methods: int
    runs: int
    resamples: int  # those with more than one method and a rank order
    p: float
    smallest_p: float  # that so few methods can give


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
        baseline: the method (or its label) that others are paired with; None: PGD training alone, else the first.
        accuracy: the attack that robustness is read from; None: the strongest that every finished run has.
        labels: {method: another name for it}.
        among: {a set of runs, in words: mask of rows} to correlate; None: all, and the adversarially trained ones.
        resamples, seed: of the bootstrap over methods.

    Errors:
        InputError: an unknown method or attack.
    """
    check_number("resamples", resamples, lowest=100, whole=True)
    runs = runs.assign(method=_renamed(runs, labels or {}))
    baseline = (labels or {}).get(baseline or "", baseline)
    notes, done = [], finished(runs)
    found = [text for text in runs.get("conditions", pandas.Series(dtype=str)).dropna().unique() if text]
    if found:
        differ = "these runs differ in data or threat model, so their metrics are not comparable"
        notes.append(f"{differ}: {'; '.join(found)}")
    if WORST in runs and "worst_case_of" in runs and done["worst_case_of"].nunique() > 1:
        runs = runs.drop(columns=WORST)
        notes.append("worst case left out: it covers different attacks in different runs")
    if repeated := list(dict.fromkeys(done.loc[done.duplicated(["method", "seed"]) & (done["seed"] >= 0), "method"])):
        notes.append(f"several runs of a seed count as their mean: {', '.join(repeated)}")
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
    left_out = unequal(runs, [*attack_columns(runs), *MEASURES[:2]])
    if left_out and len(differences):
        differences = _untested(differences, differences["metric"].isin(left_out))
    if robust in left_out and len(related):
        related = _untested(related, related["p"].notna())
    if left_out:
        notes.append("nothing is tested where rows were measured under unequal settings")
    return Comparison(runs, over_seeds(runs), differences, related, robust, baseline, notes)


def over_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row per method: mean, sample standard deviation and number of seeds of each metric.

    Returns:
        Columns method, objective, stabilized, adversarial, runs and finished (how many seeds; several runs of a seed
        count as their mean), and for each metric METRIC, METRIC_std (nan for a single seed) and METRIC_n.
    """
    rows = []
    each, names = one_a_seed(runs), metric_names(runs)
    for method, group in runs.groupby("method", sort=False):
        done = each[each["method"] == method]
        row: dict[str, Any] = {"method": method}
        row |= {name: group[name].iloc[0] for name in ("objective", "stabilized", "adversarial")}
        row |= {"runs": _seeds(group).nunique(), "finished": len(done)}
        for name in names:
            values = done[name].dropna()
            deviation = values.std(ddof=1) if numpy.isfinite(values).all() else math.nan
            row |= {name: values.mean(), f"{name}_std": deviation, f"{name}_n": len(values)}
        rows.append(row)
    return pandas.DataFrame(rows)


def paired_differences(runs: pandas.DataFrame, baseline: str) -> pandas.DataFrame:
    """Return each method minus the baseline at the seeds that both have; several runs of a seed count as their mean.

    Returns:
        Columns method, baseline, metric, difference, low, high (95 % interval, nan below two pairs), pairs, over (what
        the interval covers: 'seeds', or 'seeds and images' where every run's images.csv is there), p (sign-flip
        permutation test over seeds), smallest_p, holm_p. Tested, and corrected together, are the metrics of
        `tested_metrics`.
    """
    rows: list[dict[str, Any]] = []
    names, tested = metric_names(runs), tested_metrics(runs)
    attacks = attack_columns(runs)
    groups = {str(method): group for method, group in finished(runs).groupby("method", sort=False)}
    groups = {method: with_seed(group) for method, group in groups.items()}
    seeds = {method: group.groupby("seed")[names].mean() for method, group in groups.items()}
    images = {method: outcomes_by_seed(group, attacks) for method, group in groups.items()}
    for method in [method for method in groups if method != baseline and baseline in groups]:
        differences = seeds[method] - seeds[baseline]  # by seed
        for name in names:
            found = differences[name].dropna()
            values = found.to_numpy(dtype=float)
            each = image_differences(images[method], images[baseline], name, found.index) if name in attacks else None
            row = {"method": method, "baseline": baseline, "metric": name, **paired_interval(values, each)}
            rows.append(row | (sign_flip_test(values)._asdict() if name in tested else {}))
    columns = ["method", "baseline", "metric", "difference", "low", "high", "pairs", "over", "p", "smallest_p"]
    return _corrected(pandas.DataFrame(rows, columns=columns))


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
        Columns among, measure, layer ('mean' or its name), correlation, low, high, methods, runs, resamples, p,
        smallest_p, note (the reason where there is no correlation), holm_p (corrected over all rows).
    """
    among = among or {"all runs": runs["status"] != "", "adversarially trained": runs["adversarial"].astype(bool)}
    rows = []
    for which, mask in among.items():
        for measure in MEASURES[:2]:
            for layer in ("mean", *layers_of(runs)):
                column = measure if layer == "mean" else f"{measure}/{layer}"
                row = {"among": which, "measure": measure, "layer": layer}
                if column in runs:
                    rows.append(row | _noted(one_a_seed(runs[mask]), column, accuracy, resamples=resamples, seed=seed))
    return _corrected(pandas.DataFrame(rows, columns=["among", "measure", "layer", *Correlation._fields, "note"]))


def rank_correlation(
    sensitivity: Sequence[float],
    accuracy: Sequence[float],
    methods: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Return Spearman's correlation over runs, its 95 % bootstrap interval over methods, and a permutation test.

    Methods are the units, drawn with all their runs and tested by their means: seeds differ less than methods do. Fewer
    than eight methods have no interval. Resamples that hold a single method, or no rank order, are left out.

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
    means = [numpy.bincount(member, values) / numpy.bincount(member) for values in (first, second)]
    test = rank_permutation_test(*means, seed=seed)
    if len(names) < FEWEST_FOR_BOOTSTRAP:
        return Correlation(whole, math.nan, math.nan, len(names), len(first), 0, *test)
    draws = numpy.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    counts = (draws[:, :, None] == numpy.arange(len(names))).sum(1)  # (resample, method)
    found = weighted_spearman(counts[:, member].astype(float), first, second)
    found = found[numpy.isfinite(found) & ((counts > 0).sum(1) > 1)]
    low, high = numpy.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(found) else (math.nan, math.nan)
    return Correlation(whole, float(low), float(high), len(names), len(first), len(found), *test)


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
    rows = [name.removesuffix("_accuracy") for name in attack_columns(runs)]
    named = [f"{row}_accuracy" for row in rows if not is_weak(row) and not row.startswith("worst_case")]
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


def tested_metrics(runs: pandas.DataFrame) -> list[str]:
    """List the metrics of the table of differences: accuracies on the test set, mean absolute and relative sensitivity.

    All tests of one table are corrected together.
    """
    return [name for name in (*attack_columns(runs), *MEASURES[:2]) if name in runs]


def one_a_seed(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Return the metrics of the finished runs, a row for each method and seed: the mean of several runs of a seed."""
    done = finished(runs)
    units = [done["method"].rename("method"), _seeds(done).rename("seed")]
    return done.groupby(units, sort=False)[metric_names(runs)].mean().reset_index()


def with_seed(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Select the runs whose seed is known, which alone can be paired."""
    return runs[runs["seed"] >= 0]


def _seeds(runs: pandas.DataFrame) -> pandas.Series:
    """Return the seed of each run, where it is unknown a negative number of its own."""
    own = pandas.Series(-1 - numpy.arange(len(runs)), index=runs.index)
    return runs["seed"].astype("int64").where(runs["seed"] >= 0, own)


def _untested(frame: pandas.DataFrame, rows: pandas.Series) -> pandas.DataFrame:
    """Take the tests of some rows out; the others are corrected anew."""
    return _corrected(frame.assign(**{name: frame[name].mask(rows) for name in ("p", "smallest_p")}))


def _corrected(frame: pandas.DataFrame) -> pandas.DataFrame:
    return frame.assign(holm_p=holm(frame["p"]).p)


def _noted(runs: pandas.DataFrame, column: str, accuracy: str, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the correlation, or a note why there is none."""
    measured = runs.dropna(subset=[column, accuracy])
    values = measured[column], measured[accuracy], measured["method"].tolist()
    try:
        found = rank_correlation(*values, resamples=resamples, seed=seed)
    except InputError as error:
        return {"methods": measured["method"].nunique(), "runs": len(measured), "note": str(error)}
    return {**found._asdict(), "note": "" if numpy.isfinite(found.correlation) else "all values are equal"}


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
