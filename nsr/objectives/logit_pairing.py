"""Adversarial logit pairing (ALP): adversarial training that pulls clean and adversarial logits together.

    L = (1 - clean_weight) * CE(f(x'), y)  +  clean_weight * CE(f(x), y)  +  weight * mean of (f(x) - f(x'))^2

Source: Kannan, Kurakin and Goodfellow 2018, equation 1, over their mixed batches of clean and adversarial images; the
mean over classes too is their released code's. A known over-claim (Engstrom et al. 2018): a baseline, not a defense.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number
from nsr.objectives.adversarial import AdversarialTraining


class LogitPairing(AdversarialTraining):
    """Adversarial training and the squared distance of the logits.

    Args:
        weight: of the pairing; 0 is adversarial training.
        clean_weight, label_smoothing: see `AdversarialTraining`.
    """

    def __init__(self, *, weight: float = 0.5, clean_weight: float = 0.5, label_smoothing: float = 0.0):
        super().__init__(clean_weight=clean_weight, label_smoothing=label_smoothing)
        self.weight = check_number("objective.weight", weight, lowest=0)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("adversarial_logits", "clean_logits", "labels") if self.weight > 0 else super().inputs

    def __call__(
        self, *, labels: Tensor, adversarial_logits: Tensor | None = None, clean_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        terms = super().__call__(labels=labels, adversarial_logits=adversarial_logits, clean_logits=clean_logits)
        if self.weight > 0:
            pairing = F.mse_loss(clean_logits, adversarial_logits)  # type: ignore[arg-type]
            terms["logit_pairing"] = self.weight * pairing
        return terms
