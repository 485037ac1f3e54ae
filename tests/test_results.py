"""docs/results.md: made from the committed rows, saying no more than their tests."""

from __future__ import annotations

from math import nan
from xml.etree import ElementTree

import numpy
import pandas
import pytest
from scipy.stats import spearmanr

from benchmarks.common import DOCS, RESULTS
from benchmarks.evidence import claim2, claim3, figure, limits, page, variants
from benchmarks.evidence.findings import Contrast, Study, accuracy, between, by_arm, contrast, study, within


@pytest.fixture(scope="module")
def studies():
    return [study(name) for name in page.PLANS]


@pytest.fixture(scope="module")
def methods():
    return study(page.METHODS)


@pytest.fixture(scope="module")
def tried():
    return study(page.VARIANTS)


def made(plan, found) -> Study:
    return Study(plan, found, by_arm(found))


def test_the_page_is_made_from_the_committed_rows(studies, methods, tried):
    assert page.PAGE.read_text() == page.page(studies, methods, tried)
    assert limits.PAGE.read_text() == limits.page(*studies, methods)


def test_the_figure_shows_the_contrasts_of_the_page(studies):
    """Its markers and lines lie at the numbers of the tables; the committed file is of these rows."""
    drawn, text = figure.figure(studies), page.PAGE.read_text()
    for one, panel in zip(filter(figure.shown, studies), drawn.axes, strict=True):
        lines = [line.get_xdata() for line in panel.lines[1:]]
        for (label, each, tested), (low, high), (middle,) in zip(
            figure.shown(one), lines[::2], lines[1::2], strict=True
        ):
            assert (low, middle, high) == (each.low, each.difference, each.high)
            assert each.text() in text and label.partition(":")[0] in one.plan["objectives"]
            assert tested == ("SNS - none" in label)
    description = ElementTree.parse(figure.PATH).find(".//{http://purl.org/dc/elements/1.1/}description")
    assert description.text == figure.numbers(studies)


def test_a_page_without_rows_decides_nothing(studies, methods, tried):
    *empty, without_methods = [made(one.plan, []) for one in (*studies, methods)]
    text = page.page(empty, without_methods, made(tried.plan, []))
    assert "not measured yet" in limits.page(*empty, without_methods)
    assert "No run is complete." in text and "was shown" not in text.partition("## What was found before")[0]


def test_rows_are_of_one_set_of_images_and_data(studies, methods):
    for one in (*studies, methods):
        confirmed = [row for row in one.finished if row["stage"] == "confirm"]
        assert len({row["best"]["images"] for row in confirmed}) <= 1
        assert len({row["data"] for row in one.finished}) <= 1
        assert not any("+" in row["commit"] for row in one.rows)
        for row in one.finished:
            if row["stage"] == "confirm":
                assert accuracy(row, "worst_case") == pytest.approx(100 * row["best"]["accuracy"]["worst_case"])


def test_unfinished_runs_are_listed(studies, methods, tried):
    row = {"stage": "confirm", "title": "confirm pgd sns seed 7", "status": "stopped", "reason": "it broke"}
    text = page.page([made(studies[0].plan, [row])], made(methods.plan, []), made(tried.plan, []))
    assert text.endswith(
        "## Started, not finished: 1\n\n* Fashion-MNIST, small network: confirm pgd sns seed 7: it broke\n"
    )


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [
        (1, nan, "undecided"),
        (1, 0.06, "no gain was shown"),
        (1, 0.01, "a gain was shown"),
        (-1, 0.01, "a loss was shown"),
    ],
)
def test_a_verdict_says_what_its_test_says(difference, p, said):
    assert claim2.verdict(Contrast(10, difference, 0, 0, p, 0.002), p) == said


def drawn(shift: float, objective: str = "pgd", arm: str = "none", *, seeds=range(10)) -> list[dict]:
    """Runs whose networks are more accurate and less sensitive by `shift` and the seed."""
    found = []
    for seed in seeds:
        flags = numpy.arange(400) < 200 + 100 * shift + seed
        digits = numpy.packbits(flags).tobytes().hex()
        best = {"correct": dict.fromkeys(("clean", "apgd_ce", "apgd_t", "square"), digits), "n_images": 400}
        best["sensitivity"] = {"relu1": [1 - 0.2 * shift - 0.01 * seed, 0.5 - 0.2 * shift - 0.01 * seed, 1]}
        identity = {"stage": "confirm", "objective": objective, "arm": arm, "seed": 200 + seed, "status": "finished"}
        more = {"commit": "a", "machine": "b", "data": "c", "cpu_seconds": 1, "train_cpu_seconds": 1}
        found.append({**identity, **more, "best": best, "last": "best"})
    return found


def untuned(studies) -> dict:
    """A plan without tuning runs."""
    return next(one.plan for one in studies if one.plan["name"] == "cifar10_jpeg")


def test_a_contrast_is_tested_when_all_its_seeds_are_there(studies):
    plan = {**untuned(studies), "objectives": {"pgd": []}}
    complete = made(plan, drawn(0) + drawn(0.2, arm="sns"))
    assert claim2.primary(complete)["pgd"][0].difference == pytest.approx(5)
    assert "a gain was shown for pgd (+5.00 [" in " ".join(claim2.short(complete))
    assert "1 shows a gain (pgd on " in " ".join(claim2.advice([complete]))
    same = made(plan, drawn(0) + drawn(0, arm="sns"))
    assert "none shows a gain and none shows a loss." in " ".join(claim2.advice([same]))
    partial = made(plan, drawn(0) + drawn(0.2, arm="sns", seeds=range(9)))
    assert "undecided for pgd (+5.00 [" in " ".join(claim2.short(partial)) and not claim2.advice([partial])
    assert contrast({}, {}).text() == ""


