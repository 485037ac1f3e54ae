"""The shape that every objective has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


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
