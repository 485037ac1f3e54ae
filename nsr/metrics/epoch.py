"""Per-epoch metrics: what training and validation accumulate, and the result of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torchmetrics import Metric

from nsr.errors import InputError
from nsr.layers import Layer
from nsr.metrics.sensitivity import Accuracy, ClassCounts, LayerSensitivity, Mean, NetworkSensitivity

FINITE = torch.iinfo(torch.int64).max  # `not_finite` while every loss was finite
# behind clean_, robust_ or the name of a row; a user's own metric has another name
OWN_METRICS = frozenset({"accuracy", "cross_entropy", "low", "high", "median_distance"})
ACCURACY = {"clean": "clean_accuracy", "adversarial": "robust_accuracy"}  # of the views


@dataclass(frozen=True)
class EpochResult:
    """Results of one validation; callbacks and loggers take this object."""

    epoch: int  # 0: before training
    train: Mapping[str, float]  # {'train/loss': ...} of the same epoch; empty before training
    validation: Mapping[str, float]  # {'validation/clean_accuracy': ...}, fractions and mean losses
    sensitivities: Mapping[str, LayerSensitivity] = field(repr=False)  # {layer: ...} under the validation attack
    predicted: tuple[int, ...] = ()  # images predicted as each class
    labelled: tuple[int, ...] = ()  # images of each class


class _EpochMetrics(nn.Module):
    def reset(self) -> None:
        """Empty all sums."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


class TrainingMetrics(_EpochMetrics):
    """Means of the loss and its terms, accuracies, and whether each loss was finite; `update` waits for no device.

    Args:
        terms: names of the loss terms, where they are known; a term that appears later is added.
        views: 'clean', 'adversarial': those that the objective has logits of.
    """

    means: Any  # {term: Mean}; nn.ModuleDict, whose entries mypy does not know
    accuracies: Any  # {view: Accuracy}

    def __init__(self, terms: Sequence[str], views: Sequence[str]):
        super().__init__()
        self.means = nn.ModuleDict({term: Mean() for term in ("loss", *terms)})
        self.accuracies = nn.ModuleDict({view: Accuracy() for view in views})
        self.not_finite = torch.tensor(FINITE)  # the first step whose loss was not; no buffer, each process has its own

    def add_terms(self, terms: Sequence[str]) -> None:
        """Name the terms of the loss before the first step, in the order of their columns."""
        self.means.update({term: Mean() for term in terms})

    def update(
        self, loss: Tensor, terms: Mapping[str, Tensor], logits: Mapping[str, Tensor], labels: Tensor, *, step: int
    ) -> None:
        """Add a step: scalars, logits (batch, class) of each view, labels (batch,) or probabilities (batch, class).

        An accuracy is that of the most probable class of mixed labels.
        """
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        for term in terms:
            if term not in self.means:
                self.means[term] = Mean().to(loss.device)
        for term, mean in self.means.items():
            value = loss if term == "loss" else terms.get(term, torch.zeros_like(loss))  # a ramp left it out
            mean.update(value, len(labels))
        for view, accuracy in self.accuracies.items():
            accuracy.update(logits[view].detach(), classes)
        here = torch.full_like(self.not_finite, step)  # filled on the device, nothing is copied there
        broken = torch.where(loss.detach().isfinite(), self.not_finite, here)
        self.not_finite = torch.minimum(self.not_finite, broken)

    @property
    def is_empty(self) -> bool:
        """Whether no image was added since the last reset; waits for the device."""
        return float(self.means["loss"].count) == 0

    @property
    def names(self) -> list[str]:
        """Names in `compute`, in its order."""
        return list(self._metrics)

    def compute(self) -> dict[str, float]:
        """Return {'train/NAME': mean or accuracy} over all processes; none that a training_step of its own left out."""
        return {name: float(metric.compute()) for name, metric in self._metrics.items() if metric.update_called}

    def first_not_finite(self) -> int | None:
        """Return the first step whose loss was not finite in any process, else None; waits for the device."""
        first = self.not_finite.clone()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(first, op=distributed.ReduceOp.MIN)
        step = int(first)
        return None if step == FINITE else step

    def sums(self) -> Tensor:
        """Return every accumulated sum of this process: (sum,) float64."""
        return torch.stack([getattr(metric, name).double() for metric, name in self._states])

    def load_sums(self, sums: Tensor) -> None:
        """Continue from the `sums` of an interrupted epoch."""
        if len(self._states) != len(sums):
            return  # terms that are known after the first step alone: the epoch's means begin here
        empty = torch.zeros(0, 1, device=self.means["loss"].total.device)
        for mean in self.means.values():  # torchmetrics warns of a metric that nothing was added to
            mean.update(empty.sum(), 0)
        for accuracy in self.accuracies.values():
            accuracy.update(empty, empty[:, 0].long())
        for (metric, name), saved in zip(self._states, sums, strict=True):
            setattr(metric, name, saved.to(getattr(metric, name)))

    @property
    def _metrics(self) -> dict[str, Metric]:
        accuracies = {ACCURACY[view]: metric for view, metric in self.accuracies.items()}
        return {f"train/{name}": metric for name, metric in {**self.means, **accuracies}.items()}

    @property
    def _states(self) -> list[tuple[Metric, str]]:
        return [(metric, name) for metric in self._metrics.values() for name in metric.metric_state]


