"""What is told of a layer's sensitivities each epoch: a few numbers, and which neurons they are concentrated in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsr.metrics.sensitivity import LayerSensitivity
from nsr.sensitivity import most_sensitive


class LayerTelemetry(NamedTuple):
    """One layer after one validation; sensitivities are absolute, in the units of the layer's activations."""

    absolute: float  # mean over neurons
    maximum: float
    gini: float  # 0: all neurons alike, towards 1: one neuron has it all
    relative: float  # the layer's mean movement over its mean activation
    mean_activation: float
    overlap_previous: float | None  # of the most sensitive neurons with those of the validation before; None: the first
    overlap_first: float
    most_sensitive: list[int]  # ids, most sensitive first

    def figures(self) -> dict[str, float]:
        """{name: number}, those that there are."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, float)}


def layer_telemetry(
    sensitivity: LayerSensitivity, *, top: int, previous: Collection[int] | None, first: Collection[int] | None
) -> LayerTelemetry:
    """The figures of one layer.

    Args:
        sensitivity: (neuron,) each.
        top: how many neurons are named.
        previous, first: the ids that were named at the validation before, and at the first; None: this is the first.
    """
    ids = most_sensitive(sensitivity.absolute, top).tolist()
    means = sensitivity.means()
    return LayerTelemetry(
        absolute=means["absolute"],
        maximum=float(sensitivity.absolute.max()),
        gini=gini(sensitivity.absolute),
        relative=means["relative"],
        mean_activation=means["mean_activation"],
        overlap_previous=None if previous is None else overlap(ids, previous),
        overlap_first=1.0 if first is None else overlap(ids, first),
        most_sensitive=ids,
    )


def gini(values: Tensor) -> float:
    """The Gini coefficient of values (n,) of at least 0: half the mean absolute difference of two, over the mean.

    In [0, 1 - 1/n]; 0 where all are alike, also where all are 0. Source: Gini 1912, in the form over ranks.
    """
    values = values.double().sort().values
    total, count = float(values.sum()), len(values)
    if total == 0:
        return 0.0
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=values.device)
    return float((2 * ranks - count - 1) @ values) / (count * total)


def overlap(ids: Collection[int], others: Collection[int]) -> float:
    """Jaccard's index of two sets of neurons: shared over all, 1 for equal sets."""
    one, other = set(ids), set(others)
    return len(one & other) / len(one | other)


class Telemetry:
    """The figures of all layers over a run; its state goes into checkpoints.

    Args:
        top: how many neurons of a layer are named.
    """

    def __init__(self, *, top: int):
        self.top = top
        self.first: dict[str, list[int]] = {}
        self.previous: dict[str, list[int]] = {}
        self.history: list[tuple[int, dict[str, list[float]]]] = []  # (epoch, {layer: absolute and relative})

    def add(self, epoch: int, sensitivities: Mapping[str, LayerSensitivity]) -> dict[str, LayerTelemetry]:
        """{layer: figures} of an epoch, which becomes the one that the next is compared with."""
        told = {
            layer: layer_telemetry(
                figures, top=self.top, previous=self.previous.get(layer), first=self.first.get(layer)
            )
            for layer, figures in sensitivities.items()
        }
        self.previous = {layer: figures.most_sensitive for layer, figures in told.items()}
        self.first = self.first or self.previous
        means = {layer: [figures.absolute, figures.relative] for layer, figures in told.items()}
        self.history = [*(row for row in self.history if row[0] < epoch), (epoch, means)]
        return told

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"first": self.first, "previous": self.previous, "history": self.history}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.first, self.previous = dict(state["first"]), dict(state["previous"])
        self.history = [(int(epoch), dict(means)) for epoch, means in state["history"]]
