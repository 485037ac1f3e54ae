"""docs/results.md: made from its committed rows, every started run among them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks import common, methods, results_page


def test_the_page_is_made_from_the_committed_rows():
    assert results_page.PAGE.read_text() == results_page.page(methods.rows())


def test_every_started_run_is_counted():
    rows = methods.rows()
    assert len(rows) == sum('"status": "started"' in line for line in methods.ROWS.read_text().splitlines())
    expected = len(methods.SELECT_SEEDS) * len(methods.CANDIDATES)
    expected += len(methods.CONFIRM_SEEDS) * len(methods.OBJECTIVES) * 2
    assert len([row for row in rows if row["stage"] != "fixed"]) == expected
    for row in rows:
        # the stage that selects has no test image in its rows
        assert any(key.startswith("test") for key in row) == (row["stage"] == "confirm" and row["status"] == "finished")


def test_runs_of_a_method_differ_only_in_the_seed():
    rows = [row for row in methods.rows() if row["stage"] != "fixed"]
    for stage, name in {(row["stage"], row["name"]) for row in rows}:
        runs = [row for row in rows if (row["stage"], row["name"]) == (stage, name)]
        assert len({row["config"] for row in runs if row["status"] == "finished"}) <= 1, name
        assert len({row["commit"] for row in runs}) == 1
        assert not any("+" in row["commit"] for row in runs)


def test_accuracies_are_those_of_the_images():
    for row in methods.rows():
        if row["stage"] == "confirm" and row["status"] == "finished":
            assert bin(int(row["correct_under_pgd"], 16)).count("1") == round(500 * row["test/pgd_accuracy"])
    assert methods.bits([1, 0, 0, 0, 1]) == "11"


def test_a_paired_difference_by_hand():
    none = {seed: {"x": value} for seed, value in enumerate((0.70, 0.72, 0.74))}
    sns = {seed: {"x": value} for seed, value in enumerate((0.72, 0.73, 0.77))}
    # differences 2, 1, 3: mean 2, standard deviation 1, t of 2 degrees of freedom 4.3027
    half = 4.302653 / 3**0.5
    assert methods.paired(none, sns, "x") == f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]"
    assert methods.paired(none, {0: sns[0]}, "x") == ""
    assert common.paired([2, 1, 3], np.array([[2, 2], [1, 1], [3, 3]])) == common.paired([2, 1, 3])  # images alike
    assert common.spread([1.0, 2.0, 3.0]) == "2.00 +- 1.00"


@pytest.mark.parametrize("status", ["stopped", "started"])
def test_unfinished_runs_are_listed(status):
    row = {"stage": "confirm", "name": "pgd sns", "seed": 7, "status": status, "reason": "it broke", "commit": "a"}
    page = results_page.page([row])
    assert page.endswith("## Unfinished runs: 1\n\n* confirm, pgd sns, seed 7: it broke\n")


def test_the_first_paragraph_has_the_tests_of_the_rows():
    """Holm's correction by hand, from the images of the rows."""
    p = {}
    for objective in methods.OBJECTIVES:
        none, sns = methods.without_and_with(methods.rows(), objective)
        gaps = [
            bin(int(sns[s]["correct_under_pgd"], 16)).count("1") / 5 - 100 * none[s]["test/pgd_accuracy"] for s in none
        ]
        p[objective] = ttest_rel(gaps, [0] * 5).pvalue
        images = methods.gained_images(none, sns)
        np.testing.assert_allclose(images.mean(1), gaps, atol=1e-9)
    order = sorted(p, key=p.get)
    corrected = {
        name: max(p[other] * (9 - place) for place, other in enumerate(order[: order.index(name) + 1])) for name in p
    }
    assert f"{corrected['pgd']:.2f}" == "0.17"
    shown = [name for name in p if corrected[name] <= 0.05]
    paragraph = results_page.PAGE.read_text().split("\n\n")[2].replace("\n", " ")
    assert "has Holm's p 0.17 over the 9 objectives" in paragraph and "2.4 to 9.6 points" in paragraph
    assert f"{2 / 2**5 * 9:.2g} after Holm's correction: n too small to decide" in paragraph
    assert f"survive for {', '.join(name for name in shown if name != 'natural')}." in paragraph
