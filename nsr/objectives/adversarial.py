"""Adversarial training: cross-entropy on adversarial images, mixed with cross-entropy on clean ones where wanted.

    L = (1 - clean_weight) * CE(f(x'), y)  +  clean_weight * CE(f(x), y)

With clean_weight 1 it is natural training; free adversarial training and logit pairing are variants of it.
The attack makes the method. PGD: Madry et al. 2018 (clean_weight 0; the paper's group, AISafety, takes 0.5, as
Goodfellow et al. 2015 did). FGSM from a random start: Wong et al. 2020. N-FGSM: de Jorge et al. 2022. Examples from
this network or a fixed one, with clean_weight 0.5: Tramer et al. 2018.
"""

from __future__ import annotations

from typing import Any

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
        logits: Any = {"adversarial": adversarial_logits, "clean": clean_logits}
        return {
            f"{view}_cross_entropy": weight
            * F.cross_entropy(logits[view], labels, label_smoothing=self.label_smoothing)
            for view, weight in self.weights.items()
        }


class Natural(AdversarialTraining):
    """Training without adversarial images, L = CE(f(x), y): the undefended baseline.

    Args:
        label_smoothing: of the cross-entropy, in [0, 1].
    """

    def __init__(self, *, label_smoothing: float = 0.0):
        super().__init__(clean_weight=1.0, label_smoothing=label_smoothing)


class Free(AdversarialTraining):
    """Free adversarial training: each batch is replayed, and one backward pass updates network and perturbation.

        for each of m replays:  L = CE(f(x + d), y);  w <- w - step along grad_w L
                                                      d <- project(d + step along grad_x L)

    Source: Shafahi et al. 2019, algorithm 1. d is kept from batch to batch; a run has 1/m of the epochs. The steps
    themselves are in nsr.training.free, the only file that treats `replays`.

    Args:
        replays: m, the optimizer steps per batch.
        label_smoothing: see `AdversarialTraining`.
    """

    def __init__(self, *, replays: int = 4, label_smoothing: float = 0.0):
        super().__init__(label_smoothing=label_smoothing)
        self.replays = check_number("objective.replays", replays, lowest=1, whole=True)


class LogitPairing(AdversarialTraining):
    """Adversarial logit pairing (ALP): adversarial training and the squared distance of the logits.

        L = (1 - clean_weight) * CE(f(x'), y)  +  clean_weight * CE(f(x), y)  +  weight * mean of (f(x) - f(x'))^2

    Source: Kannan, Kurakin and Goodfellow 2018, equation 1, over their mixed batches of clean and adversarial images;
    the mean over classes too is their released code's. A known over-claim (Engstrom et al. 2018): a baseline, not a
    defense.

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
