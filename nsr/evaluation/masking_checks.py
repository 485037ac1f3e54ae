"""Signs that robustness is claimed and not there, each with its evidence and what it usually means.

Every alarm is judged from the images of rows that were measured alone; where its rows were not measured it is said to
be unjudged. Sources: Athalye, Carlini and Wagner 2018; Carlini et al. 2019; Croce and Hein 2020. docs/alarms.md has the
table of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from nsr.errors import InputError, RunStopped
from nsr.evaluation.intervals import mcnemar

POINTS = 0.01  # of accuracy: smaller differences are no alarm, however many images show them
# twice the largest that honestly trained networks showed, docs/alarms.md: one run of PGD-40 has not converged on them
STEPS_POINTS = 0.08  # of accuracy
SQUARE_SHARE = 0.04  # of the images
P_VALUE = 0.01  # of McNemar's test
ZERO_GRADIENTS = 0.05  # of the right images
UNSTEADY = 0.005  # of the images, between two passes
ABOVE_CHANCE = 0.05  # of accuracy at epsilon 1


class Alarm(NamedTuple):
    """One sign, judged."""

    name: str  # what alarms.stop_on calls it
    title: str
    raised: bool | None  # None: its rows were not measured
    evidence: str
    meaning: str


class _Rule(NamedTuple):
    title: str
    rows: tuple[str, ...]
    judge: Callable[..., tuple[bool, str]]
    meaning: str


def alarms(outcomes: Mapping[str, Tensor], *, classes: int) -> list[Alarm]:
    """Every alarm, judged where its rows are there.

    Args:
        outcomes: {row: (image,) 1 where the image is right, or where a probe found what it looks for}.
        classes: of the data.
    """
    judged = []
    for name, rule in RULES.items():
        missing = [row for row in rule.rows if row not in outcomes]
        if missing:
            judged.append(Alarm(name, rule.title, None, f"not measured: {', '.join(missing)}", rule.meaning))
        else:
            raised, evidence = rule.judge(*(outcomes[row].bool() for row in rule.rows), classes=classes)
            judged.append(Alarm(name, rule.title, raised, evidence, rule.meaning))
    return judged


def in_one_line(alarm: Alarm) -> str:
    """What it is, its evidence and what it usually means."""
    return f"{alarm.title} (alarm {alarm.name}), {alarm.evidence}; {alarm.meaning}"


def stop_where_raised(judged: Iterable[Alarm], stop_on: Collection[str]) -> None:
    """RunStopped, in one line, where one of the alarms `stop_on` was raised."""
    ending = [in_one_line(alarm) for alarm in judged if alarm.raised and alarm.name in stop_on]
    if ending:
        raise RunStopped(f"alarms.stop_on: {' | '.join(ending)}")


def check_measured(stop_on: Iterable[str], rows: Collection[str]) -> None:
    """InputError where an alarm of `stop_on` could never be raised, for its rows are not measured."""
    for name in stop_on:
        missing = [row for row in RULES[name].rows if row not in rows]
        if missing:
            raise InputError(
                f"alarms.stop_on has {name}, which is judged from {' and '.join(RULES[name].rows)}; "
                f"attacks lacks {' and '.join(missing)}"
            )


def _stronger(name: str, other: str, *, points: float = POINTS) -> Callable[..., tuple[bool, str]]:
    """Whether attack `name` lowers accuracy below attack `other`, by more than the points and beyond the noise."""

    def judge(first: Tensor, second: Tensor, *, classes: int) -> tuple[bool, str]:
        gap = (int(second.sum()) - int(first.sum())) / len(first)
        p_value = mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
        evidence = (
            f"{name} {100 * _share(first):.2f} %, {other} {100 * _share(second):.2f} %; McNemar p {p_value:.2g} "
            f"(raised beyond {100 * points:g} points at p < {P_VALUE:g})"
        )
        return gap > points and p_value < P_VALUE, evidence

    return judge


def _fools_more(name: str, other: str, *, share: float = POINTS) -> Callable[..., tuple[bool, str]]:
    """Whether attack `name` fools images that attack `other` does not."""

    def judge(first: Tensor, second: Tensor, *, classes: int) -> tuple[bool, str]:
        only = int((second & ~first).sum())
        evidence = f"{name} fools {only} images that {other} does not (raised beyond {100 * share:g} % of {len(first)})"
        return only > share * len(first), evidence

    return judge


def _above_chance(right: Tensor, *, classes: int) -> tuple[bool, str]:
    limit = 1 / classes + ABOVE_CHANCE
    return _share(right) > limit, f"{100 * _share(right):.2f} % are right (raised above {100 * limit:.0f} %)"


def _zero(clean: Tensor, zero: Tensor, *, classes: int) -> tuple[bool, str]:
    of_right = int((clean & zero).sum()) / max(1, int(clean.sum()))
    return (
        of_right > ZERO_GRADIENTS,
        f"{100 * of_right:.1f} % of the right images (raised above {100 * ZERO_GRADIENTS:g} %)",
    )


def _unsteady(changed: Tensor, *, classes: int) -> tuple[bool, str]:
    return _share(
        changed
    ) > UNSTEADY, f"{100 * _share(changed):.1f} % of the images (raised above {100 * UNSTEADY:g} %)"


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


RULES = {
    "steps": _Rule(
        "more steps and restarts lower accuracy",
        ("pgd100", "pgd"),
        _stronger("pgd100", "pgd", points=STEPS_POINTS),
        "the weaker attack has not converged: report the stronger one, and try more",
    ),
    "one_step": _Rule(
        "one step is stronger than many",
        ("fgsm", "pgd"),
        _stronger("fgsm", "pgd"),
        "gradients lead astray near the image: masked or shattered gradients",
    ),
    "square": _Rule(
        "an attack without gradients is stronger",
        ("square", "pgd"),
        _fools_more("square", "pgd", share=SQUARE_SHARE),
        "masked gradients: the loss surface hides what queries find",
    ),
    "uniform": _Rule(
        "random points are stronger",
        ("uniform", "pgd"),
        _fools_more("uniform", "pgd"),
        "masked gradients: no attack should lose to chance",
    ),
    "unbounded": _Rule(
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
    "unsteady": _Rule(
        "two passes differ",
        ("unsteady",),
        _unsteady,
        "the network draws: attack its expectation (suite.autoattack.version=rand)",
    ),
    "adaptive": _Rule(
        "the attack that knows the defence beats AutoAttack",
        ("adaptive", "autoattack"),
        _stronger("adaptive", "autoattack"),
        "the defence is tuned to attacks on the loss",
    ),
}
