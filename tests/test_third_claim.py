"""docs/third_claim.md says what its committed rows say."""

from __future__ import annotations

from statistics import fmean, stdev

import numpy
import pandas
import pytest
from matplotlib.image import imread
from PIL import Image
from scipy.stats import spearmanr
from scipy.stats import t as student

from benchmarks import methods, third_claim


@pytest.fixture(scope="module")
def rows():
    return [row for row in methods.rows() if row["stage"] == "confirm"]


@pytest.fixture(scope="module")
def text() -> str:
    return third_claim.PAGE.read_text()


def test_the_page_and_its_plot_are_made_from_the_committed_rows(rows, text, tmp_path):
    assert text == third_claim.page(methods.rows())
    assert f"{len(rows)} runs," in text
    assert len(rows) == len(methods.OBJECTIVES) * 2 * len(methods.CONFIRM_SEEDS)
    plot = third_claim.drawn(third_claim.robustness, third_claim.comparison(third_claim.finished(rows)))
    third_claim.save(plot, tmp_path / "plot", ["png"])
    made, committed = imread(tmp_path / "plot.png"), imread(third_claim.PLOT)
    assert made.shape == committed.shape
    with Image.open(tmp_path / "plot.png") as one, Image.open(third_claim.PLOT) as other:
        same_release = one.info["Software"] == other.info["Software"]
    # releases of matplotlib place text differently
    assert numpy.abs(made - committed).mean() < (0.001 if same_release else 0.1)
    assert third_claim.PLOT.stat().st_size < 200_000


def sensitivity(row, measure: str, layer: str = "mean") -> float:
    place = {"absolute": 0, "relative": 1}[measure]
    found = row["sensitivity"]
    return fmean(values[place] for values in found.values()) if layer == "mean" else found[layer][place]


@pytest.mark.parametrize("measure", ["absolute", "relative"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("adversarial", [False, True])
def test_correlations_from_the_raw_rows(rows, text, measure, plain, adversarial):
    used = [
        row
        for row in rows
        if (row["name"].endswith("none") or not plain) and not (adversarial and row["name"].startswith("natural"))
    ]
    rho = spearmanr([sensitivity(row, measure) for row in used], [row["test/pgd_accuracy"] for row in used]).statistic
    among = "methods" + ", without SNS" * plain + ", adversarially trained" * adversarial
    count = len({row["name"] for row in used})
    line = next(line for line in text.splitlines() if line.startswith(f"* **{measure}**, {count} {among}:"))
    assert f", {rho:+.2f} [" in line
    assert "no trend is shown" in line and float(line.rpartition(" p ")[2]) > 0.05
    means = (
        pandas.DataFrame([(row["name"], sensitivity(row, measure), row["test/pgd_accuracy"]) for row in used])
        .groupby(0)
        .mean()
    )
    alone = spearmanr(means[1], means[2]).pvalue  # of the 40 correlations of the page
    assert float(line.rpartition(" p ")[2]) >= 0.9 * alone


def test_differences_to_natural_from_the_raw_rows(rows, text):
    """Paired t-tests, the smallest of 80 p values times 80, the next times 79 and never below it."""
    gaps = {}
    for measure in ("absolute", "relative"):
        for layer in ("mean", "relu1", "relu2", "relu3", "relu4"):
            values = {(row["name"], row["seed"]): sensitivity(row, measure, layer) for row in rows}
            for objective in methods.OBJECTIVES[1:]:
                pairs = [values[f"{objective} none", s] - values["natural none", s] for s in methods.CONFIRM_SEEDS]
                half = student.ppf(0.975, 4) * stdev(pairs) / 5**0.5
                p = 2 * student.sf(abs(fmean(pairs)) / (half / student.ppf(0.975, 4)), 4)
                gaps[measure, layer, objective] = fmean(pairs), p
    largest, signs = 0.0, {}
    for place, (key, (mean, p)) in enumerate(sorted(gaps.items(), key=lambda item: item[1][1])):
        largest = max(largest, (80 - place) * p)
        signs[key] = 0 if largest > 0.05 else -1 if mean < 0 else 1
    for layer in ("mean", "relu1", "relu2", "relu3", "relu4"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {layer} | "))
        shown = [cell.strip() for cell in line.split("|")[2:6]]
        for place, measure in ((0, "absolute"), (2, "relative")):
            found = {objective: signs[measure, layer, objective] for objective in methods.OBJECTIVES[1:]}
            assert shown[place] == ", ".join(str([*found.values()].count(sign)) for sign in (-1, 0, 1))
            assert shown[place + 1] == ", ".join(objective for objective, sign in found.items() if sign >= 0)
    first = text.split("\n\n")[2].replace("\n", " ")
    reduced = sum(sign < 0 for (_, layer, _), sign in signs.items() if layer == "mean")
    assert f"survives for {reduced} of 16 means over layers" in first and "2.4 to 9.6 points" in first


def test_sns_is_paired_with_its_own_objective(rows, text):
    none, sns = methods.without_and_with(rows, "pgd")
    assert f"| pgd | {methods.paired(none, sns, 'test/pgd_accuracy')} p " in text


def test_sentences_follow_the_intervals(rows):
    cases = [(-0.5, 0.05), (0.5, 0.01), (0.5, 0.06), (-0.9, float("nan"))]
    found = [third_claim.direction({"correlation": rho, "holm_p": p}) for rho, p in cases]
    assert found == ["decreases", "increases", "no trend is shown", "no trend is shown"]
    stopped = {**{key: rows[0][key] for key in ("stage", "name", "seed", "commit")}, "status": "stopped"}
    page = third_claim.page([{**stopped, "reason": "broke"}, *rows[1:]])
    assert page.endswith(f"## Unfinished runs: 1\n\n* confirm, {rows[0]['name']}, seed {rows[0]['seed']}: broke\n")
