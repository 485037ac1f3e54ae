"""Adversarial training: cross-entropy on adversarial images, with a share of clean ones where wanted.

    L = (1 - clean_share) * CE(f(x'), y)  +  clean_share * CE(f(x), y)

Madry et al. 2018 train with clean_share 0; the paper's group (AISafety) with 0.5, as Goodfellow et al. 2015 did.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number


class AdversarialTraining:
    """Adversarial training on whatever images the attack gives (PGD, FGSM).

    Args:
        clean_share: the weight of the clean cross-entropy, in [0, 1]; 1 is natural training.
    """

    def __init__(self, *, clean_share: float = 0.0):
        self.clean_share = check_number("objective.clean_share", clean_share, lowest=0, highest=1)
        shares = {"adversarial": 1 - clean_share, "clean": clean_share}
        self.shares = {side: share for side, share in shares.items() if share > 0}

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(self.shares)

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(f"{side}_cross_entropy" for side in self.shares)

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        return {
            f"{side}_cross_entropy": share * F.cross_entropy(logits[side], labels)
            for side, share in self.shares.items()
        }
