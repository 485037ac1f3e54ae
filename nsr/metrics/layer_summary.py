"""Layer summaries: a few numbers on each layer's sensitivities after a validation, and its most sensitive neurons."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsr.metrics.sensitivity import LayerSensitivity
from nsr.sensitivity import most_sensitive

MEANS = ("absolute", "relative", "mean_activation")  # always reported together: a network may merely shrink
TABLE, HISTOGRAM = "sensitivity/layers", "sensitivity/histogram"


class LayerSummary(NamedTuple):
    """One layer after one validation; sensitivities are absolute, in units of the layer's activations."""

    absolute: float  # mean over neurons
    maximum: float
    gini: float  # 0: all neurons alike, towards 1: one neuron has it all
    relative: float  # the layer's mean activation difference over its mean activation
    mean_activation: float
    overlap_previous: float | None  # Jaccard index with the most sensitive neurons of the previous validation, if any
    overlap_first: float
    most_sensitive: list[int]  # ids, most sensitive first

    def metrics(self) -> dict[str, float]:
        """Return {name: number} without those that are None."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, float)}


COLUMNS = ["epoch", "layer", *LayerSummary._fields]


class LayerSummaries:
    """Summaries of all layers over a run; the state goes into checkpoints.

    Args:
        list_top: number of most sensitive neurons listed a layer.
    """

    def __init__(self, *, list_top: int):
        self.list_top = list_top
        self.first: dict[str, list[int]] = {}
        self.previous: dict[str, list[int]] = {}
        self.history: list[tuple[int, dict[str, list[float]]]] = []  # (epoch, {layer: absolute and relative})

    def add(self, epoch: int, sensitivities: Mapping[str, LayerSensitivity]) -> dict[str, LayerSummary]:
        """Return {layer: summary} of an epoch, compared with the one added before and the first."""
        summaries = {layer: self._summary(layer, values) for layer, values in sensitivities.items()}
        self.previous = {layer: summary.most_sensitive for layer, summary in summaries.items()}
        self.first = self.first or self.previous
        means = {layer: [summary.absolute, summary.relative] for layer, summary in summaries.items()}
        self.history = [*(row for row in self.history if row[0] < epoch), (epoch, means)]
        return summaries

    def _summary(self, layer: str, sensitivity: LayerSensitivity) -> LayerSummary:
        ids = most_sensitive(sensitivity.absolute, self.list_top).tolist()
        previous, first = self.previous.get(layer), self.first.get(layer)
        return LayerSummary(
            **sensitivity.means(),
            maximum=float(sensitivity.absolute.max()),
            gini=gini(sensitivity.absolute),
            overlap_previous=None if previous is None else overlap(ids, previous),
            overlap_first=1.0 if first is None else overlap(ids, first),
            most_sensitive=ids,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"first": self.first, "previous": self.previous, "history": self.history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.first, self.previous = dict(state["first"]), dict(state["previous"])
        self.history = [(int(epoch), dict(means)) for epoch, means in state["history"]]


class SensitivityRecord(NamedTuple):
    """One epoch's sensitivities as every logger gets them, however many layers the network has."""

    epoch: int
    metrics: dict[str, float]
    histograms: dict[str, Tensor]  # (neuron,) each
    rows: list[list[object]]  # of the table of layers


def sensitivity_record(
    sensitivities: Mapping[str, LayerSensitivity],
    summaries: Mapping[str, LayerSummary],
    *,
    epoch: int,
    per_layer: bool = False,
) -> SensitivityRecord:
    """Collect means over layers, a histogram of the relative sensitivities of all neurons, and the table of layers.

    Sensitivities above 1 are counted as 1. `per_layer` adds each layer's metrics, and a histogram of its absolute
    sensitivities.
    """
    metrics: dict[str, float] = {}
    histograms: dict[str, Tensor] = {}
    rows: list[list[object]] = []
    if summaries:
        for name in MEANS:
            metrics[f"sensitivity/{name}"] = sum(getattr(row, name) for row in summaries.values()) / len(summaries)
        histograms[HISTOGRAM] = torch.cat([layer.relative for layer in sensitivities.values()]).clamp(max=1)
    for layer, summary in summaries.items():
        rows.append([epoch, layer, *summary[:-1], ", ".join(map(str, summary.most_sensitive))])
        if per_layer:
            metrics |= {f"sensitivity/{name}/{layer}": value for name, value in summary.metrics().items()}
            histograms[f"{HISTOGRAM}/{layer}"] = sensitivities[layer].absolute
    return SensitivityRecord(epoch, metrics, histograms, rows)


def gini(values: Tensor) -> float:
    """Compute the Gini coefficient of values (n,) >= 0: half the mean absolute difference of two, over the mean.

    In [0, 1 - 1/n]; 0 where all are alike, also where all are 0. Source: Gini 1912, in the form over ranks.
    """
    values = values.double().sort().values
    total, count = float(values.sum()), len(values)
    if total == 0:
        return 0.0
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=values.device)
    return float((2 * ranks - count - 1) @ values) / (count * total)


def overlap(ids: Collection[int], others: Collection[int]) -> float:
    """Compute the Jaccard index of two sets of neurons: intersection over union."""
    one, other = set(ids), set(others)
    return len(one & other) / len(one | other)
