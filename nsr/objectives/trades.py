"""TRADES: clean accuracy traded against the stability of the prediction inside the ball.

    L = CE(f(x), y)  +  beta * KL(p(x) || p(x'))        x' maximizes KL(p(x) || p(x')) from x + 0.001 * normal noise

Source: Zhang et al. 2019, equation 5 and algorithm 1; beta is their 1 / lambda, 6 for CIFAR-10.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number
from nsr.losses import kl_divergence, kl_from_clean


class Trades:
    """Natural training and the divergence of the two predictions; gradient through both.

    Args:
        beta: weight of the divergence; 0 is natural training, without the adversarial pass.
        label_smoothing: of the clean cross-entropy, in [0, 1].
    """

    attack_loss = staticmethod(kl_from_clean)

    def __init__(self, *, beta: float = 6.0, label_smoothing: float = 0.0):
        self.beta = check_number("objective.beta", beta, lowest=0)
        self.label_smoothing = check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("clean_logits", *(("adversarial_logits",) if self.beta > 0 else ()), "labels")

    def __call__(
        self, *, clean_logits: Tensor, labels: Tensor, adversarial_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        terms = {"clean_cross_entropy": F.cross_entropy(clean_logits, labels, label_smoothing=self.label_smoothing)}
        if self.beta > 0:
            assert adversarial_logits is not None
            terms["kl_divergence"] = self.beta * kl_divergence(clean_logits, adversarial_logits).mean()
        return terms
