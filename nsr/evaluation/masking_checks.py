"""Checks for gradient masking: signs that measured robustness is not real, with evidence and the usual meaning.

Every check compares rows that were measured alone, of attacks or of probes, which flag images; where its rows were not
measured it is not evaluated. Sources:
Athalye, Carlini and Wagner 2018; Carlini et al. 2019; Croce and Hein 2020. docs/checks.md has the table of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Generator, Tensor, nn

from nsr.attacks import GradientAttack
from nsr.errors import InputError, check_finite_logits
from nsr.losses import cross_entropy
from nsr.modes import frozen_parameters
from nsr.run.checks import Check

POINTS = 0.01  # of accuracy: smaller differences do not trigger, however many images show them
SQUARE_FRACTION = 0.04  # of the images: twice the largest that honestly trained networks showed, docs/checks.md
P_VALUE = 0.01  # of McNemar's test
ZERO_GRADIENTS = 0.05  # of the correctly classified images
NONDETERMINISTIC = 0.005  # of the images, between two passes
ABOVE_CHANCE = 0.05  # of accuracy at epsilon 1
PASSES = 5  # two may draw the same: a batch resized to one of three sizes
DETERMINISTIC = 1e-3  # of the largest logit: a larger difference between two passes is no rounding


Rows = Mapping[str, Tensor]  # {row: (image,) bool}
MEASURED = "measured_attacks"  # stands for every attack of the threat model, in the rows of a rule
Finding = tuple[bool, str]  # whether a check is triggered, and its evidence


class _Rule(NamedTuple):
    title: str
    rows: tuple[str, ...]  # with MEASURED last: those of the other attacks follow
    evaluate: Callable[[Rows, int], Finding]  # of the rows and the number of classes
    meaning: str


def evaluate_checks(
    outcomes: Mapping[str, Tensor], *, classes: int, attacks: Mapping[str, Mapping[str, str]]
) -> list[Check]:
    """Evaluate every check whose rows are there, in each threat model.

    Args:
        outcomes: {row: (image,) 1 where the image is classified correctly, or where a probe flags it}.
        classes: number of classes.
        attacks: {threat model: {name of an attack in the rules: its row}}.
    """
    return [_evaluated(name, rule, outcomes, classes, attacks) for name, rule in RULES.items()]


def _evaluated(name: str, rule: _Rule, outcomes: Rows, classes: int, attacks: Mapping[str, Mapping[str, str]]) -> Check:
    findings, missing = [], ""
    others = {row: row for row in ("clean", *PROBES) if row in outcomes}
    models = attacks if set(rule.rows) - set(others) else {"": {}}  # the probes are the same in each
    for model, rows in models.items():
        named = {**others, **rows}
        lacking = [row for row in rule.rows if row not in named and row != MEASURED]
        if MEASURED in rule.rows and len(rows) < 2:
            lacking.append("a second attack of the same threat model")
        if lacking:
            missing = f"not measured: {', '.join(lacking)}"
            continue
        chosen = dict.fromkeys([*rule.rows[:-1], *rows] if MEASURED in rule.rows else rule.rows)
        triggered, evidence = rule.evaluate({row: outcomes[named[row]].bool() for row in chosen}, classes)
        findings.append((triggered, f"{model}: {evidence}" if len(models) > 1 else evidence))
    if not findings:
        return Check(name, rule.title, None, missing, rule.meaning)
    findings = [finding for finding in findings if finding[0]] or findings
    return Check(name, rule.title, findings[0][0], "; ".join(evidence for _, evidence in findings), rule.meaning)


def check_measured(stop_on: Iterable[str], rows: Collection[str]) -> None:
    """Check that the rows of each check in `stop_on` are measured, in some threat model.

    Errors:
        InputError: a check of `stop_on` could never be triggered.
    """
    for name in stop_on:
        needed = [row for row in RULES[name].rows if row != MEASURED]
        missing = [row for row in needed if row not in rows]
        if missing:
            raise InputError(
                f"checks.stop_on has {name}, which needs the rows {' and '.join(needed)}; "
                f"test_attacks lacks {' and '.join(missing)}"
            )


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test that two attacks are equally strong.

    Args:
        first_only, second_only: images that are robust to one attack and not to the other.
    """
    different = first_only + second_only
    return 1.0 if different == 0 else float(binomtest(first_only, different, 0.5).pvalue)


def _stronger(rows: Rows, classes: int) -> Finding:
    """Compare accuracies: the first attack's is lower by more than a point and beyond the noise."""
    (name, first), (other, second) = rows.items()
    gap = (int(second.sum()) - int(first.sum())) / len(first)
    p_value = mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
    return gap > POINTS and p_value < P_VALUE, (
        f"{name} {100 * _fraction(first):.2f} %, {other} {100 * _fraction(second):.2f} %; McNemar p {p_value:.2g} "
        f"(triggered beyond {100 * POINTS:g} point at p < {P_VALUE:g})"
    )