def test_the_readme_says_what_the_page_says(studies):
    for one in studies:
        if one.plan["name"] in ("fashion_mnist", "digits"):
            found, p = claim2.primary(one)["pgd"]
            assert (found.n, claim2.verdict(found, p)) == (10, "no gain was shown")
    text = " ".join((DOCS.parent / "README.md").read_text().split())
    assert "On Fashion-MNIST ten seeds under three attacks showed no gain of SNS over PGD training alone" in text
    assert "ten seeds on digits showed no gain either" in text


def test_variants_are_compared_with_none_at_equal_seeds(tried):
    def run(arm: str, seed: int, robust: float) -> dict:
        identity = {"stage": "tune", "status": "finished", "objective": "pgd", "arm": arm, "seed": seed, "setting": ""}
        return {**identity, "best_epoch": 1, "validation_robust": [0, robust]}

    plan = {**tried.plan, "arms": {"none": [], "sns": []}, "tuning": {"seeds": [0, 1], "none": [[]], "sns": [[]]}}
    found = [run("none", 0, 0.5), run("none", 1, 0.6), run("sns", 0, 0.51), run("sns", 1, 0.63)]
    assert variants.differences(made(plan, found), "sns").tolist() == pytest.approx([1, 3])
    half = 12.706 * 2**0.5 / 2**0.5  # Student's t of one degree of freedom
    assert f"{2:+.2f} [{2 - half:+.2f}, {2 + half:+.2f}]" in "".join(variants.section(made(plan, found)))
    assert "undecided" in " ".join(variants.short(made(plan, found[:3])))


def test_correlations_are_those_of_scipy(studies):
    members = [by_arm(drawn(shift))["pgd", "none"] for shift in (0, 0.2, 0.1, 0.5, 0.3)]
    for measure in ("absolute", "relative"):
        assert between(members, measure)[0] == pytest.approx(-1)
        rho, test = within(members, measure)
        assert rho == pytest.approx(-1) and test.p == test.smallest_p < 0.001
    runs = studies[0].runs
    own = [list(runs[name, "none"].values()) for name in ("pgd", "fast")]
    values = [
        [
            ([sum(v[0] for v in layers) for layers in (row["best"]["sensitivity"].values() for row in rows)])
            for rows in own
        ]
    ]
    robust = [[accuracy(row, "worst_case") for row in rows] for rows in own]
    if min(map(len, robust)) > 2:
        expected = numpy.mean([spearmanr(*pair).statistic for pair in zip(values[0], robust, strict=True)])
        assert within([runs[name, "none"] for name in ("pgd", "fast")], "absolute")[0] == pytest.approx(expected)


def test_the_third_claim_is_tested_when_its_runs_are_complete(studies):
    names = ("natural", "pgd", "fast", "free", "mart", "alp")
    plan = {**untuned(studies), "objectives": {name: [] for name in names}}
    found = [row for place, name in enumerate(names) for row in drawn(place / 5, name) + drawn(place / 5, name, "sns")]
    said = " ".join(" ".join(claim3.short(made(plan, found))).split())
    assert "absolute sensitivity is lower than after natural training for 5 of 5 methods" in said
    assert "a correlation of sensitivity with robustness within methods is shown for known" in said
    assert "undecided" in " ".join(claim3.short(made(plan, found[1:])))


def test_a_plan_of_more_methods_takes_the_place_of_those_whose_runs_it_has(studies, methods):
    """When its own runs are complete; the runs of the others are in its tests."""
    of_plan = {**methods.plan, "objectives": {"mart": []}}
    own = drawn(0.2, "mart") + drawn(0, "natural")
    others = {key: runs for one in studies if one.plan["name"] in of_plan["with"] for key, runs in one.runs.items()}
    joined = Study(of_plan, own, {**others, **by_arm(own)})
    found = claim3.plans(studies, joined)
    assert [one.plan["name"] for one in found] == ["fashion_mnist_methods", "cifar10_jpeg", "digits"]
    assert {("mart", "none"), ("pgd", "none"), ("trades", "sns")} <= methods.runs.keys() | joined.runs.keys()
    partial = Study(of_plan, own[1:], {**others, **by_arm(own[1:])})
    assert [one.plan["name"] for one in claim3.plans(studies, partial)] == ["fashion_mnist", "cifar10_jpeg", "digits"]


def test_the_settings_of_the_stabilizer_have_the_stated_differences():
    """docs/stabilizer.md: validated robust accuracy minus that of none, mean over the same seeds, points."""
    rows = pandas.read_csv(RESULTS / "stabilizer_settings.csv")
    means = 100 * rows.pivot(index="setting", columns="seed", values="validated_robust").mean(axis=1)
    gained = means - means["none"]
    text = (DOCS / "stabilizer.md").read_text()
    at = "weight 2, top 0.3"
    stated = {
        "0.1 {}, 0.3 {}, all {}": ["weight 1, top 0.1", "weight 1, top 0.3", "weight 1, top 1.0"],
        "batch {}, average {}, epoch {}, once {}": [at, *(f"{at}, refresh {x}" for x in ("average", "epoch", "once"))],
        "l1 {}, l2 {}, cosine on feature maps {}": [at, f"{at}, distance l2", f"{at}, distance cosine, feature maps"],
        "mean {}; sum at weight 0.01 {}": [at, "weight 0.01, top 0.3, sum"],
        "true {}, false {}": [at, f"{at}, no gradient through the clean view"],
    }
    for sentence, settings in stated.items():
        assert sentence.format(*(f"{gained[name]:+.2f}" for name in settings)) in text
