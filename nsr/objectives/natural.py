"""Natural training: cross-entropy on clean images, L = CE(f(x), y)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number


class Natural:
    """Training without adversarial images: the undefended baseline.

    Args:
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    def __init__(self, *, label_smoothing: float = 0.0):
        self.label_smoothing = check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1)

    def __call__(self, clean_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = F.cross_entropy(clean_logits, labels, label_smoothing=self.label_smoothing)
        return {"clean_cross_entropy": loss}
