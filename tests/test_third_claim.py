"""docs/third_claim.md says what its committed rows say."""

from __future__ import annotations

from statistics import fmean, stdev

import numpy
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
    low, high = (float(bound) for bound in line.partition("[")[2].rstrip("]").split(", "))
    assert ("decreases" in line, "increases" in line) == (high < 0, low > 0)


@pytest.mark.parametrize("measure", ["absolute", "relative"])
@pytest.mark.parametrize("layer", ["mean", "relu1", "relu2", "relu3", "relu4"])
def test_differences_to_natural_from_the_raw_rows(rows, text, measure, layer):
    by_name = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["seed"]] = sensitivity(row, measure, layer)
    counts, not_lower = [0, 0, 0], []
    for objective in methods.OBJECTIVES[1:]:
        gaps = [value - by_name["natural none"][seed] for seed, value in by_name[f"{objective} none"].items()]
        half = student.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5
        kind = 0 if fmean(gaps) + half < 0 else 2 if fmean(gaps) - half > 0 else 1
        counts[kind] += 1
        not_lower += [objective] if kind else []
    line = next(line for line in text.splitlines() if line.startswith(f"| {layer} | "))
    shown = [cell.strip() for cell in line.split("|")[2:6]]
    place = 0 if measure == "absolute" else 2
    assert shown[place] == ", ".join(map(str, counts))
    assert shown[place + 1] == ", ".join(not_lower)


def test_sns_is_paired_with_its_own_objective(rows, text):
    none, sns = methods.without_and_with(rows, "pgd")
    assert f"| pgd | {methods.paired(none, sns, 'test/pgd_accuracy')} |" in text


def test_sentences_follow_the_intervals(rows):
    bounds = [(-0.5, -0.1), (0.1, 0.5), (-0.1, 0.5), (float("nan"), float("nan"))]
    found = [third_claim.direction({"low": low, "high": high}) for low, high in bounds]
    assert found == ["decreases", "increases", "shows no trend", "shows no trend"]
    stopped = {**{key: rows[0][key] for key in ("stage", "name", "seed", "commit")}, "status": "stopped"}
    page = third_claim.page([{**stopped, "reason": "broke"}, *rows[1:]])
    assert page.endswith(f"## Unfinished runs: 1\n\n* confirm, {rows[0]['name']}, seed {rows[0]['seed']}: broke\n")
