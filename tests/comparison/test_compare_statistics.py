"""Means over seeds, paired differences and rank correlations against slow versions written from the definitions."""

from __future__ import annotations

from statistics import fmean, stdev

import numpy
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nsr.compare import compare
from nsr.comparison.inference import rank_permutation_test
from nsr.comparison.leaders import leads
from nsr.comparison.statistics import (
    correlations,
    over_seeds,
    paired_differences,
    rank_correlation,
    strongest_attack,
    weighted_spearman,
)
from nsr.comparison.tables import differences
from nsr.errors import InputError


def made(count: int = 5, seeds: int = 3, *, noise: float = 0.02) -> pandas.DataFrame:
    """Methods whose sensitivity falls with their robustness, but for layer b, where it rises."""
    draw = numpy.random.default_rng(0)
    objectives = ["natural", "fast", "pgd", "trades", "mart", "alp", "free", "nfgsm"][:count]
    rows = []
    for place, objective in enumerate(objectives):
        for seed in range(seeds):
            robust = 0.2 + 0.1 * place + noise * draw.standard_normal()
            sensitivity = 1 - robust + noise * draw.standard_normal()
            row = {"run": f"{objective}/{seed}", "method": objective, "objective": objective, "seed": seed}
            row |= {"stabilized": False, "adversarial": objective != "natural", "status": "finished"}
            row |= {"clean_accuracy": 0.9, "fgsm_accuracy": robust + 0.1, "pgd_accuracy": robust}
            row |= {"absolute": sensitivity, "absolute/a": sensitivity, "absolute/b": -sensitivity}
            row |= {"relative": sensitivity**2, "relative/a": sensitivity**2, "relative/b": 0.5}
            rows.append(row)
    return pandas.DataFrame(rows)


def test_means_and_deviations_over_finished_runs():
    runs = made()
    runs.loc[(runs["method"] == "pgd") & (runs["seed"] == 2), "status"] = "running"
    runs.loc[(runs["method"] == "fast") & (runs["seed"] == 1), "pgd_accuracy"] = numpy.nan
    table = over_seeds(runs).set_index("method")
    for method in table.index:
        values = [
            row["pgd_accuracy"]
            for row in runs.to_dict("records")
            if row["method"] == method and row["status"] == "finished" and row["pgd_accuracy"] == row["pgd_accuracy"]
        ]
        assert table.loc[method, "pgd_accuracy"] == pytest.approx(fmean(values), rel=1e-12)
        assert table.loc[method, "pgd_accuracy_std"] == pytest.approx(stdev(values), rel=1e-12)
        assert table.loc[method, "pgd_accuracy_n"] == len(values)
    assert table["runs"].tolist() == [3] * 5
    assert table["finished"].tolist() == [3, 3, 2, 3, 3]
    single = over_seeds(runs[runs["seed"] == 0])
    assert single["pgd_accuracy_std"].isna().all()


@pytest.mark.parametrize("copies", [1, 4])
def test_runs_of_one_seed_are_one_seed(copies):
    """A run that was copied or started again makes no deviation smaller, no n larger and weighs no more."""
    runs = made()
    again = runs[(runs["method"] == "pgd") & (runs["seed"] == 1)]
    repeated = pandas.concat([runs, *[again] * copies], ignore_index=True)
    repeated["run"] = repeated.index.astype(str)
    expected, found = (compare(frame, resamples=100) for frame in (runs, repeated))
    for one, other in zip(expected[1:4], found[1:4], strict=True):
        pandas.testing.assert_frame_equal(one, other, rtol=1e-12)
    assert not expected.notes and found.notes == ["several runs of a seed count as their mean: pgd"]
    unknown = over_seeds(repeated.assign(seed=-1)).set_index("method")
    assert unknown.loc["pgd", "finished"] == 3 + copies, "two runs whose seed is unknown are two"


def test_pairs_are_of_equal_seeds():
    base = {"status": "finished", "objective": "pgd", "stabilized": False, "adversarial": True}
    values = {"pgd": {0: 0.70, 1: 0.72, 2: 0.74, 7: 0.10}, "sns": {2: 0.77, 1: 0.73, 0: 0.72, 8: 0.99}}
    rows = [
        {**base, "method": method, "seed": seed, "pgd_accuracy": value}
        for method, found in values.items()
        for seed, value in found.items()
    ]
    # a repeated seed counts once, as its mean; a run that has not finished does not
    rows[-1:] = [{**rows[-1], "seed": 0, "pgd_accuracy": 0.72}, {**rows[-1], "seed": 7, "status": "failed"}]
    (row,) = paired_differences(pandas.DataFrame(rows), "pgd").to_dict("records")
    assert (row["over"], row["p"], row["holm_p"]) == ("seeds", 0.25, 0.25)  # 2 of 2**3 choices of signs
    # differences 2, 1, 3 points: mean 2, standard deviation 1, t of 2 degrees of freedom 4.3027
    half = 4.302653 / 3**0.5
    assert (row["method"], row["baseline"], row["metric"], row["pairs"]) == ("sns", "pgd", "pgd_accuracy", 3)
    assert [100 * row[name] for name in ("difference", "low", "high")] == pytest.approx([2, 2 - half, 2 + half], 1e-6)


