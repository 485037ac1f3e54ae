"""Sums over batches and processes: sensitivities and counts of right answers. Divided last, exact for any split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from lightning_utilities import apply_to_collection
from torch import Tensor
from torchmetrics import Metric

from nsr.errors import check_choice
from nsr.layers import Layer
from nsr.run.files import ratio
from nsr.sensitivity import KINDS, SensitivitySums, divide, sensitivity_sums


class _NeuronMetric(Metric):
    """A metric whose vectors stay vectors: torchmetrics would make a number of a layer with one neuron."""

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @wraps(compute)
        def with_axis() -> Any:
            return apply_to_collection(wrapped(), Tensor, torch.atleast_1d)

        return with_axis


class NeuronSensitivity(_NeuronMetric):
    """The sensitivity of one layer's neurons over any number of batches and processes; a torchmetrics Metric.

    `update(clean, adversarial)` takes the layer's outputs on a batch of pairs, `compute()` gives (neuron,) float64:
    `neuron_sensitivity` of all pairs at once, whatever the batches were.

    Args:
        kind, neuron_dim: as in `neuron_sensitivity`.
        neurons: the number of neurons; needed only where a process may see no batch at all.
    """

    higher_is_better = False
    full_state_update = False
    is_differentiable = False
    movement: Tensor
    activation: Tensor
    count: Tensor

    def __init__(self, *, kind: str = "absolute", neuron_dim: int = 1, neurons: int | None = None, **settings: Any):
        super().__init__(**settings)
        self.kind = check_choice("kind", kind, KINDS)
        self.neuron_dim = neuron_dim
        nothing = torch.zeros((neurons,) if neurons else (), dtype=torch.float64)
        self.add_state("movement", nothing.clone(), dist_reduce_fx="sum")
        self.add_state("activation", nothing.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, clean: Tensor, adversarial: Tensor) -> None:
        """Adds a batch of pairs, each side (batch, neuron, ...)."""
        sums = sensitivity_sums(
            clean.detach(), adversarial.detach(), kind=self.kind, neuron_dim=self.neuron_dim, dtype=torch.float64
        )
        self.movement = self.movement + sums.movement
        self.activation = self.activation + sums.activation
        self.count = self.count + sums.samples

    def compute(self) -> Tensor:
        """(neuron,) float64."""
        return divide(SensitivitySums(self.movement, self.activation, self.count), self.kind)


class LayerSensitivity(NamedTuple):
    """What is reported of one layer, each (neuron,) float64."""

    absolute: Tensor
    relative: Tensor
    mean_activation: Tensor  # mean over samples and positions of |F(x)|

    def means(self) -> dict[str, float]:
        """The layer's own figures: its neurons' mean movement and activation, and the ratio of the two.

        The mean of the neurons' ratios would be infinite as soon as one of them is silent on clean images alone.
        """
        absolute, activation = float(self.absolute.mean()), float(self.mean_activation.mean())
        return {"absolute": absolute, "relative": ratio(absolute, activation), "mean_activation": activation}


def network_sums(
    layers: Sequence[Layer], clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The sums of movement and activation of all layers' neurons, one after the other, each (neuron,) float64."""
    sums = [
        sensitivity_sums(
            clean[layer.name].detach(),
            adversarial[layer.name].detach(),
            neuron_dim=layer.neuron_dim,
            dtype=torch.float64,
        )
        for layer in layers
    ]
    return torch.cat([layer.movement for layer in sums]), torch.cat([layer.activation for layer in sums])


class NetworkSensitivity(_NeuronMetric):
    """The sensitivities of all tapped layers at once, in flat states: what processes exchange is one vector each."""

    full_state_update = False
    is_differentiable = False
    movement: Tensor
    activation: Tensor
    count: Tensor

    def __init__(self, layers: Sequence[Layer], **settings: Any):
        super().__init__(**settings)
        self.layers = list(layers)
        neurons = sum(layer.neurons for layer in layers)
        self.add_state("movement", torch.zeros(neurons, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("activation", torch.zeros(neurons, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, movement: Tensor, activation: Tensor, samples: int) -> None:
        """Adds what `network_sums` gave of so many samples."""
        self.movement = self.movement + movement
        self.activation = self.activation + activation
        self.count = self.count + samples

    def compute(self) -> dict[str, LayerSensitivity]:
        """{layer: its sensitivities}, in the order of the layers."""
        widths = [layer.neurons for layer in self.layers]
        parts = zip(self.layers, self.movement.split(widths), self.activation.split(widths), strict=True)
        figures = {}
        for layer, movement, activation in parts:
            sums = SensitivitySums(movement, activation, self.count)
            figures[layer.name] = LayerSensitivity(divide(sums), divide(sums, "relative"), activation / self.count)
        return figures


class Accuracy(Metric):
    """The share of right answers from whole counts, so that it is exact for any split."""

    higher_is_better = True
    full_state_update = False
    is_differentiable = False
    correct: Tensor
    count: Tensor

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: (batch, class) and (batch,)."""
        self.correct = self.correct + (logits.argmax(1) == labels).sum()
        self.count = self.count + len(labels)

    def compute(self) -> Tensor:
        """A fraction in [0, 1], float64."""
        return self.correct.double() / self.count


class ClassCounts(Metric):
    """How many images are predicted as each class and how many are of it; nothing in it waits for the device.

    torch.bincount would: the length of what it gives is read from the device.
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, classes: int, **settings: Any):
        super().__init__(**settings)
        self.add_state("counts", torch.zeros(2, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: (batch, class) and (batch,)."""
        each = torch.stack([logits.argmax(1), labels])  # (2, batch)
        classes = torch.arange(self.counts.shape[1], device=labels.device)
        self.counts = self.counts + (each[:, :, None] == classes).sum(1)

    def compute(self) -> Tensor:
        """(2, class) int64: predicted as the class, of the class."""
        return self.counts


class Mean(Metric):
    """The mean of a figure over samples; unlike torchmetrics' own it copies nothing to the device."""

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, value: Tensor, samples: int) -> None:
        """Adds a batch's mean, a scalar, and how many samples it is the mean of."""
        self.total = self.total + value.detach().double() * samples
        self.count = self.count + samples

    def compute(self) -> Tensor:
        """A scalar, float64."""
        return self.total / self.count
