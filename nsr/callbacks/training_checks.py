"""Signs that a training goes wrong: pure functions of the figures that its epochs have left.

Each takes the history, the latest epoch last, and gives whether its sign is there now (None: it cannot be judged) and
the evidence. docs/checks.md has the table of thresholds and how often each was raised in vain. Sources: Wong, Rice and
Kolter 2020, Andriushchenko and Flammarion 2020, de Jorge et al. 2022 (catastrophic overfitting); Rice, Wong and Kolter
2020 (robust overfitting).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

LEARNT = 0.2  # of the way from chance to all right: below it there is nothing to lose
LEFT = 1 / 4  # of what training withstands
GIVING_WAY = 2  # epochs in a row: some runs recover at once
WINDOW = 5  # epochs of a mean
POINTS = 0.03  # of accuracy: smaller losses are no alarm, however many images show them
RISING = 0.01  # of training accuracy
EPOCHS = 3  # in a row: a run may pass through a constant, or through one class, at its start
SINGLE_CLASS = 0.9  # of the way from the class's share to all images
SENSITIVITY_LEFT = 0.1  # of a layer's sensitivity before training
ABOVE_CHANCE = 0.1  # of the way from chance to all right
CHANGED = 0.005  # of the predictions, by the attack


class Epoch(NamedTuple):
    """What is remembered of an epoch: plain numbers and texts, for checkpoints."""

    number: int  # 0: before training
    clean: float  # validated accuracy
    robust: float  # under the validation attack
    images: int  # validated
    strong: float  # under an attack of several steps: `robust`, or that of a probe
    strong_images: int
    training: float | None  # accuracy in training under its attack; None: none as wide as validation's
    most_predicted: float  # the largest share of the validation images that is predicted as one class
    expected: float  # the share that is of that class
    stillest: tuple[str, float, float] | None  # stabilized layer, its mean sensitivity, that before training


Verdict = tuple[bool | None, str]
NO_TRAINING_ATTACK = "not evaluated: no training under an attack as wide as validation's, or its ramp is not over"


def noise(first: float, second: float, images: float) -> float:
    """Two standard errors of the difference of two shares, each of so many images."""
    return 2 * ((first * (1 - first) + second * (1 - second)) / max(images, 1)) ** 0.5


def catastrophic_overfitting(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Of what is right without an attack, far less withstands several steps than training withstands of its own."""
    now, recent = history[-1], history[-GIVING_WAY:]
    if now.training is None:
        return None, NO_TRAINING_ATTACK
    best = max((epoch for epoch in history if epoch.number > 0), key=lambda epoch: epoch.strong)
    evidence = (
        f"{100 * _withstood(now):.1f} % of the right validation images withstand several steps of attack (accuracy "
        f"{100 * now.strong:.1f} %, at best {100 * best.strong:.1f} % in epoch {best.number}), in training "
        f"{100 * now.training:.1f} % its own attack (triggered where less than a quarter of it is left, {GIVING_WAY} "
        "epochs in a row)"
    )
    return len(recent) == GIVING_WAY and all(_gives_way(epoch, classes) for epoch in recent), evidence


def _withstood(epoch: Epoch) -> float:
    """A share of the right images, so that a loss of clean accuracy does not look like one of robustness."""
    return min(1.0, epoch.strong / epoch.clean) if epoch.clean > 0 else 0.0


def _gives_way(epoch: Epoch, classes: int) -> bool:
    if epoch.training is None:
        return False
    withstood = _withstood(epoch)
    return (
        min(epoch.clean, epoch.training) >= _towards_all(1 / classes, LEARNT)
        and withstood < LEFT * epoch.training
        and epoch.training - withstood > noise(epoch.training, withstood, epoch.clean * epoch.strong_images)
    )


def _towards_all(share: float, part: float) -> float:
    """So much of the way from a share to 1."""
    return share + part * (1 - share)


