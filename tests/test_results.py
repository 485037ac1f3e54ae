"""docs/results.md is what its committed rows say, every started run among them."""

from __future__ import annotations

import pytest

from benchmarks import methods


def test_the_page_is_made_from_the_committed_rows():
    assert methods.TABLE.read_text() == methods.page(methods.rows())


def test_every_run_that_was_started_is_on_the_page():
    lines = methods.ROWS.read_text().splitlines()
    rows = methods.rows()
    assert len(rows) == sum('"status": "started"' in line for line in lines)
    expected = len(methods.SELECT_SEEDS) * len(methods.CANDIDATES)
    expected += len(methods.CONFIRM_SEEDS) * len(methods.OBJECTIVES) * 2
    assert len([row for row in rows if row["stage"] != "fixed"]) == expected
    text = methods.TABLE.read_text()
    for row in rows:
        if row["status"] != "finished":
            assert f"{row['stage']}, {row['name']}, seed {row['seed']}: " in text


def test_what_selects_has_seen_no_test_image():
    for row in methods.rows():
        assert any(key.startswith("test") for key in row) == (row["stage"] == "confirm" and row["status"] == "finished")


def test_runs_of_a_row_differ_in_nothing_but_the_seed():
    for stage in ("select", "confirm"):
        for name, runs in methods.by_name(methods.rows(), stage).items():
            assert len({row["config"] for row in runs if row["status"] == "finished"}) <= 1, name
            assert len({row["commit"] for row in runs}) == 1
            assert not any("+" in row["commit"] for row in runs)


def test_accuracies_are_those_of_the_images():
    finished = [row for row in methods.rows() if row["stage"] == "confirm" and row["status"] == "finished"]
    for row in finished:
        assert bin(int(row["right_under_pgd"], 16)).count("1") == round(500 * row["test/pgd_accuracy"])
    assert methods.bits([1, 0, 0, 0, 1]) == "11"


def test_a_paired_difference_by_hand():
    none = {seed: {"x": value} for seed, value in enumerate((0.70, 0.72, 0.74))}
    sns = {seed: {"x": value} for seed, value in enumerate((0.72, 0.73, 0.77))}
    # differences 2, 1, 3: mean 2, standard deviation 1, t of 2 degrees of freedom 4.3027
    half = 4.302653 / 3**0.5
    assert methods.paired(none, sns, "x") == f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]"
    assert methods.paired(none, {0: sns[0]}, "x") == ""
    assert methods.spread([1.0, 2.0, 3.0]) == "2.00 +- 1.00"


def test_unfinished_runs_are_told():
    row = {"stage": "confirm", "name": "pgd sns", "seed": 7, "status": "stopped", "reason": "it broke", "commit": "a"}
    text = methods.page([row, {**row, "seed": 8, "status": "started", "reason": None} | {"reason": "started"}])
    assert "## Runs without figures: 2" in text
    assert "* confirm, pgd sns, seed 7: it broke" in text


@pytest.mark.parametrize("arguments", [[], ["all"]])
def test_the_command_explains_itself(arguments):
    with pytest.raises(SystemExit, match="give one of select, confirm, table"):
        methods.main(arguments)
