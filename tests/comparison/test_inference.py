"""Permutation tests against scipy, Holm's correction by hand, intervals by coverage, tables without any effect."""

from __future__ import annotations

import numpy
import pandas
import pytest
from scipy.stats import permutation_test, spearmanr, t

from nsr.compare import compare, read_runs
from nsr.comparison.inference import holm, paired_interval, rank_permutation_test, sign_flip_test
from nsr.comparison.tables import correlated, differences
from nsr.comparison.writing import latex, markdown, show
from nsr.run.files import write_rows
from tests.comparison.test_compare_statistics import made
from tests.made_runs import make_evaluation, make_run


def test_holm_by_hand():
    found = holm([0.01, 0.04, float("nan"), 0.03, 0.005], [0.002] * 5)
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1, never below the one before
    assert found.p == pytest.approx([0.03, 0.06, numpy.nan, 0.06, 0.02], nan_ok=True)
    assert found.comparisons == 4 and found.smallest_p == pytest.approx(0.008) and found.is_possible
    assert holm([0.6, 0.7]).p.tolist() == [1, 1]
    assert not holm([]).is_possible and holm([]).sentence("seeds") == ""
    assert holm([0.0625], [0.0625]).sentence("seeds").startswith("n too small to decide: with so few seeds")


def test_the_audited_gain_over_pgd_does_not_survive():
    """Five seeds, nine objectives: +1.88 [+0.32, +3.44] has p 0.029 alone and 0.17 corrected (paired t-tests)."""
    p = 2 * t.sf(1.88 / ((3.44 - 0.32) / 2 / t.ppf(0.975, 4)), 4)
    assert p == pytest.approx(0.0288, abs=5e-4)
    assert holm([1e-5, 0.0004, 0.001, p, 0.2, 0.3, 0.4, 0.5, 0.9]).p[3] == pytest.approx(0.17, abs=0.005)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.5, -0.2, 0.9, 0.0, 1.1, 0.4], [0.0, 0.0], [0.1] * 6])
def test_sign_flips_against_scipy(values):
    found = sign_flip_test(numpy.array(values))
    expected = permutation_test((values,), numpy.mean, permutation_type="samples", n_resamples=numpy.inf)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.smallest_p == 2 / 2 ** len(values)


@pytest.mark.parametrize("methods", [3, 5, 6])
def test_rank_permutations_against_scipy(methods):
    first, second = numpy.random.default_rng(methods).standard_normal((2, methods)).round(0 if methods == 6 else 9)
    found = rank_permutation_test(first, second)
    every = permutation_test(
        (first,), lambda one: spearmanr(one, second).statistic, permutation_type="pairings", n_resamples=numpy.inf
    ).null_distribution
    assert found.p == pytest.approx((abs(every) >= abs(spearmanr(first, second).statistic) - 1e-9).mean())


def test_many_seeds_and_methods_are_sampled():
    found = sign_flip_test(numpy.linspace(-1, 3, 14))  # 16,384 choices of signs
    assert found.p == pytest.approx(sign_flip_exact(numpy.linspace(-1, 3, 14)), abs=0.003)
    assert found.smallest_p == rank_permutation_test(numpy.arange(12.0), numpy.arange(12.0)).p == 1e-4
    assert numpy.isnan(sign_flip_test(numpy.ones(1)).p) and numpy.isnan(rank_permutation_test(*numpy.ones((2, 4))).p)


