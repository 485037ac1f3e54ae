"""Natural training: cross-entropy on clean images, L = CE(f(x), y)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number
from nsr.objectives.objective import check_sides


class Natural:
    """No adversarial images at all: the undefended baseline.

    Args:
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    sides: tuple[str, ...] = ("clean",)
    terms: tuple[str, ...] = ("clean_cross_entropy",)

    def __init__(self, *, label_smoothing: float = 0.0):
        self.label_smoothing = check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1)

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        check_sides(self, logits)
        loss = F.cross_entropy(logits["clean"], labels, label_smoothing=self.label_smoothing)
        return {"clean_cross_entropy": loss}