def test_unknown_seeds_are_no_pairs():
    """Runs without a seed have means, and nothing that is paired: neither a difference nor a lead."""
    runs = made()
    runs.loc[runs["method"] == "fast", "seed"] = -1
    found = paired_differences(runs.assign(seed=-1), "pgd")
    assert (found["pairs"] == 0).all() and found["difference"].isna().all()
    found = paired_differences(runs, "pgd").set_index("method")
    assert (found.loc["fast", "pairs"] == 0).all() and (found.drop(index="fast")["pairs"] == 3).all()
    methods = over_seeds(runs)
    lead, decision = leads(runs.assign(seed=-1), methods, ["pgd_accuracy"])
    assert lead["pgd_accuracy"].pairs == 0 and decision.comparisons == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("infinite", [1, 7])
def test_infinite_sensitivities_have_no_test(infinite):
    """A layer that is silent on clean images alone has an infinite relative sensitivity: no p value is made of it."""
    runs = made(3, 7)
    chosen = runs.index[runs["method"] == "fast"][:infinite]
    runs = runs.assign(relative=runs["absolute"])
    runs.loc[chosen, "relative"] = numpy.inf
    result = compare(runs, resamples=100)
    found = result.differences.set_index(["method", "metric"])
    assert numpy.isnan(found.loc[("fast", "relative"), ["low", "high", "p", "holm_p"]].astype(float)).all()
    assert found.loc[("fast", "absolute"), "p"] > 0
    assert numpy.isinf(result.methods.set_index("method").loc["fast", "relative"])


def test_a_difference_of_fewer_pairs_says_so():
    runs = made(3, 4)
    runs.loc[(runs["method"] == "fast") & (runs["seed"] > 1), "pgd_accuracy"] = numpy.nan
    sheet = differences(compare(runs, resamples=100))
    row = next(row for row in sheet.rows if row[0].text == "fast")
    fewer = [name for name, cell in zip(sheet.headings, row, strict=True) if "(of 2)" in cell.text]
    assert row[1].text == "4" and len(fewer) == 1 and fewer[0].startswith("PGD")


def test_one_pair_has_no_interval_and_none_no_difference():
    runs = made()
    chosen = runs[(runs["method"] != "fast") | (runs["seed"] == 0)]
    one = paired_differences(chosen, "pgd").set_index(["method", "metric"])
    found = one.loc[("fast", "pgd_accuracy")]
    assert found["pairs"] == 1 and found["difference"] < 0
    assert numpy.isnan(found["low"]) and numpy.isnan(found["high"])
    runs.loc[runs["method"] == "fast", "seed"] += 10
    none = paired_differences(runs, "pgd").set_index(["method", "metric"]).loc[("fast", "pgd_accuracy")]
    assert none["pairs"] == 0 and numpy.isnan(none["difference"])


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_weights_are_repetitions(data):
    runs = data.draw(st.integers(2, 8))
    values = st.lists(st.integers(0, 4), min_size=runs, max_size=runs)  # many are equal
    first, second = (numpy.array(data.draw(values), dtype=float) for _ in range(2))
    weights = numpy.array([data.draw(st.lists(st.integers(0, 3), min_size=runs, max_size=runs)) for _ in range(3)])
    weights[0] = 1
    weights[:, 0] += 1  # never empty
    found = weighted_spearman(weights.astype(float), first, second)
    for weight, value in zip(weights, found, strict=True):
        one, two = first.repeat(weight), second.repeat(weight)
        if len(set(one)) == 1 or len(set(two)) == 1:
            assert numpy.isnan(value)
        else:
            assert value == pytest.approx(spearmanr(one, two).statistic, abs=1e-9)


@pytest.mark.slow
def test_the_bootstrap_draws_methods_with_all_their_runs():
    """Against a loop that puts the drawn methods' runs one after the other."""
    runs = made(8, noise=0.3)
    runs = runs.drop(index=[1, 2])  # a method of one seed
    found = rank_correlation(runs["absolute"], runs["pgd_accuracy"], runs["method"].tolist(), resamples=300, seed=5)
    assert found.correlation == pytest.approx(spearmanr(runs["absolute"], runs["pgd_accuracy"]).statistic)
    names = sorted(set(runs["method"]))
    slow = []
    for drawn in numpy.random.default_rng(5).integers(8, size=(300, 8)):
        sample = pandas.concat([runs[runs["method"] == names[place]] for place in drawn])
        if sample["method"].nunique() > 1:
            slow.append(spearmanr(sample["absolute"], sample["pgd_accuracy"]).statistic)
    assert found.resamples == len(slow)
    assert [found.low, found.high] == pytest.approx(numpy.quantile(slow, [0.025, 0.975]).tolist())
    assert (found.methods, found.runs) == (8, 22)
    again = rank_correlation(runs["absolute"], runs["pgd_accuracy"], runs["method"].tolist(), resamples=300, seed=5)
    assert again == found
    means = runs.groupby("method")[["absolute", "pgd_accuracy"]].mean()
    assert (found.p, found.smallest_p) == rank_permutation_test(*means.to_numpy().T, seed=5)
    few = rank_correlation(*(runs[name][:19] for name in ("absolute", "pgd_accuracy", "method")))
    assert few.methods == 7 and numpy.isnan([few.low, few.high]).all() and few.p < 1


