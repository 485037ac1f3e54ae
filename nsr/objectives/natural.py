"""Natural training: cross-entropy on clean images, L = CE(f(x), y)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F


class Natural:
    """No adversarial images at all: the undefended baseline."""

    sides: tuple[str, ...] = ("clean",)
    terms: tuple[str, ...] = ("clean_cross_entropy",)

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        return {"clean_cross_entropy": F.cross_entropy(logits["clean"], labels)}