class ValidationMetrics(_EpochMetrics):
    """Accuracy and cross-entropy, clean and robust, sensitivities, predicted classes, and the user's own metrics.

    Args:
        layers: the hooked layers.
        classes: number of classes.
        extra: {name: torchmetrics Metric of (logits, labels)}, each on clean and on adversarial images.
    """

    accuracies: Any  # {name: Accuracy}
    losses: Any  # {name: Mean}
    extra: Any  # {clean_NAME, robust_NAME: Metric}

    def __init__(self, layers: Sequence[Layer], classes: int, extra: Mapping[str, Metric] | None = None):
        super().__init__()
        self.accuracies = nn.ModuleDict({name: Accuracy() for name in ("clean", "robust")})
        self.losses = nn.ModuleDict({name: Mean() for name in self.accuracies})
        self.sensitivity = NetworkSensitivity(layers)
        self.class_counts = ClassCounts(classes)
        self.extra = nn.ModuleDict(
            {f"{kind}_{name}": metric.clone() for name, metric in (extra or {}).items() for kind in self.accuracies}
        )

    @property
    def names(self) -> list[str]:
        """Names in `compute`, without those of the user's own metrics."""
        return [f"validation/{kind}_{name}" for name in ("accuracy", "cross_entropy") for kind in self.accuracies]

    def update(self, kind: str, logits: Tensor, labels: Tensor) -> Tensor:
        """Add a batch of logits (batch, class) and labels (batch,); return its cross-entropy, a scalar.

        Args:
            kind: 'clean' or 'robust'.
        """
        loss = nn.functional.cross_entropy(logits, labels)
        self.accuracies[kind].update(logits, labels)
        self.losses[kind].update(loss, len(labels))
        if kind == "clean":
            self.class_counts.update(logits, labels)
        for name, metric in self.extra.items():
            if name.startswith(f"{kind}_"):
                metric.update(logits, labels)
        return loss

    def compute(self) -> dict[str, float]:
        """Return {'validation/NAME': value} over all processes."""
        values = {f"{kind}_accuracy": metric.compute() for kind, metric in self.accuracies.items()}
        values |= {f"{kind}_cross_entropy": metric.compute() for kind, metric in self.losses.items()}
        values |= {name: metric.compute() for name, metric in self.extra.items()}
        return {f"validation/{name}": value for name, value in flat_values(values).items()}


def flat_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Return {name: float}; a vector such as per-class recall becomes NAME_0, NAME_1, ..., a mapping NAME_KEY.

    Errors:
        InputError: a value that is neither, nor a number.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_values({f"{name}_{key}": entry for key, entry in value.items()})
        elif isinstance(value, Tensor) and value.numel() != 1:
            found |= {f"{name}_{index}": float(entry) for index, entry in enumerate(value.flatten())}
        elif isinstance(value, (Tensor, int, float)):
            found[name] = float(value)
        else:
            raise InputError(f"the metric {name} is {value!r:.80}; it must be a number, a tensor or a dict of these")
    return found
