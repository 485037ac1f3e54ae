"""Numbers of docs/results.md recomputed from the committed rows with numpy, pandas and scipy alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy
import pandas
import pytest
from scipy.stats import permutation_test, t

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text()
FASHION, DIGITS = "### Fashion-MNIST, small network\n", "### Digits, small network\n"


def read(plan: str) -> pandas.DataFrame:
    """One line per cell: what its start and its end say."""
    lines = [
        json.loads(line)
        for path in sorted((ROOT / "benchmarks" / "results" / "evidence" / plan).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    cells: dict[str, dict] = {}
    for line in sorted(
        lines, key=lambda line: line["status"] == "finished"
    ):  # started on one machine, ended on another
        cells.setdefault(line["cell"], {}).update(line)
    frame = pandas.DataFrame(cells.values())
    return frame[frame["status"] == "finished"].sort_values("seed")


OTHERS = {  # plans of one contrast
    "fashion_mnist_trades": ("### Fashion-MNIST, small network, TRADES\n", "trades"),
    "fashion_mnist_long": ("### Fashion-MNIST, small network, longer training\n", "fast"),
    "cifar10_jpeg": ("### CIFAR-10 (JPEG copy), ResNet-20\n", "fast"),
}
ROWS = {plan: read(plan) for plan in ("fashion_mnist", "digits", *OTHERS)}


def runs(plan: str, objective: str, arm: str, stage: str = "confirm") -> pandas.DataFrame:
    frame = ROWS[plan]
    wanted = (frame["stage"] == stage) & (frame["objective"] == objective) & (frame["arm"] == arm)
    return frame[wanted].set_index("seed")


def bits(found: dict, *attacks: str) -> numpy.ndarray:
    each = [numpy.unpackbits(numpy.frombuffer(bytes.fromhex(found["correct"][a]), "uint8")) for a in attacks]
    return numpy.min(each, axis=0)[: found["n_images"]].astype(float)


def worst(found: dict) -> numpy.ndarray:
    return bits(found, "clean", "apgd_ce", "apgd_t", "square")


def differences(plan: str, objective: str, one: str, other: str) -> numpy.ndarray:
    """(seed, image) in points"""
    first, second = (runs(plan, objective, arm)["best"] for arm in (one, other))
    seeds = sorted(set(first.index) & set(second.index))
    return 100 * numpy.array([worst(first[seed]) - worst(second[seed]) for seed in seeds])


def interval(each: numpy.ndarray) -> str:
    """Mean of the seeds, variance of the mean over seeds plus that over images, t of seeds - 1."""
    seeds = each.mean(1)
    variance = seeds.var(ddof=1) / len(seeds) + each.mean(0).var(ddof=1) / each.shape[1]
    half = t.ppf(0.975, len(seeds) - 1) * variance**0.5
    return f"{seeds.mean():+.2f} [{seeds.mean() - half:+.2f}, {seeds.mean() + half:+.2f}]"


def p_value(each: numpy.ndarray) -> float:
    found = permutation_test((each.mean(1),), numpy.mean, permutation_type="samples", n_resamples=numpy.inf)
    return float(found.pvalue)


def spread(values, digits: int = 2) -> str:
    values = numpy.asarray(values)
    return f"{values.mean():.{digits}f}" + (f" +- {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


def cell(section: str, column: str, *row: str) -> str:
    """The cell of the first table after `section` that has the column and a row beginning so."""
    part = PAGE[PAGE.index(section) + len(section) :]
    part = part[: next(iter(re.finditer(r"^##+ ", part, flags=re.M))).start()]
    headings: list[str] = []
    for line in part.splitlines():
        cells = [text.strip() for text in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            headings = []
        elif not headings:
            headings = cells
        elif column in headings and cells[: len(row)] == list(row):
            return cells[headings.index(column)]
    raise AssertionError((section, column, row))


@pytest.mark.parametrize("objective", ["pgd", "fast"])
def test_primary_contrasts(objective):
    each = differences("fashion_mnist", objective, "sns", "none")
    assert cell(FASHION, "SNS minus none, worst case", objective) == interval(each)
    planned = int(cell(FASHION, "seeds", objective).split(" of ")[1])
    both = {name: differences("fashion_mnist", name, "sns", "none") for name in ("pgd", "fast")}
    shown = (cell(FASHION, "p", objective), cell(FASHION, "Holm's p", objective), cell(FASHION, "verdict", objective))
    if min(map(len, both.values())) < planned:
        assert shown == ("", "", "undecided")
        return
    p = {name: p_value(own) for name, own in both.items()}
    small, large = sorted(p, key=lambda name: p[name])
    corrected = {small: min(1, 2 * p[small]), large: max(min(1, 2 * p[small]), p[large])}
    said = (
        "no gain was shown"
        if corrected[objective] > 0.05
        else "a gain was shown"
        if each.mean() > 0
        else "a loss was shown"
    )
    assert shown == (f"{p[objective]:.2g}", f"{corrected[objective]:.2g}", said)


@pytest.mark.parametrize("plan", OTHERS)
def test_the_only_contrast_of_a_plan(plan):
    section, objective = OTHERS[plan]
    each = differences(plan, objective, "sns", "none")
    assert cell(section, "SNS minus none, worst case", objective) == interval(each)
    done, planned = map(int, cell(section, "seeds", objective).split(" of "))
    assert done == len(each)
    if done == planned:
        shown = "gain" if each.mean() > 0 else "loss"
        said = "no gain was shown" if p_value(each) > 0.05 else f"a {shown} was shown"
        assert cell(section, "p", objective) == cell(section, "Holm's p", objective) == f"{p_value(each):.2g}"
        assert cell(section, "verdict", objective) == said
    own = runs(plan, objective, "sns")["best"]
    assert cell(section, "clean", objective, "sns") == spread([100 * bits(found, "clean").mean() for found in own])


def test_an_exploratory_contrast():
    assert cell(FASHION, "pgd", "sns - random") == interval(differences("fashion_mnist", "pgd", "sns", "random"))


def test_clean_accuracy():
    own = runs("fashion_mnist", "pgd", "none")["best"]
    assert cell(FASHION, "clean", "pgd", "none") == spread([100 * bits(found, "clean").mean() for found in own])


def test_the_worst_case_of_the_last_checkpoint():
    own = runs("fashion_mnist", "natural", "none")
    last = [row["best"] if row["last"] == "best" else row["last"] for _, row in own.iterrows()]
    assert cell(FASHION, "worst case, last", "natural", "none") == spread([100 * worst(found).mean() for found in last])


def test_autoattack():
    found = runs("fashion_mnist", "pgd", "none", "standard")["best"][100]
    assert (
        cell(FASHION, "AutoAttack standard, %", "pgd", "none", "100") == f"{100 * bits(found, 'autoattack').mean():.1f}"
    )
    frame = ROWS["fashion_mnist"]
    own = frame[frame["stage"] == "standard"]["best"]
    gaps = [100 * (worst(found).mean() - bits(found, "autoattack").mean()) for found in own]
    assert f"is {numpy.mean(gaps):.2f} points higher on average, {max(gaps):.2f} at most" in PAGE.replace("\n", " ")


def test_tuning():
    own = runs("fashion_mnist", "fast", "sns", "tune")
    own = own[own["setting"] == "stabilizer.weight=2"]
    values = [100 * row["validation_robust"][int(row["best_epoch"])] for _, row in own.iterrows()]
    assert cell(FASHION, "mean", "fast", "sns", "stabilizer.weight=2").strip("*") == f"{numpy.mean(values):.2f}"


def test_digits():
    own = runs("digits", "natural", "none")
    assert cell(DIGITS, "worst case", "natural", "none") == spread([100 * worst(found).mean() for found in own["best"]])
    last = [row["best"] if row["last"] == "best" else row["last"] for _, row in own.iterrows()]
    relative = [numpy.mean([layer[1] for layer in found["sensitivity"].values()]) for found in last]
    assert cell("### Digits, small network: sensitivity\n", "relative", "natural", "none") == spread(relative, 3)


@pytest.mark.parametrize("plan", ROWS)
def test_processor_time(plan):
    frame = ROWS[plan]
    text = f"{len(frame)} runs are complete; they took {frame['cpu_seconds'].sum() / 3600:.2f} hours of one core"
    assert text in PAGE.replace("\n", " ")
