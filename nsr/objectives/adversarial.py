"""Adversarial training: cross-entropy on adversarial images, with a share of clean ones where wanted.

    L = (1 - clean_share) * CE(f(x'), y)  +  clean_share * CE(f(x), y)

The attack makes the method. PGD: Madry et al. 2018 (clean_share 0; the paper's group, AISafety, takes 0.5, as
Goodfellow et al. 2015 did). FGSM from a random start: Wong et al. 2020. N-FGSM: de Jorge et al. 2022. Examples from
this network or a fixed one, with clean_share 0.5: Tramer et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number
from nsr.objectives.objective import check_sides


class AdversarialTraining:
    """Adversarial training on whatever images the attack gives.

    Args:
        clean_share: the weight of the clean cross-entropy, in [0, 1]; 1 is natural training.
        label_smoothing: of both cross-entropies, in [0, 1].
    """

    def __init__(self, *, clean_share: float = 0.0, label_smoothing: float = 0.0):
        self.clean_share = check_number("objective.clean_share", clean_share, lowest=0, highest=1)
        self.label_smoothing = check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1)
        shares = {"adversarial": 1 - clean_share, "clean": clean_share}
        # a pass whose logits nothing uses is not made
        self.shares = {side: share for side, share in shares.items() if share > 0}

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(self.shares)

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(f"{side}_cross_entropy" for side in self.shares)

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        check_sides(self, logits)
        return {
            f"{side}_cross_entropy": share * F.cross_entropy(logits[side], labels, label_smoothing=self.label_smoothing)
            for side, share in self.shares.items()
        }
