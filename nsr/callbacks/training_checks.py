"""Signs that training goes wrong: pure functions of the metrics of its epochs.

Each takes the history, the latest epoch last, and returns whether its check is triggered now (None: not evaluated) and
the evidence. docs/checks.md has the table of thresholds and how often each was triggered falsely. Sources: Wong, Rice
and Kolter 2020, Andriushchenko and Flammarion 2020, de Jorge et al. 2022 (catastrophic overfitting); Rice, Wong and
Kolter 2020 (robust overfitting).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

LEARNT = 0.2  # of the way from chance to all correct: below it there is nothing to lose
LEFT = 1 / 4  # of the robust accuracy in training
OVERFITTING = 2  # epochs in a row: some runs recover at once
WINDOW = 5  # epochs of a mean
POINTS = 0.03  # of accuracy: smaller losses trigger nothing, however many images show them
RISING = 0.01  # of training accuracy
EPOCHS = 3  # in a row: a run may pass through a constant, or through one class, at its start
SINGLE_CLASS = 0.9  # of the way from the class's fraction to all images
SENSITIVITY_LEFT = 0.1  # of a layer's sensitivity before training
ABOVE_CHANCE = 0.1  # of the way from chance to all correct
CHANGED = 0.005  # of the predictions, by the attack

Verdict = tuple[bool | None, str]
NO_TRAINING_ATTACK = (
    "not evaluated: no training attack in validation's norm and at least its epsilon, or a ramp is not over"
)


class Epoch(NamedTuple):
    """The metrics kept of an epoch: plain numbers and texts, for checkpoints."""

    number: int  # 0: before training
    clean: float  # validated accuracy
    robust: float  # under the validation attack
    images: int  # validated
    strong: float  # under an attack of several steps: `robust`, or that of a probe
    strong_images: int
    training: float | None  # accuracy in training under its attack; None: none as wide as validation's
    most_predicted: float  # the largest fraction of the validation images that is predicted as one class
    expected: float  # the fraction that is of that class
    least_sensitive: tuple[str, float, float] | None  # stabilized layer, its mean sensitivity, that before training

    @property
    def robust_fraction(self) -> float:
        """Of the correctly classified images, so that a loss of clean accuracy does not look like one of robustness."""
        return min(1.0, self.strong / self.clean) if self.clean > 0 else 0.0

    def overfits(self, classes: int) -> bool:
        """Return whether several steps leave far less than training's own attack."""
        if self.training is None:
            return False
        fraction = self.robust_fraction
        return (
            min(self.clean, self.training) >= _towards_all(1 / classes, LEARNT)
            and fraction < LEFT * self.training
            and self.training - fraction > noise(self.training, fraction, self.clean * self.strong_images)
        )

    def is_constant(self, classes: int) -> bool:
        """Return whether the network is at chance, the attack changes nothing and a stabilized layer has collapsed."""
        if self.least_sensitive is None:
            return False
        _, sensitivity, before = self.least_sensitive
        at_chance = self.clean <= _towards_all(1 / classes, ABOVE_CHANCE)
        return at_chance and self.clean - self.robust <= CHANGED and sensitivity < SENSITIVITY_LEFT * before


def noise(first: float, second: float, images: float) -> float:
    """Compute two standard errors of the difference of two fractions, each of so many images."""
    return 2 * ((first * (1 - first) + second * (1 - second)) / max(images, 1)) ** 0.5


def _towards_all(fraction: float, part: float) -> float:
    return fraction + part * (1 - fraction)


def _in_a_row(history: Sequence[Epoch], epochs: int, sign: Callable[[Epoch], bool]) -> bool:
    """Return whether the last epochs of training all have the sign."""
    recent = [epoch for epoch in history[-epochs:] if epoch.number > 0]
    return len(recent) == epochs and all(map(sign, recent))


def catastrophic_overfitting(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Check that several attack steps do not leave far less of the correctly classified images than training's own."""
    now = history[-1]
    if now.training is None:
        return None, NO_TRAINING_ATTACK
    best = max((epoch for epoch in history if epoch.number > 0), key=lambda epoch: epoch.strong)
    evidence = (
        f"{100 * now.robust_fraction:.1f} % of the correctly classified validation images are robust to several steps "
        f"of attack (accuracy {100 * now.strong:.1f} %, at best {100 * best.strong:.1f} % in epoch {best.number}), in "
        f"training {100 * now.training:.1f} % of all images to its own attack (triggered below a quarter of that, "
        f"{OVERFITTING} epochs in a row)"
    )
    return _in_a_row(history, OVERFITTING, lambda epoch: epoch.overfits(classes)), evidence


def robust_overfitting(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Check that validated robust accuracy does not stay below its best while that of training keeps rising."""
    attacked = [epoch for epoch in history if epoch.training is not None]
    if history[-1].training is None:
        return None, NO_TRAINING_ATTACK
    if len(attacked) < 2 * WINDOW:
        return None, f"not evaluated: fewer than {2 * WINDOW} epochs"
    windows = [attacked[start : start + WINDOW] for start in range(len(attacked) - WINDOW + 1)]
    best, now = max(windows[:-WINDOW], key=_robust), windows[-1]
    (robust_best, robust), (trained_best, trained) = ([mean(best), mean(now)] for mean in (_robust, _trained))
    limit = max(POINTS, noise(robust_best, robust, history[-1].images))
    evidence = (
        f"validated robust accuracy from {100 * robust_best:.1f} % (epochs {best[0].number} to {best[-1].number}) "
        f"to {100 * robust:.1f} % (the last {WINDOW}), in training from {100 * trained_best:.1f} % to "
        f"{100 * trained:.1f} % (triggered beyond {100 * limit:.1f} points of loss while training rises)"
    )
    overfits = robust_best - robust > limit and trained - trained_best > RISING
    return overfits and not history[-1].overfits(classes), evidence


def _robust(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.robust for epoch in epochs) / len(epochs)


def _trained(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.training or 0.0 for epoch in epochs) / len(epochs)


def single_class(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Check that not nearly all validation images are predicted as one class, to which far fewer belong."""
    now = history[-1]
    limit = _towards_all(now.expected, SINGLE_CLASS)
    evidence = (
        f"{100 * now.most_predicted:.1f} % of the validation images are predicted as one class, to which "
        f"{100 * now.expected:.1f} % belong (triggered above {100 * limit:.1f} %, {EPOCHS} epochs in a row)"
    )
    is_single = _in_a_row(
        history, EPOCHS, lambda epoch: epoch.most_predicted > _towards_all(epoch.expected, SINGLE_CLASS)
    )
    return is_single, evidence


def collapsed_network(history: Sequence[Epoch], *, classes: int) -> Verdict:
    """Check that the stabilizer does not drive the network to a constant; one layer is enough, nothing passes it."""
    now = history[-1]
    if now.least_sensitive is None:
        return None, "not evaluated: no stabilizer, or no metrics from before training"
    layer, sensitivity, before = now.least_sensitive
    evidence = (
        f"clean accuracy {100 * now.clean:.1f} %, {100 * now.robust:.1f} % under the attack, and the sensitivity of "
        f"{layer} is {sensitivity:.2g}, before training {before:.2g} (triggered at chance with less than "
        f"{SENSITIVITY_LEFT:g} of it left, {EPOCHS} epochs in a row)"
    )
    return _in_a_row(history, EPOCHS, lambda epoch: epoch.is_constant(classes)), evidence


class Rule(NamedTuple):
    """A check of training."""

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
        "(callbacks=[early_stopping]) or regularize (callbacks=[awp,ema])",
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