def test_fewer_than_three_methods_are_refused():
    runs = made(2)
    with pytest.raises(InputError, match="a rank correlation needs at least 3 methods; there are 2"):
        rank_correlation(runs["absolute"], runs["pgd_accuracy"], runs["method"].tolist())
    runs = made(3)  # natural and two others: too few among the adversarially trained alone
    found = correlations(runs, "pgd_accuracy").set_index(["among", "measure", "layer"])
    assert found.loc[("all runs", "absolute", "mean"), "correlation"] < 0
    row = found.loc[("adversarially trained", "absolute", "mean")]
    assert numpy.isnan(row["correlation"])
    assert row["note"] == "a rank correlation needs at least 3 methods; there are 2"


def test_correlations_of_each_layer_and_of_the_adversarially_trained():
    runs = made()
    runs.loc[runs["method"] == "natural", ["absolute", "absolute/a"]] = -1.0  # natural alone turns the order
    found = correlations(runs, "pgd_accuracy", resamples=200).set_index(["among", "measure", "layer"])
    adversarial = runs[runs["method"] != "natural"]
    for among, chosen in (("all runs", runs), ("adversarially trained", adversarial)):
        for measure in ("absolute", "relative"):
            for layer, column in (("mean", measure), ("a", f"{measure}/a"), ("b", f"{measure}/b")):
                row = found.loc[(among, measure, layer)]
                if column == "relative/b":
                    assert numpy.isnan(row["correlation"])
                    assert row["note"] == "all values are equal"
                    continue
                assert row["correlation"] == pytest.approx(spearmanr(chosen[column], chosen["pgd_accuracy"]).statistic)
                assert (row["methods"], row["runs"]) == (chosen["method"].nunique(), len(chosen))
    assert found["low"].isna().all()  # five methods
    assert found.loc[("adversarially trained", "absolute", "mean"), "p"] == pytest.approx(2 / 24)
    assert found["smallest_p"].dropna().unique().tolist() == pytest.approx([2 / 120, 2 / 24])
    unfinished = runs.assign(status=["failed"] * 3 + ["finished"] * 12)
    again = correlations(unfinished, "pgd_accuracy", resamples=200).set_index(["among", "measure", "layer"])
    assert again.loc[("all runs", "absolute", "mean"), "runs"] == 12


def test_robustness_is_read_from_the_strongest_attack_that_all_runs_have():
    runs = made().assign(autoattack_accuracy=0.01, worst_case_accuracy=0.0)
    assert strongest_attack(runs) == "autoattack_accuracy"
    runs.loc[3, "autoattack_accuracy"] = numpy.nan
    assert strongest_attack(runs) == "pgd_accuracy"
    assert strongest_attack(runs.assign(status="running")) is None
    assert compare(runs).accuracy == "pgd_accuracy"
    assert compare(runs, accuracy="fgsm").accuracy == "fgsm_accuracy"


def test_the_baseline_is_pgd_training_alone_else_the_first():
    runs = made()
    assert compare(runs).baseline == "pgd"
    assert compare(runs[runs["method"] != "pgd"]).baseline == "natural"
    assert compare(runs.assign(stabilized=runs["method"] == "pgd")).baseline == "natural"
    assert set(compare(runs, baseline="mart").differences["method"]) == {"natural", "fast", "pgd", "trades"}


def test_a_worst_case_over_other_attacks_is_left_out():
    runs = made().assign(worst_case_accuracy=0.1, worst_case_of="clean, pgd")
    assert "worst_case_accuracy" in compare(runs).methods
    runs.loc[0, "worst_case_of"] = "clean, autoattack"
    result = compare(runs)
    assert "worst_case_accuracy" not in result.methods
    assert result.notes == ["worst case left out: it covers different attacks in different runs"]
    runs.loc[0, "status"] = "failed"  # unfinished runs do not count
    assert "worst_case_accuracy" in compare(runs).methods


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "pdg"}, r"baseline is 'pdg'; .*did you mean 'pgd'"),
        ({"accuracy": "autoattack"}, "accuracy is 'autoattack'; it must be one of clean, fgsm, pgd"),
        ({"labels": {"pdg": "x"}}, r"label is 'pdg'; .*did you mean 'pgd'"),
        ({"labels": {"pgd": "mart"}}, "label 'mart' is given to several methods"),
        ({"labels": {"pgd": "x", "mart": "x"}}, "label 'x' is given to several methods"),
        ({"resamples": 10}, "resamples is 10; it must be a whole number at least 100"),
    ],
)
def test_wrong_choices(arguments, message):
    with pytest.raises(InputError, match=message):
        compare(made(), **arguments)
