"""One epoch's sensitivities as every logger gets them, however many layers the network has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nsr.metrics.layer_summary import LayerSummary
from nsr.metrics.sensitivity import LayerSensitivity

MEANS = ("absolute", "relative", "mean_activation")  # always reported together: a network may merely shrink
TABLE, HISTOGRAM = "sensitivity/layers", "sensitivity/histogram"
COLUMNS = ["epoch", "layer", *LayerSummary._fields]


class SensitivityRecord(NamedTuple):
    """What is logged of an epoch."""

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
    metrics, histograms = {}, {}
    if summaries:
        for name in MEANS:
            metrics[f"sensitivity/{name}"] = sum(getattr(row, name) for row in summaries.values()) / len(summaries)
        histograms[HISTOGRAM] = torch.cat([layer.relative for layer in sensitivities.values()]).clamp(max=1)
    rows: list[list[object]] = []
    for layer, summary in summaries.items():
        texts = {**summary._asdict(), "most_sensitive": ", ".join(map(str, summary.most_sensitive))}
        rows.append([epoch, layer, *texts.values()])
        if per_layer:
            metrics |= {
                f"sensitivity/{name}/{layer}": value
                for name, value in summary._asdict().items()
                if isinstance(value, float)
            }
            histograms[f"{HISTOGRAM}/{layer}"] = sensitivities[layer].absolute
    return SensitivityRecord(epoch, metrics, histograms, rows)
