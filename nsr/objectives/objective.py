"""The shape that every objective has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from nsr.errors import InputError


class Objective(Protocol):
    """Says which passes through the network it needs, and makes its terms of their logits; the loss is their sum."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The passes its definition needs, of 'clean' and 'adversarial'; these feed BatchNorm's statistics."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of its terms."""

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """{term: scalar} from {side: (batch, class)} and labels (batch,)."""


def check_sides(objective: Objective, logits: Mapping[str, Tensor]) -> None:
    """InputError where a pass that the objective needs was not made."""
    missing = [side for side in objective.sides if side not in logits]
    if missing:
        name, needed = type(objective).__name__, " and ".join(objective.sides)
        raise InputError(f"the objective {name} needs {needed} logits; it was given no {missing[0]} ones")
