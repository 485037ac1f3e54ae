"""Adversarial training: cross-entropy on adversarial images, mixed with cross-entropy on clean ones where wanted.

    L = (1 - clean_weight) * CE(f(x'), y)  +  clean_weight * CE(f(x), y)

The attack makes the method. PGD: Madry et al. 2018 (clean_weight 0; the paper's group, AISafety, takes 0.5, as
Goodfellow et al. 2015 did). FGSM from a random start: Wong et al. 2020. N-FGSM: de Jorge et al. 2022. Examples from
this network or a fixed one, with clean_weight 0.5: Tramer et al. 2018.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nsr.errors import check_number


class AdversarialTraining:
    """Adversarial training on the images of any attack.

    Args:
        clean_weight: weight of the clean cross-entropy, in [0, 1]; 1 is natural training.
        label_smoothing: of both cross-entropies, in [0, 1].
    """

    def __init__(self, *, clean_weight: float = 0.0, label_smoothing: float = 0.0):
        self.clean_weight = check_number("objective.clean_weight", clean_weight, lowest=0, highest=1)
        self.label_smoothing = check_number("objective.label_smoothing", label_smoothing, lowest=0, highest=1)
        weights = {"adversarial": 1 - clean_weight, "clean": clean_weight}
        # a pass whose logits have no weight is not made
        self.weights = {view: weight for view, weight in weights.items() if weight > 0}

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*(f"{view}_logits" for view in self.weights), "labels")

    def __call__(
        self, *, labels: Tensor, adversarial_logits: Tensor | None = None, clean_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = {"adversarial": adversarial_logits, "clean": clean_logits}
        return {
            f"{view}_cross_entropy": weight
            * F.cross_entropy(logits[view], labels, label_smoothing=self.label_smoothing)  # type: ignore[arg-type]
            for view, weight in self.weights.items()
        }
