"""Numbers of docs/results.md: contrasts of arms at equal seeds, and sensitivity against robustness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy
from scipy.stats import rankdata

from benchmarks.evidence.cell import unpacked
from benchmarks.evidence.plan import Plan, read_plan
from benchmarks.evidence.rows import Row, read
from nsr.comparison.inference import RANDOM_ARRANGEMENTS, Tested, paired_interval, rank_permutation_test, sign_flip_test

MEASURES = ("absolute", "relative")  # sensitivities, in the order of the rows
ATTACKS = ("clean", "apgd_ce", "apgd_t", "square")  # the worst case is over all of them
Runs = Mapping[tuple[str, str], Mapping[int, Row]]  # {(objective, arm): {seed: confirmatory row}}


class Contrast(NamedTuple):
    """A paired difference, its 95 % interval, and the sign-flip permutation test over seeds."""

    n: int
    difference: float
    low: float
    high: float
    p: float
    smallest_p: float  # that so many seeds can give

    def text(self, digits: int = 2) -> str:
        """'+1.25 [-0.50, +3.00]'; without an interval below two seeds, '' without any."""
        if not self.n:
            return ""
        sides = f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]" if self.n > 1 else ""
        return f"{self.difference:+.{digits}f}{sides}"


class Study(NamedTuple):
    """A plan, its rows, and its confirmatory runs."""

    plan: Plan
    rows: Sequence[Row]
    runs: Runs

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row["status"] == "finished"]

    def arm(self, objective: str, arm: str) -> Mapping[int, Row]:
        """Return {seed: run}, empty before the first."""
        return self.runs.get((objective, arm), {})


def study(name: str) -> Study:
    """Read a plan and its rows; its runs include those of the plans that it names under `with`."""
    plan, found = read_plan(name), read(name)
    parts = [*(study(other).runs for other in plan.get("with", ())), by_arm(found)]
    return Study(plan, found, {arm: own for runs in parts for arm, own in runs.items()})


def by_arm(found: Iterable[Row], stage: str = "confirm") -> Runs:
    """Return the finished rows of a stage by objective, arm and seed."""
    runs: dict[tuple[str, str], dict[int, Row]] = {}
    for row in found:
        if (row["stage"], row["status"]) == (stage, "finished"):
            runs.setdefault((row["objective"], row["arm"]), {})[row["seed"]] = row
    return runs


def evaluation(row: Row, checkpoint: str = "best") -> dict[str, Any]:
    """Return what a row has of a checkpoint; one that is best and last at once is kept once."""
    found = row[checkpoint]
    return row["best"] if found == "best" else found


def images(row: Row, attack: str, checkpoint: str = "best") -> numpy.ndarray:
    """Return (image,) 1 where it is correctly classified, else 0; 'worst_case': under all of ATTACKS."""
    found = evaluation(row, checkpoint)
    names = ATTACKS if attack == "worst_case" else (attack,)
    return numpy.min([unpacked(found["correct"][name], found["n_images"]) for name in names], axis=0).astype(float)


def accuracy(row: Row, attack: str, checkpoint: str = "best") -> float:
    """Return an accuracy in percent."""
    return 100 * float(images(row, attack, checkpoint).mean())


def sensitivity(row: Row, measure: str, checkpoint: str = "last") -> float:
    """Return a sensitivity on the evaluated images, mean over layers."""
    return fmean(values[MEASURES.index(measure)] for values in evaluation(row, checkpoint)["sensitivity"].values())


def contrast(
    one: Mapping[int, Row], other: Mapping[int, Row], attack: str = "worst_case", checkpoint: str = "best"
) -> Contrast:
    """Return `one` minus `other` at equal seeds in percentage points, the interval over seeds and images."""
    seeds = sorted(one.keys() & other.keys())
    pairs = [images(one[seed], attack, checkpoint) - images(other[seed], attack, checkpoint) for seed in seeds]
    each = 100 * numpy.array(pairs)
    return _contrast(each.mean(1), each) if seeds else _contrast(numpy.empty(0))


def reduction(one: Mapping[int, Row], other: Mapping[int, Row], measure: str) -> Contrast:
    """Return the difference of two arms' sensitivities at equal seeds, the interval over seeds."""
    seeds = sorted(one.keys() & other.keys())
    return _contrast(numpy.array([sensitivity(one[s], measure) - sensitivity(other[s], measure) for s in seeds]))


def _contrast(differences: numpy.ndarray, each: numpy.ndarray | None = None) -> Contrast:
    found, test = paired_interval(differences, each), sign_flip_test(differences)
    return Contrast(len(differences), found["difference"], found["low"], found["high"], test.p, test.smallest_p)


def between(runs: Sequence[Mapping[int, Row]], measure: str) -> tuple[float, Tested]:
    """Return Spearman's correlation of methods' mean sensitivity and mean worst case, and its permutation test."""
    one = numpy.array([fmean(sensitivity(row, measure) for row in own.values()) for own in runs])
    two = numpy.array([fmean(accuracy(row, "worst_case", "last") for row in own.values()) for own in runs])
    return spearman(one, two), rank_permutation_test(one, two)


def within(runs: Sequence[Mapping[int, Row]], measure: str, *, seed: int = 0) -> tuple[float, Tested]:
    """Return the mean over methods of Spearman's correlation over a method's seeds, and its permutation test.

    The test permutes the accuracies of each method among its seeds. Methods of fewer than three seeds are left out.
    """
    pairs = []
    for own in (own.values() for own in runs if len(own) > 2):
        one = numpy.array([sensitivity(row, measure) for row in own])
        pairs.append((one, numpy.array([accuracy(row, "worst_case", "last") for row in own])))
    if not pairs:
        return float("nan"), Tested()
    random, arranged = numpy.random.default_rng(seed), numpy.zeros(RANDOM_ARRANGEMENTS)
    for one, two in pairs:
        ranks = [_standard_ranks(values) for values in (one, two)]
        arranged += random.permuted(numpy.tile(ranks[0], (RANDOM_ARRANGEMENTS, 1)), axis=1) @ ranks[1]
    observed = fmean(spearman(*pair) for pair in pairs)
    extreme = int((numpy.abs(arranged) / len(pairs) >= abs(observed) - 1e-9).sum()) + 1
    return observed, Tested(extreme / (RANDOM_ARRANGEMENTS + 1), 1 / (RANDOM_ARRANGEMENTS + 1))


def spearman(one: numpy.ndarray, two: numpy.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where all values of one side are equal."""
    return float(_standard_ranks(one) @ _standard_ranks(two))


def _standard_ranks(values: numpy.ndarray) -> numpy.ndarray:
    """Return centered ranks of length 1, so that the product of two is their correlation."""
    ranks = rankdata(values) - (len(values) + 1) / 2
    length = float(ranks @ ranks) ** 0.5
    return ranks / length if length else ranks
