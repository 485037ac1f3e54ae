"""The files of a run that need no dashboard: metrics.csv, timing.json, sensitivities; what a checkpoint knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from nsr.callbacks.epochs import finished_epochs
from nsr.errors import RunStopped
from nsr.metrics.layer_summary import LayerTelemetry
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.run.files import append_rows, write_json
from nsr.run.processes import check_same_settings

RECORDS = ("metrics.csv", "sensitivity.csv", "layers.csv")  # that grow with the epochs
SENSITIVITY_COLUMNS = ("epoch", "layer", "neuron", "absolute", "relative", "mean_activation")


class RunRecords(pl.Callback):
    """Appends a row an epoch to metrics.csv, without times: runs can be compared.

    Times go to timing.json. A checkpoint gets the run's configuration, plain numbers and texts, to be rebuilt from, and
    the sizes of the records: a run that goes on from it first cuts off what was written after.

    Args:
        directory: the run directory.
        settings: the resolved configuration.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory, self.settings = directory, settings
        self.seconds: dict[str, Any] = {"epochs": []}
        self._started = self._epoch_started = time.perf_counter()
        self._learning_rate = 0.0
        self._sizes: dict[str, int] = {}  # of the records as the checkpoint knows them

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._started = time.perf_counter() - self.seconds.get("fit", 0.0)
        check_same_settings(self.settings, trainer.strategy)
        if trainer.is_global_zero:
            for name, size in self._sizes.items():
                _cut(self.directory / name, size)

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
        paths = [self.directory / name for name in RECORDS]
        checkpoint["nsr_records"] = {path.name: path.stat().st_size for path in paths if path.exists()}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._sizes = dict(checkpoint.get("nsr_records", {}))

    def state_dict(self) -> dict[str, Any]:
        spent = round(time.perf_counter() - self._started, 3)
        return {"epochs": list(self.seconds["epochs"]), "fit": spent, "learning_rate": self._learning_rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = {"epochs": list(state_dict["epochs"]), "fit": state_dict["fit"]}
        self._learning_rate = state_dict["learning_rate"]


def _cut(path: Path, size: int) -> None:
    """Back to its first `size` bytes."""
    if not path.exists() or path.stat().st_size < size:
        raise RunStopped(f"{path} is shorter than the checkpoint knows it; it cannot be continued")
    with path.open("r+b") as file:
        file.truncate(size)


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
