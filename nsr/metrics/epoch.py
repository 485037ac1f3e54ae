"""What an epoch adds up: of training its loss terms and accuracies, of validation accuracies, losses, sensitivities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torchmetrics import Metric

from nsr.layers import Layer
from nsr.metrics.sensitivity import Accuracy, ClassCounts, Mean, NetworkSensitivity

FINITE = torch.iinfo(torch.int64).max  # the first step with a broken loss, where there is none


class TrainingMeasures(nn.Module):
    """Means of the loss and its terms, accuracies, and whether each loss was finite; `update` waits for no device.

    Args:
        terms: of the loss, which is their sum.
        sides: 'clean', 'adversarial': those that the objective has logits of.
    """

    means: Any  # {term: Mean}; nn.ModuleDict, whose entries mypy does not know
    accuracies: Any  # {side: Accuracy}

    def __init__(self, terms: Sequence[str], sides: Sequence[str]):
        super().__init__()
        self.means = nn.ModuleDict({term: Mean() for term in ("loss", *terms)})
        self.accuracies = nn.ModuleDict({side: Accuracy() for side in sides})
        self.not_finite = torch.tensor(FINITE)  # the first step whose loss was not; no buffer, each process has its own

    def update(
        self, loss: Tensor, terms: Mapping[str, Tensor], logits: Mapping[str, Tensor], labels: Tensor, *, step: int
    ) -> None:
        """Adds a step: scalars, and (batch, class) of each side."""
        for term, mean in self.means.items():
            value = loss if term == "loss" else terms.get(term, torch.zeros_like(loss))  # a ramp left it out
            mean.update(value, len(labels))
        for side, side_logits in logits.items():
            self.accuracies[side].update(side_logits.detach(), labels)
        here = torch.full_like(self.not_finite, step)  # filled on the device, nothing is copied there
        broken = torch.where(loss.detach().isfinite(), self.not_finite, here)
        self.not_finite = torch.minimum(self.not_finite, broken)

    @property
    def names(self) -> list[str]:
        """Those of `figures`."""
        return [*self.means, *("clean_accuracy" if side == "clean" else "robust_accuracy" for side in self.accuracies)]

    def figures(self) -> list[float]:
        """Means and accuracies over all processes."""
        return [float(metric.compute()) for metric in self._metrics]

    def so_far(self) -> dict[str, float]:
        """{term: mean so far} of this process alone."""
        return {term: float(mean.total / mean.count) for term, mean in self.means.items()}

    def first_not_finite(self) -> int | None:
        """The first step whose loss was not finite in any process, if there is one; waits for the device."""
        first = self.not_finite.clone()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(first, op=distributed.ReduceOp.MIN)
        step = int(first)
        return None if step == FINITE else step

    def sums(self) -> Tensor:
        """Everything that is added up, of this process: (sum,) float64."""
        return torch.stack([getattr(metric, name).double() for metric, name in self._states()])

    def take_up(self, sums: Tensor) -> None:
        """Goes on from the `sums` of an epoch that was interrupted."""
        for (metric, name), saved in zip(self._states(), sums, strict=True):
            setattr(metric, name, saved.to(getattr(metric, name)))

    def reset(self) -> None:
        """Empties all sums."""
        for metric in self._metrics:
            metric.reset()

    @property
    def _metrics(self) -> list[Metric]:
        return [*self.means.values(), *self.accuracies.values()]

    def _states(self) -> list[tuple[Metric, str]]:
        return [(metric, name) for metric in self._metrics for name in metric.metric_state]


class ValidationMeasures(nn.Module):
    """What validation adds up: accuracy and cross-entropy clean and attacked, sensitivities, classes predicted."""

    accuracies: Any  # {name: Accuracy}
    losses: Any  # {name: Mean}

    def __init__(self, layers: Sequence[Layer], classes: int):
        super().__init__()
        self.accuracies = nn.ModuleDict({name: Accuracy() for name in ("clean", "robust")})
        self.losses = nn.ModuleDict({name: Mean() for name in self.accuracies})
        self.sensitivity = NetworkSensitivity(layers)
        self.class_counts = ClassCounts(classes)

    def update(self, name: str, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch of logits (batch, class) and labels (batch,)."""
        self.accuracies[name].update(logits, labels)
        self.losses[name].update(nn.functional.cross_entropy(logits, labels), len(labels))

    @property
    def names(self) -> list[str]:
        """Those of `figures`."""
        return [f"{name}_{what}" for what in ("accuracy", "cross_entropy") for name in self.accuracies]

    def figures(self) -> list[float]:
        """Accuracies and cross-entropies over all processes."""
        return [float(metric.compute()) for metric in (*self.accuracies.values(), *self.losses.values())]

    def reset(self) -> None:
        """Empties all sums."""
        for metric in (*self.accuracies.values(), *self.losses.values(), self.sensitivity, self.class_counts):
            metric.reset()
