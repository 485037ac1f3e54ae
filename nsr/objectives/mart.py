"""MART: misclassification-aware adversarial training.

    L = BCE(p(x'), y)  +  weight * mean of KL(p(x) || p(x')) * (1 - p_y(x))
    BCE(p, y) = -log p_y - log(1 - max over k != y of p_k)

Source: Wang et al. 2020, equations 7 and 11; weight is their lambda, 5. Their released code adds 1e-12 and 1.0001
inside the logarithms; from log-softmax none is needed. Label smoothing is not defined for the boosted cross-entropy.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import InputError, check_number
from nsr.losses import boosted_cross_entropy, kl_divergence


class Mart:
    """Boosted cross-entropy on adversarial images, and a divergence weighted by the error of the clean prediction.

    Args:
        weight: of the divergence.
        label_smoothing: 0 alone; another is refused with the reason.
    """

    soft_labels = False  # the boosted cross-entropy has no published form for class probabilities

    def __init__(self, *, weight: float = 5.0, label_smoothing: float = 0.0):
        self.weight = check_number("objective.weight", weight, lowest=0)
        if check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1):
            why = "MART's boosted cross-entropy has no published form for soft labels"
            raise InputError(f"objective.label_smoothing is {label_smoothing}; {why}: leave it at 0")

    def __call__(self, adversarial_logits: Tensor, clean_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        wrong = 1 - F.softmax(clean_logits, dim=1).gather(1, labels[:, None])[:, 0]
        return {
            "boosted_cross_entropy": boosted_cross_entropy(adversarial_logits, labels).mean(),
            "weighted_kl_divergence": self.weight * (kl_divergence(clean_logits, adversarial_logits) * wrong).mean(),
        }
