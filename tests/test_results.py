"""docs/results.md: made from its committed rows, every started run among them."""

from __future__ import annotations

import pytest

from benchmarks import common, methods


def test_the_page_is_made_from_the_committed_rows():
    assert methods.PAGE.read_text() == methods.page(methods.rows())


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
    assert common.spread([1.0, 2.0, 3.0]) == "2.00 +- 1.00"


@pytest.mark.parametrize("status", ["stopped", "started"])
def test_unfinished_runs_are_listed(status):
    row = {"stage": "confirm", "name": "pgd sns", "seed": 7, "status": status, "reason": "it broke", "commit": "a"}
    page = methods.page([row])
    assert page.endswith("## Unfinished runs: 1\n\n* confirm, pgd sns, seed 7: it broke\n")
