"""The files of a run that need no dashboard: metrics.csv, timing.json, sensitivities; what a checkpoint knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from nsr.callbacks.epochs import finished_epochs
from nsr.files import append_rows, write_json
from nsr.metrics import LayerSensitivity
from nsr.telemetry import LayerTelemetry

SENSITIVITY_COLUMNS = ("epoch", "layer", "neuron", "absolute", "relative", "mean_activation")


class RunRecords(pl.Callback):
    """Appends a row an epoch to metrics.csv, without times: runs can be compared.

    Times go to timing.json. A checkpoint gets the run's configuration, plain numbers and texts, to be rebuilt from.

    Args:
        directory: the run directory.
        settings: the resolved configuration.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory, self.settings = directory, settings
        self.seconds: dict[str, Any] = {"epochs": []}
        self._started = self._epoch_started = time.perf_counter()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._epoch_started = time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]  # as the epoch begins with it

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        epoch = finished_epochs(trainer)
        figures = {**(pl_module.figures["train"] if epoch else {}), **pl_module.figures["validation"]}
        columns = ["epoch", "learning_rate", *pl_module.figure_names("train"), *pl_module.figure_names("validation")]
        row = {"epoch": epoch, "learning_rate": self._learning_rate if epoch else "", **figures}
        append_rows(self.directory / "metrics.csv", columns, [[row.get(column, "") for column in columns]])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seconds["epochs"].append(round(time.perf_counter() - self._epoch_started, 3))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seconds["fit"] = round(time.perf_counter() - self._started, 3)
        if trainer.is_global_zero:
            write_json(self.directory / "timing.json", self.seconds)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["nsr_settings"] = self.settings


def write_layers(path: Path, epoch: int, told: Mapping[str, LayerTelemetry]) -> None:
    """Adds a row for each layer to a layers.csv; the ids of the most sensitive neurons with spaces between them."""
    columns = ["epoch", "layer", *LayerTelemetry._fields]
    rows = [
        [epoch, layer, *figures[:-1], " ".join(map(str, figures.most_sensitive))] for layer, figures in told.items()
    ]
    append_rows(path, columns, rows)


def write_sensitivities(path: Path, epoch: int | str, sensitivities: Mapping[str, LayerSensitivity]) -> None:
    """Adds a row for each neuron of each layer to a sensitivity.csv."""
    rows = [
        [epoch, layer, neuron, *values]
        for layer, figures in sensitivities.items()
        for neuron, values in enumerate(zip(*(figure.tolist() for figure in figures), strict=True))
    ]
    append_rows(path, SENSITIVITY_COLUMNS, rows)