def _overstated(rows: Rows, classes: int) -> Finding:
    """Compare the first attack's accuracy with that under all of them together."""
    name, *others = rows
    worst = torch.stack(list(rows.values())).all(0)
    triggered, evidence = _stronger({f"all of {name}, {', '.join(others)}": worst, name: rows[name]}, classes)
    strongest = min(others, key=lambda other: int(rows[other].sum()))
    return triggered, f"{evidence}; the strongest other one is {strongest}, {100 * _fraction(rows[strongest]):.2f} %"


def _fools_more(rows: Rows, classes: int, *, fraction: float = POINTS) -> Finding:
    """Count the images that the first attack fools and the second does not."""
    (name, first), (other, second) = rows.items()
    only = int((second & ~first).sum())
    evidence = f"{name} fools {only} images that {other} does not"
    return only > fraction * len(first), f"{evidence} (triggered beyond {100 * fraction:g} % of {len(first)})"


def _above_chance(rows: Rows, classes: int) -> Finding:
    (accuracy,), limit = map(_fraction, rows.values()), 1 / classes + ABOVE_CHANCE
    evidence = f"{100 * accuracy:.2f} % are correctly classified (triggered above {100 * limit:.0f} %)"
    return accuracy > limit, evidence


def _zero_gradients(rows: Rows, classes: int) -> Finding:
    correct, zero = rows.values()
    found = int((correct & zero).sum()) / max(1, int(correct.sum()))
    evidence = f"{100 * found:.1f} % of the correctly classified images (triggered above {100 * ZERO_GRADIENTS:g} %)"
    return found > ZERO_GRADIENTS, evidence


def _nondeterministic(rows: Rows, classes: int) -> Finding:
    (changed,) = map(_fraction, rows.values())
    evidence = f"{100 * changed:.1f} % of the images (triggered above {100 * NONDETERMINISTIC:g} %)"
    return changed > NONDETERMINISTIC, evidence


def _fraction(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


def zero_gradient(net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
    """Flag images at which the loss has no gradient at all."""
    with torch.inference_mode(False), torch.enable_grad(), frozen_parameters(net):
        inputs = images.detach().clone().requires_grad_()
        logits = net(inputs)
        check_finite_logits(logits)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), inputs)
    return ~(gradient.abs() > 0).flatten(1).any(1)  # nan is no gradient either


def nondeterministic(net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
    """Flag images for which some of five passes give other logits than the first."""
    with torch.no_grad():
        first = net(images)
        others = torch.stack([net(images) for _ in range(PASSES - 1)])  # (pass, image, class)
    check_finite_logits(torch.cat([first[None], others]).transpose(0, 1))
    return (others - first).abs().amax((0, 2)) > DETERMINISTIC * first.abs().amax(1)


def epsilon_one(net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
    """Flag images classified correctly under PGD-40 with epsilon 1, which can turn any image into any other."""
    adversarial = GradientAttack(epsilon=1, steps=40)(net, images, labels, generator=generator, check=True)
    with torch.no_grad():
        return (net(images).argmax(1) == labels) & (net(adversarial).argmax(1) == labels)


# {row: probe(net, images, labels, generator=...) -> (image,) bool}
PROBES: dict[str, Callable[..., Tensor]] = {
    probe.__name__: probe for probe in (zero_gradient, nondeterministic, epsilon_one)
}


RULES = {
    "convergence": _Rule(
        "PGD overstates robustness",
        ("pgd", MEASURED),
        _overstated,
        "PGD has not converged: report the worst case, better still AutoAttack's",
    ),
    "fgsm_stronger_than_pgd": _Rule(
        "one step is stronger than many",
        ("fgsm", "pgd"),
        _stronger,
        "gradients near the image are misleading: masked or shattered gradients",
    ),
    "square_stronger_than_pgd": _Rule(
        "an attack without gradients is stronger",
        ("square", "pgd"),
        partial(_fools_more, fraction=SQUARE_FRACTION),
        "masked gradients: queries find adversarial images that gradients do not",
    ),
    "random_stronger_than_pgd": _Rule(
        "random points are stronger",
        ("uniform", "pgd"),
        _fools_more,
        "masked gradients: no attack should lose to chance",
    ),
    "unbounded_attack_fails": _Rule(
        "an unbounded attack fails",
        ("epsilon_one",),
        _above_chance,
        "at epsilon 1 any image can be turned into any other: the attack does not work on this network",
    ),
    "zero_gradients": _Rule(
        "input gradients are zero",
        ("clean", "zero_gradient"),
        _zero_gradients,
        "saturated logits or a step without gradient: gradient attacks get no direction; try apgd_dlr, cw, square",
    ),
    "nondeterministic": _Rule(
        "two passes differ",
        ("nondeterministic",),
        _nondeterministic,
        "the network is randomized: attack its expectation (test_attacks.pgd.eot_samples=20, "
        "autoattack with version=rand)",
    ),
    "adaptive_stronger_than_autoattack": _Rule(
        "the attack that knows the defense beats AutoAttack",
        ("adaptive", "autoattack"),
        _stronger,
        "the defense is tuned to attacks on the loss",
    ),
}
