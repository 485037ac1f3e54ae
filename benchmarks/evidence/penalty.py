"""A control of SNS: it makes activations smaller, and with them their differences, without looking at differences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ActivationPenalty(nn.Module):
    """weight * mean over layers and both views of mean |output|, an L1 penalty, as a stabilizer.

    Args:
        weight: of the term in the objective.
    """

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted term, a scalar, from {layer: (batch, neuron, ...)} of each view."""
        means = [values.float().abs().mean() for view in (clean, adversarial) for values in view.values()]
        return self.weight * torch.stack(means).mean()
