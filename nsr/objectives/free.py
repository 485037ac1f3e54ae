"""Free adversarial training: each batch is replayed, and one backward pass updates network and perturbation.

    for each of m replays:  L = CE(f(x + d), y);  w <- w - step along grad_w L;  d <- project(d + step along grad_x L)

Source: Shafahi et al. 2019, algorithm 1. d is kept from batch to batch; a run has 1/m of the epochs. The steps
themselves are in nsr.training.free, the only file that treats `replays`.
"""

from __future__ import annotations

from nsr.errors import check_number
from nsr.objectives.adversarial import AdversarialTraining


class Free(AdversarialTraining):
    """Adversarial training on the kept perturbation.

    Args:
        replays: m, the optimizer steps per batch.
        label_smoothing: see `AdversarialTraining`.
    """

    def __init__(self, *, replays: int = 4, label_smoothing: float = 0.0):
        super().__init__(label_smoothing=label_smoothing)
        self.replays = check_number("objective.replays", replays, lowest=1, whole=True)
