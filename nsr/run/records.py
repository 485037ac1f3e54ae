"""The CSV files of sensitivities: a row per neuron, a row per layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nsr.metrics.layer_summary import LayerSummary
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.run.files import append_rows

SENSITIVITY_COLUMNS = ("epoch", "layer", "neuron", "absolute", "relative", "mean_activation")


def write_layers(path: Path, epoch: int, summaries: Mapping[str, LayerSummary]) -> None:
    """Add a row for each layer to a layers.csv; ids of the most sensitive neurons are separated by spaces."""
    columns = ["epoch", "layer", *LayerSummary._fields]
    rows = [
        [epoch, layer, *summary[:-1], " ".join(map(str, summary.most_sensitive))]
        for layer, summary in summaries.items()
    ]
    append_rows(path, columns, rows)


def write_sensitivities(path: Path, epoch: int | str, sensitivities: Mapping[str, LayerSensitivity]) -> None:
    """Add a row for each neuron of each layer to a sensitivity.csv."""
    rows = [
        [epoch, layer, neuron, *values]
        for layer, sensitivity in sensitivities.items()
        for neuron, values in enumerate(zip(*(measure.tolist() for measure in sensitivity), strict=True))
    ]
    append_rows(path, SENSITIVITY_COLUMNS, rows)
