"""The images that are shown, attacked once more: chosen by a rule, as many as a budget of operations allows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from nsr.attacks.gradient import GradientAttack
from nsr.evaluation.outcomes import CURVE
from nsr.pictures.subject import Meter, OverBudget, Subject, operations
from nsr.randomness import frozen_stream
from nsr.run.rows import is_weak

SHOWN = 4  # images that fell, and images that held
CANDIDATES = 120  # further images, among which those that move a neuron most are searched
STREAM = 22  # of random numbers
FIRST = 2  # images: the first call of an attack, whose cost is not known yet
# forward operations, two to three times as many with the backward passes: about 25 s of two cores, and 40 s
ATTACK_BUDGET = 2.5e11
ALL_BUDGET = 4e11  # of all attacks that are tried because the strongest ones exceed theirs
GPU_FACTOR = 100

log = logging.getLogger(__name__)


@dataclass
class Attacked:
    """Images and their adversarial examples, on the CPU; the chosen ones come first."""

    row: str
    meter: Meter
    groups: list[str]  # of the chosen ones: 'fell' or 'held'
    positions: list[int] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    adversarial: list[Tensor] = field(default_factory=list)
    steps: Tensor | None = None  # (step, channel, height, width) of the first image; None: the attack has no steps
    steps_logits: Tensor | None = None
    note: str = ""  # what the budget left out

    @property
    def shown(self) -> int:
        """The number of chosen images."""
        return len(self.groups)


def strongest_first(outcomes: Mapping[str, Tensor]) -> list[str]:
    """Return the measured attacks, the one with the lowest accuracy first; of equal ones the later, PGD after FGSM.

    Args:
        outcomes: {'clean' or row of an attack: (image,) 1 where classified correctly}.
    """
    found = [row for row in reversed(list(outcomes)) if not is_weak(row) and not row.startswith(CURVE)]
    return sorted(found, key=lambda row: float(outcomes[row].double().mean()))


def chosen(subject: Subject, row: str) -> tuple[list[int], list[str]]:
    """Return the positions of images that fell and held under an attack, in turn, and 'fell' or 'held' of each.

    Four of each, first in file order, one of each class before a second one of any.
    """
    clean, robust = (subject.outcomes[name].bool() for name in ("clean", row))
    fell, held = (_spread(subject.labels, flags) for flags in (clean & ~robust, clean & robust))
    pairs = zip_longest(((position, "fell") for position in fell), ((position, "held") for position in held))
    found = [entry for pair in pairs for entry in pair if entry is not None]
    return [position for position, _ in found], [group for _, group in found]


def _spread(labels: Tensor, flags: Tensor) -> list[int]:
    """Return the first positions of each class, then its second ones, until there are enough; in file order."""
    seen: dict[int, int] = {}
    order = []
    for position in flags.nonzero()[:, 0].tolist():
        label = int(labels[position])
        order.append((seen.get(label, 0), position))
        seen[label] = seen.get(label, 0) + 1
    return sorted(position for _, position in sorted(order)[:SHOWN])


def candidates(subject: Subject, without: Sequence[int]) -> list[int]:
    """Return further positions, drawn at random."""
    order = frozen_stream(subject.seed, STREAM).permutation(len(subject.labels)).tolist()
    return [position for position in order if position not in set(without)][:CANDIDATES]


def attack_images(subject: Subject) -> Attacked | None:
    """Attack the chosen images and further ones within the budget, with the strongest attack that fits into it.

    Returns:
        None where no attack was measured, no image was correctly classified, or every attack exceeds the budget.
    """
    meter, scale = Meter(operations(subject)), 1 if subject.device.type == "cpu" else GPU_FACTOR
    skipped: list[str] = []
    for row in (row for row in strongest_first(subject.outcomes) if row in subject.attacks):
        positions, groups = chosen(subject, row)
        if not positions:
            return None
        found = Attacked(row, meter, groups)
        wanted = [*positions, *candidates(subject, positions)]
        limit = min(meter.spent + scale * ATTACK_BUDGET, scale * ALL_BUDGET)
        _attack(subject, found, list(_batches(wanted, subject.batch)), limit)
        if found.positions:
            del found.groups[len(found.positions) :]
            notes = [f"{title} is stronger, but exceeds the budget of operations for pictures." for title in skipped]
            if (done := len(found.positions)) < len(wanted):
                notes.append(f"The budget of operations for pictures ended at {done} of {len(wanted)} images.")
            found.note = " ".join(notes)
            return found
        skipped.append(subject.titles.get(row, row))
    if skipped:
        log.warning(f"no pictures: {'; '.join(skipped)} on {FIRST} images exceed the budget of operations for pictures")
    return None


def _batches(positions: list[int], largest: int) -> Iterator[list[int]]:
    """Yield batches of 2, 6, 8, 16, ... of them, so that the cost of one predicts that of the next."""
    start, size = 0, min(FIRST, largest)
    while start < len(positions):
        yield positions[start : start + size]
        start += size
        size = min(2 * SHOWN - FIRST if start == FIRST else start, largest)


def _attack(subject: Subject, found: Attacked, batches: Sequence[Sequence[int]], limit: float) -> None:
    """Attack batch after batch within the limit of operations; the first images' steps are kept."""
    meter, attack, passes = found.meter, subject.attacks[found.row], 0.0
    for own in batches:
        begun, done = meter.spent, len(found.positions)
        if begun + passes * meter.cost(len(own)) > limit:
            return
        images, labels = subject.images(own), subject.labels[torch.as_tensor(own)].to(subject.device)
        recorded: list[tuple[Tensor, Tensor]] = []
        try:
            has_steps = type(attack) is GradientAttack and not done  # the passes of its heirs are others
            with meter.limited(subject.net, limit), _first_image(subject.net, recorded, len(own), has_steps):
                adversarial = attack(subject.net, images, labels, generator=subject.generators(own))
        except OverBudget:
            return
        passes = (meter.spent - begun) / meter.cost(len(own))
        found.positions += own
        found.images += images.cpu().unbind()
        found.adversarial += adversarial.cpu().unbind()
        if recorded and type(attack) is GradientAttack:
            _keep_steps(found, attack, recorded, subject)


@contextmanager
def _first_image(net: nn.Module, recorded: list[Any], images: int, is_on: bool) -> Iterator[None]:
    """Record the first image of each pass of a whole batch, and its logits."""

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if len(inputs[0]) == images:
            recorded.append((inputs[0][0].detach().cpu(), output[0].detach().cpu()))

    handle = net.register_forward_hook(record) if is_on else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _keep_steps(
    found: Attacked, attack: GradientAttack, recorded: list[tuple[Tensor, Tensor]], subject: Subject
) -> None:
    """Keep the iterates of one run of an attack, the adversarial image last; passes beside the steps come before."""
    if attack.restarts > 1 or attack.eot_samples > 1 or attack.steps < 1:
        return
    passes = recorded[-(attack.steps + attack.keep_best) :][: attack.steps]
    last = found.adversarial[0]
    with torch.no_grad():
        logits = subject.net(last[None].to(subject.device))[0].cpu()
    found.steps = torch.stack([image for image, _ in passes] + [last])
    found.steps_logits = torch.stack([each for _, each in passes] + [logits])