def robust_overfitting(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Validated robust accuracy has been below its best for some epochs, while that of training went on rising."""
    attacked = [epoch for epoch in history if epoch.training is not None]
    if history[-1].training is None:
        return None, NO_TRAINING_ATTACK
    if len(attacked) < 2 * WINDOW:
        return None, f"not evaluated: fewer than {2 * WINDOW} epochs"
    windows = [attacked[start : start + WINDOW] for start in range(len(attacked) - WINDOW + 1)]
    best, now = max(windows[:-WINDOW], key=_robust), windows[-1]
    limit = max(POINTS, noise(_robust(best), _robust(now), history[-1].images))
    evidence = (
        f"validated robust accuracy from {100 * _robust(best):.1f} % (epochs {best[0].number} to {best[-1].number}) "
        f"to {100 * _robust(now):.1f} % (the last {WINDOW}), in training from {100 * _trained(best):.1f} % to "
        f"{100 * _trained(now):.1f} % (triggered beyond {100 * limit:.1f} points of loss while training rises)"
    )
    overfits = _robust(best) - _robust(now) > limit and _trained(now) - _trained(best) > RISING
    return overfits and not _gives_way(history[-1], classes), evidence


def _robust(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.robust for epoch in epochs) / len(epochs)


def _trained(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.training or 0.0 for epoch in epochs) / len(epochs)


def single_class(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Nearly all validation images are predicted as one class, and far fewer are of it."""
    now = history[-1]
    limit = _towards_all(now.expected, SINGLE_CLASS)
    evidence = (
        f"{100 * now.most_predicted:.1f} % of the validation images are predicted as one class, that "
        f"{100 * now.expected:.1f} % are of (triggered above {100 * limit:.1f} %, {EPOCHS} epochs in a row)"
    )
    return _in_a_row(history, lambda epoch: epoch.most_predicted > _towards_all(epoch.expected, SINGLE_CLASS)), evidence


def collapsed_network(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """The network is at chance, the attack moves nothing, and a stabilized layer stands still.

    One such layer is enough: nothing passes through it.
    """
    now = history[-1]
    if now.stillest is None:
        return None, "not evaluated: no stabilizer, or no figures from before training"
    layer, sensitivity, before = now.stillest
    evidence = (
        f"clean accuracy {100 * now.clean:.1f} %, {100 * now.robust:.1f} % under the attack, and the sensitivity of "
        f"{layer} is {sensitivity:.2g} where it was {before:.2g} before training (triggered at chance with less than "
        f"{SENSITIVITY_LEFT:g} of it left, {EPOCHS} epochs in a row)"
    )
    return _in_a_row(history, lambda epoch: _is_constant(epoch, classes)), evidence


def _is_constant(epoch: Epoch, classes: int) -> bool:
    if epoch.stillest is None:
        return False
    _, sensitivity, before = epoch.stillest
    return (
        epoch.clean <= _towards_all(1 / classes, ABOVE_CHANCE)
        and epoch.clean - epoch.robust <= CHANGED
        and sensitivity < SENSITIVITY_LEFT * before
    )


def _in_a_row(history: Sequence[Epoch], sign: Callable[[Epoch], bool]) -> bool:
    """Whether the last epochs of training all have the sign."""
    recent = [epoch for epoch in history[-EPOCHS:] if epoch.number > 0]
    return len(recent) == EPOCHS and all(sign(epoch) for epoch in recent)


class Rule(NamedTuple):
    """An alarm of training."""

    title: str
    evaluate: Callable[..., Verdict]
    meaning: str


RULES = {
    "catastrophic_overfitting": Rule(
        "training accuracy under attack is not real",
        catastrophic_overfitting,
        "catastrophic overfitting: gradients are masked, and one step no longer finds what several find; train with "
        "more train_attack.steps, objective=nfgsm or a smaller epsilon",
    ),
    "robust_overfitting": Rule(
        "validated robust accuracy falls while that of training rises",
        robust_overfitting,
        "robust overfitting: adversarial examples are memorized; take best.ckpt, stop earlier "
        "(callbacks=[early_stopping]) or regularise (callbacks=[awp,ema])",
    ),
    "single_class": Rule(
        "nearly all images are predicted as one class",
        single_class,
        "the network has collapsed: epsilon or optimizer.lr is too large for it (callbacks=[epsilon_ramp]), or the "
        "labels are wrong",
    ),
    "collapsed_network": Rule(
        "the stabilizer has driven the network to a constant",
        collapsed_network,
        "its weight is too large: lower stabilizer.weight or optimizer.lr, or let the weight grow: "
        "callbacks=[stabilizer_ramp]",
    ),
}
