"""The files of a run that need no logger, metrics.csv and timing.json, and their resumption from a checkpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from nsr.errors import RunStopped
from nsr.run.files import COMPRESSED, SENSITIVITIES, append_rows, write_json
from nsr.run.processes import check_same_settings
from nsr.training.phases import ends_epoch

if TYPE_CHECKING:
    from nsr.training.module import RobustClassifier

RECORDS = ("metrics.csv", SENSITIVITIES, COMPRESSED, "layers.csv")  # that grow with the epochs


class RunRecords(Callback):
    """Appends a row per epoch to metrics.csv, without times, so that runs can be compared byte by byte.

    Times go to timing.json. A checkpoint holds the run's configuration as plain values, to be rebuilt from, and the
    sizes of the records: a run that resumes from it first cuts off what was written later.

    Args:
        directory: the run directory.
        settings: the resolved configuration.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory, self.settings = directory, settings
        self.seconds: dict[str, Any] = {"epochs": []}
        self._started = self._epoch_started = time.perf_counter()
        self._learning_rate = 0.0
        self._sizes: dict[str, int] = {}  # of the records when the checkpoint was written
        self._has_config = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter() - self.seconds.get("fit", 0.0)
        self._has_config = (self.directory / "config.yaml").exists()
        check_same_settings(self.settings, trainer.strategy)
        for name, size in self._sizes.items() if trainer.is_global_zero else ():
            path = self.directory / name
            if not path.exists() or path.stat().st_size < size:
                raise RunStopped(f"{path} is shorter than when the checkpoint was written; the run cannot be resumed")
            os.truncate(path, size)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the beginning of the epoch

    def on_validation_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        result = pl_module.result
        if trainer.state.fn != "fit" or not trainer.is_global_zero or result is None or not ends_epoch(trainer):
            return
        if self._has_config and not (self.directory / "config.yaml").exists():  # a logger makes folders again
            raise RunStopped(f"the run directory {self.directory} was deleted while the run wrote to it")
        learning_rate = self._learning_rate if result.epoch else ""
        row = {"epoch": result.epoch, "learning_rate": learning_rate, **result.train, **result.validation}
        columns = ["epoch", "learning_rate", *pl_module.train_metrics.names, *result.validation]
        append_rows(self.directory / "metrics.csv", columns, [[row.get(column, "") for column in columns]])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds["epochs"].append(round(time.perf_counter() - self._epoch_started, 3))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds["fit"] = round(time.perf_counter() - self._started, 3)
        if trainer.is_global_zero:
            write_json(self.directory / "timing.json", self.seconds)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["nsr_settings"] = self.settings
        paths = [self.directory / name for name in RECORDS]
        checkpoint["nsr_records"] = {path.name: path.stat().st_size for path in paths if path.exists()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._sizes = dict(checkpoint.get("nsr_records", {}))

    def state_dict(self) -> dict[str, Any]:
        spent = round(time.perf_counter() - self._started, 3)
        resumed = {"resumed": self.seconds["resumed"]} if "resumed" in self.seconds else {}
        return {"epochs": list(self.seconds["epochs"]), "fit": spent, **resumed, "learning_rate": self._learning_rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        epochs, earlier = list(state_dict["epochs"]), list(state_dict.get("resumed", ()))
        self.seconds = {"epochs": epochs, "fit": state_dict["fit"], "resumed": [*earlier, len(epochs)]}
        self._learning_rate = state_dict["learning_rate"]
