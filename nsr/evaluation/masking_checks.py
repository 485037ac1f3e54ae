"""Checks for gradient masking: signs that measured robustness is not real, with evidence and the usual meaning.

Every check compares rows that were measured alone; where its rows were not measured it is not evaluated. Sources:
Athalye, Carlini and Wagner 2018; Carlini et al. 2019; Croce and Hein 2020. docs/checks.md has the table of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from nsr.errors import InputError
from nsr.evaluation.intervals import mcnemar
from nsr.run.checks import Check

POINTS = 0.01  # of accuracy: smaller differences do not trigger, however many images show them
# twice the largest that honestly trained networks showed, docs/checks.md: one run of PGD-40 has not converged on them
WEAK_ATTACK_POINTS = 0.08  # of accuracy
SQUARE_FRACTION = 0.04  # of the images
P_VALUE = 0.01  # of McNemar's test
ZERO_GRADIENTS = 0.05  # of the correctly classified images
NONDETERMINISTIC = 0.005  # of the images, between two passes
ABOVE_CHANCE = 0.05  # of accuracy at epsilon 1


class _Rule(NamedTuple):
    title: str
    rows: tuple[str, ...]
    evaluate: Callable[..., tuple[bool, str]]
    meaning: str


def evaluate_checks(outcomes: Mapping[str, Tensor], *, classes: int) -> list[Check]:
    """Evaluate every check whose rows are there.

    Args:
        outcomes: {row: (image,) 1 where the image is classified correctly, or where a probe found what it looks for}.
        classes: number of classes.
    """
    found = []
    for name, rule in RULES.items():
        missing = [row for row in rule.rows if row not in outcomes]
        if missing:
            found.append(Check(name, rule.title, None, f"not measured: {', '.join(missing)}", rule.meaning))
        else:
            triggered, evidence = rule.evaluate(*(outcomes[row].bool() for row in rule.rows), classes=classes)
            found.append(Check(name, rule.title, triggered, evidence, rule.meaning))
    return found


def check_measured(stop_on: Iterable[str], rows: Collection[str]) -> None:
    """Check that the rows of each check in `stop_on` are measured.

    Errors:
        InputError: a check of `stop_on` could never be triggered.
    """
    for name in stop_on:
        missing = [row for row in RULES[name].rows if row not in rows]
        if missing:
            raise InputError(
                f"checks.stop_on has {name}, which needs the rows {' and '.join(RULES[name].rows)}; "
                f"test_attacks lacks {' and '.join(missing)}"
            )


def _stronger(name: str, other: str, *, points: float = POINTS) -> Callable[..., tuple[bool, str]]:
    """Whether attack `name` lowers accuracy below attack `other`, by more than the points and beyond the noise."""

    def judge(first: Tensor, second: Tensor, *, classes: int) -> tuple[bool, str]:
        gap = (int(second.sum()) - int(first.sum())) / len(first)
        p_value = mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
        evidence = (
            f"{name} {100 * _fraction(first):.2f} %, {other} {100 * _fraction(second):.2f} %; McNemar p {p_value:.2g} "
            f"(triggered beyond {100 * points:g} points at p < {P_VALUE:g})"
        )
        return gap > points and p_value < P_VALUE, evidence

    return judge


def _fools_more(name: str, other: str, *, fraction: float = POINTS) -> Callable[..., tuple[bool, str]]:
    """Whether attack `name` fools images that attack `other` does not."""

    def judge(first: Tensor, second: Tensor, *, classes: int) -> tuple[bool, str]:
        only = int((second & ~first).sum())
        evidence = (
            f"{name} fools {only} images that {other} does not (triggered beyond {100 * fraction:g} % of {len(first)})"
        )
        return only > fraction * len(first), evidence

    return judge


def _above_chance(right: Tensor, *, classes: int) -> tuple[bool, str]:
    limit = 1 / classes + ABOVE_CHANCE
    return _fraction(right) > limit, f"{100 * _fraction(right):.2f} % are right (triggered above {100 * limit:.0f} %)"


def _zero(clean: Tensor, zero: Tensor, *, classes: int) -> tuple[bool, str]:
    of_right = int((clean & zero).sum()) / max(1, int(clean.sum()))
    return (
        of_right > ZERO_GRADIENTS,
        f"{100 * of_right:.1f} % of the correctly classified images (triggered above {100 * ZERO_GRADIENTS:g} %)",
    )


def _nondeterministic(changed: Tensor, *, classes: int) -> tuple[bool, str]:
    return (
        _fraction(changed) > NONDETERMINISTIC,
        f"{100 * _fraction(changed):.1f} % of the images (triggered above {100 * NONDETERMINISTIC:g} %)",
    )


def _fraction(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


RULES = {
    "weak_attack": _Rule(
        "more steps and restarts lower accuracy",
        ("pgd100", "pgd"),
        _stronger("pgd100", "pgd", points=WEAK_ATTACK_POINTS),
        "the weaker attack has not converged: report the stronger one, and try more",
    ),
    "fgsm_stronger_than_pgd": _Rule(
        "one step is stronger than many",
        ("fgsm", "pgd"),
        _stronger("fgsm", "pgd"),
        "gradients lead astray near the image: masked or shattered gradients",
    ),
    "square_stronger_than_pgd": _Rule(
        "an attack without gradients is stronger",
        ("square", "pgd"),
        _fools_more("square", "pgd", fraction=SQUARE_FRACTION),
        "masked gradients: the loss surface hides what queries find",
    ),
    "random_stronger_than_pgd": _Rule(
        "random points are stronger",
        ("uniform", "pgd"),
        _fools_more("uniform", "pgd"),
        "masked gradients: no attack should lose to chance",
    ),
    "unbounded_attack_fails": _Rule(
        "an unbounded attack fails",
        ("epsilon_one",),
        _above_chance,
        "at epsilon 1 every image can be made any other: the attack does not work here",
    ),
    "zero_gradients": _Rule(
        "input gradients are zero",
        ("clean", "zero_gradient"),
        _zero,
        "saturated logits or a step that has no gradient: gradient attacks cannot see; try apgd_dlr, cw, square",
    ),
    "nondeterministic": _Rule(
        "two passes differ",
        ("nondeterministic",),
        _nondeterministic,
        "the network draws: attack its expectation (test_attacks.autoattack.version=rand)",
    ),
    "adaptive_stronger_than_autoattack": _Rule(
        "the attack that knows the defense beats AutoAttack",
        ("adaptive", "autoattack"),
        _stronger("adaptive", "autoattack"),
        "the defense is tuned to attacks on the loss",
    ),
}
