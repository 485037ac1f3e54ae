"""Adversarial logit pairing (ALP): adversarial training that holds the two sides' logits together.

    L = (1 - clean_share) * CE(f(x'), y)  +  clean_share * CE(f(x), y)  +  weight * mean of (f(x) - f(x'))^2

Source: Kannan, Kurakin and Goodfellow 2018, equation 1, over their mixed batches of clean and adversarial images; the
mean over classes too is their released code's. A known over-claim (Engstrom et al. 2018): a baseline, not a defence.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number
from nsr.objectives.adversarial import AdversarialTraining


class LogitPairing(AdversarialTraining):
    """Adversarial training and the squared distance of the logits.

    Args:
        weight: of the pairing; 0 is adversarial training.
        clean_share, label_smoothing: see `AdversarialTraining`.
    """

    def __init__(self, *, weight: float = 0.5, clean_share: float = 0.5, label_smoothing: float = 0.0):
        super().__init__(clean_share=clean_share, label_smoothing=label_smoothing)
        self.weight = check_number("objective.weight", weight, lowest=0)

    @property
    def sides(self) -> tuple[str, ...]:
        return ("adversarial", "clean") if self.weight > 0 else super().sides

    @property
    def terms(self) -> tuple[str, ...]:
        return (*super().terms, "logit_pairing") if self.weight > 0 else super().terms

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        terms = super().__call__(logits, labels)
        if self.weight > 0:
            terms["logit_pairing"] = self.weight * F.mse_loss(logits["clean"], logits["adversarial"])
        return terms
