"""Metrics as torchmetrics: sensitivities, accuracy, class counts, means.

Each accumulates sums over batches and processes and divides last, so that its value is the same for any split.
"""

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
from nsr.sensitivity import KINDS, SensitivitySums, divide, sensitivity_sums


class _Sums(Metric):
    """Metric of sums over samples, of which `count` is the number."""

    full_state_update = False
    is_differentiable = False
    count: Tensor

    def __init__(self, sums: Mapping[str, Tensor], **settings: Any):
        super().__init__(**settings)
        for name, nothing in {**sums, "count": torch.zeros((), dtype=torch.int64)}.items():
            self.add_state(name, nothing, dist_reduce_fx="sum")


class _NeuronSums(_Sums):
    """Sums of each neuron's activation difference and activation."""

    difference: Tensor
    activation: Tensor

    def __init__(self, shape: tuple[int, ...], **settings: Any):
        names = ("difference", "activation")
        super().__init__({name: torch.zeros(shape, dtype=torch.float64) for name in names}, **settings)

    def _add(self, sums: SensitivitySums) -> None:
        self.difference = self.difference + sums.difference
        self.activation = self.activation + sums.activation
        self.count = self.count + sums.samples

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Keep vectors: torchmetrics would turn that of a layer with one neuron into a scalar."""
        wrapped = super()._wrap_compute(compute)

        @wraps(compute)
        def with_axis() -> Any:
            return apply_to_collection(wrapped(), Tensor, torch.atleast_1d)

        return with_axis


class NeuronSensitivity(_NeuronSums):
    """Sensitivity of one layer's neurons over any number of batches and processes; a torchmetrics Metric.

    `update(clean, adversarial)` takes the layer's outputs on a batch of pairs; `compute()` returns (neuron,) float64,
    equal to `neuron_sensitivity` of all pairs at once.

    Args:
        kind, neuron_dim: as in `neuron_sensitivity`.
        neurons: the number of neurons; needed only where a process may see no batch at all.
        settings: of `torchmetrics.Metric`.

    Errors:
        InputError: an unknown kind; in `update` those of `neuron_sensitivity`.
    """

    higher_is_better = False

    def __init__(self, *, kind: str = "absolute", neuron_dim: int = 1, neurons: int | None = None, **settings: Any):
        super().__init__((neurons,) if neurons else (), **settings)
        self.kind = check_choice("kind", kind, KINDS)
        self.neuron_dim = neuron_dim

    def update(self, clean: Tensor, adversarial: Tensor) -> None:
        """Add a batch of pairs, (batch, neuron, ...) each."""
        settings: Any = {"kind": self.kind, "neuron_dim": self.neuron_dim, "dtype": torch.float64}
        self._add(sensitivity_sums(clean.detach(), adversarial.detach(), **settings))

    def compute(self) -> Tensor:
        """Return (neuron,) float64."""
        return divide(SensitivitySums(self.difference, self.activation, self.count), self.kind)


class LayerSensitivity(NamedTuple):
    """Sensitivities of one layer as they are reported, each (neuron,) float64."""

    absolute: Tensor
    relative: Tensor
    mean_activation: Tensor  # mean over samples and positions of |F(x)|

    def means(self) -> dict[str, float]:
        """Return the neurons' mean activation difference and mean activation, and the ratio of the two.

        The mean of the neurons' ratios would be infinite as soon as one of them is 0 on clean images alone.
        """
        absolute, activation = self.absolute.mean(), self.mean_activation.mean()
        relative = divide(SensitivitySums(absolute, activation, 1), "relative")
        return {"absolute": float(absolute), "relative": float(relative), "mean_activation": float(activation)}


def network_sums(
    layers: Sequence[Layer], clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the sums of activation difference and of activation of all layers' neurons, each (neuron,) float64.

    Args:
        clean, adversarial: {layer: (batch, neuron, ...)} of a batch of pairs.
    """
    sums = []
    for layer in layers:
        views = clean[layer.name].detach(), adversarial[layer.name].detach()
        sums.append(sensitivity_sums(*views, dtype=torch.float64))
    return torch.cat([layer.difference for layer in sums]), torch.cat([layer.activation for layer in sums])


class NetworkSensitivity(_NeuronSums):
    """Sensitivities of all captured layers; processes exchange one flat vector a state, however many the layers."""

    def __init__(self, layers: Sequence[Layer], **settings: Any):
        super().__init__((sum(layer.neurons for layer in layers),), **settings)
        self.layers = list(layers)

    def update(self, difference: Tensor, activation: Tensor, samples: int) -> None:
        """Add the result of `network_sums` on so many samples."""
        self._add(SensitivitySums(difference, activation, samples))

    def compute(self) -> dict[str, LayerSensitivity]:
        """Return {layer: its sensitivities}, in the order of the layers."""
        widths = [layer.neurons for layer in self.layers]
        parts = zip(self.layers, self.difference.split(widths), self.activation.split(widths), strict=True)
        sensitivities = {}
        for layer, difference, activation in parts:
            sums = SensitivitySums(difference, activation, self.count)
            relative = divide(sums, "relative")
            sensitivities[layer.name] = LayerSensitivity(divide(sums), relative, activation / self.count)
        return sensitivities


class _Ratio(_Sums):
    """A total over samples, divided by their number."""

    total: Tensor

    def __init__(self, **settings: Any):
        super().__init__({"total": torch.zeros((), dtype=torch.float64)}, **settings)

    def compute(self) -> Tensor:
        """Return a scalar, float64."""
        return self.total / self.count


class Mean(_Ratio):
    """Mean of a value over samples; unlike torchmetrics' own it copies nothing to the device."""

    def update(self, value: Tensor, samples: int) -> None:
        """Add a batch's mean, a scalar, and the number of samples that it is the mean of."""
        self.total = self.total + value.detach().double() * samples
        self.count = self.count + samples


class Accuracy(_Ratio):
    """Fraction of correctly classified images, in [0, 1]."""

    higher_is_better = True

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: (batch, class) and (batch,)."""
        self.total = self.total + (logits.argmax(1) == labels).sum()
        self.count = self.count + len(labels)


class ClassCounts(Metric):
    """Numbers of images predicted as each class and labeled as it.

    Unlike torch.bincount, whose result has a length that is read from the device, nothing here waits for the device.
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, classes: int, **settings: Any):
        super().__init__(**settings)
        self.add_state("counts", torch.zeros(2, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: (batch, class) and (batch,)."""
        each = torch.stack([logits.argmax(1), labels])  # (2, batch)
        classes = torch.arange(self.counts.shape[1], device=labels.device)
        self.counts = self.counts + (each[:, :, None] == classes).sum(1)

    def compute(self) -> Tensor:
        """Return (2, class) int64: predicted as the class, labeled as the class."""
        return self.counts