def sign_flip_exact(values: numpy.ndarray) -> float:
    sums = numpy.zeros(1)
    for value in values:
        sums = numpy.concatenate([sums + value, sums - value])
    return float((abs(sums) >= abs(values.sum()) - 1e-9).mean())


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_seeds_and_images_covers_other_seeds_and_images(seeds):
    """Over seeds alone it misses the effect in other images; a percentile bootstrap would with few seeds too."""
    draw, covered, alone = numpy.random.default_rng(seeds), 0, 0
    for _ in range(400):
        chance = 0.05 * draw.standard_normal((seeds, 1)) + 0.3 * draw.standard_normal((1, 100))
        images = numpy.sign(chance + draw.uniform(-0.7, 0.7, (seeds, 100))) * (draw.random((seeds, 100)) < 0.5)
        found, plain = paired_interval(images.mean(1), images), paired_interval(images.mean(1))
        covered += found["low"] <= 0 <= found["high"]
        alone += plain["low"] <= 0 <= plain["high"]
        assert found["high"] - found["low"] >= plain["high"] - plain["low"]
    assert covered / 400 >= 0.94
    assert alone < covered


def test_tables_without_any_effect_show_one_in_at_most_five_percent():
    draw, shown = numpy.random.default_rng(0), 0
    for _ in range(300):
        differences_of_seeds = draw.standard_normal((4, 8)) - draw.standard_normal(8)  # paired with one baseline
        shown += bool((holm(sign_flip_test(each).p for each in differences_of_seeds).p <= 0.05).any())
    assert shown <= 24  # 15 expected at most, standard deviation 3.8


def test_tables_that_cannot_decide_say_so(capsys):
    result = compare(made(5, 5), resamples=100)
    tables = differences(result), correlated(result)
    for table in tables:
        assert table.note.startswith("n too small to decide: with so few")
        assert not any(cell.best or " p " in cell.text for row in table.rows for cell in row)
    assert "other seeds on the same images; not to other data" in tables[0].note
    show(result)
    for text in (capsys.readouterr().out, markdown(result), latex(result)):
        assert text.count("n too small to decide") == 3  # bold means have a dagger by the same rule
    table = differences(compare(made(3, 10), resamples=100))
    assert "Holm's correction over 10 comparisons" in table.note
    cells = {row[0].text: row for row in table.rows}["fast"]
    assert cells[4].best and cells[4].text.endswith("p 0.02")  # pgd, 10 points: 10 * 2 / 2**10
    assert not cells[2].best and cells[2].text.endswith("p 1")  # clean: equal


def test_images_of_every_run_widen_the_interval(tmp_path):
    """images.csv of the run, or of the evaluation that an accuracy comes from."""
    draw = numpy.random.default_rng(0)
    correct = draw.random((2, 3, 40)) < numpy.array([0.5, 0.7])[:, None, None]  # (method, seed, image)
    for place, objective in enumerate(("pgd", "trades")):
        for seed in range(3):
            run, own = tmp_path / f"{objective}{seed}", correct[place, seed]
            make_run(run, f"objective={objective}", "stabilizer=none", seed=seed, accuracies={"pgd": own.mean()})
            folder = run
            if place:
                folder = make_evaluation(run, "2030", {"clean": 0.9, "pgd": own.mean()})
                write_rows(run / "images.csv", ["image", "pgd"], [[0, 1]])  # of another measurement
            rows = [[image, "a.png", int(flag)] for image, flag in enumerate(own)]
            write_rows(folder / "images.csv", ["image", "file", "pgd"], rows)
    found = compare(read_runs(tmp_path), baseline="pgd").differences.set_index("metric")
    each = correct[1].astype(float) - correct[0]
    variance = numpy.var(each.mean(1), ddof=1) / 3 + numpy.var(each.mean(0), ddof=1) / 40
    half = t.ppf(0.975, 2) * variance**0.5
    assert found.loc["pgd_accuracy", "over"] == "seeds and images"
    assert found.loc["pgd_accuracy", "high"] == pytest.approx(each.mean() + half)
    assert found.loc["absolute", "over"] == found.loc["clean_accuracy", "over"] == "seeds"
    (tmp_path / "pgd0" / "images.csv").write_text("image,pgd\n0,\x00")
    found = compare(read_runs(tmp_path), baseline="pgd").differences.set_index("metric")
    assert isinstance(found, pandas.DataFrame) and found.loc["pgd_accuracy", "over"] == "seeds"
