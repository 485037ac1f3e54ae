"""TRADES: accuracy on clean images, and predictions that stay where they are inside the ball.

    L = CE(f(x), y)  +  beta * KL(p(x) || p(x'))        x' maximises KL(p(x) || p(x')) from x + 0.001 * normal noise

Source: Zhang et al. 2019, equation 5 and algorithm 1; beta is their 1 / lambda, 6 for CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number
from nsr.losses import kl_divergence
from nsr.objectives.objective import check_sides


class Trades:
    """Natural training and the divergence of the two predictions; gradient through both.

    Args:
        beta: weight of the divergence; 0 is natural training, without the adversarial pass.
        label_smoothing: of the clean cross-entropy, in [0, 1].
    """

    def __init__(self, *, beta: float = 6.0, label_smoothing: float = 0.0):
        self.beta = check_number("objective.beta", beta, lowest=0)
        self.label_smoothing = check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1)

    @property
    def sides(self) -> tuple[str, ...]:
        return ("clean", "adversarial") if self.beta > 0 else ("clean",)

    @property
    def terms(self) -> tuple[str, ...]:
        return ("clean_cross_entropy", "kl_divergence") if self.beta > 0 else ("clean_cross_entropy",)

    def __call__(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        check_sides(self, logits)
        terms = {}
        if self.beta > 0:
            terms["kl_divergence"] = self.beta * kl_divergence(logits["clean"], logits["adversarial"]).mean()
        loss = F.cross_entropy(logits["clean"], labels, label_smoothing=self.label_smoothing)
        return {"clean_cross_entropy": loss, **terms}
