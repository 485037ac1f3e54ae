"""The files of a run that need no logger, metrics.csv and timing.json, and their resumption from a checkpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from nsr.errors import RunStopped
from nsr.run.files import COMPRESSED, SENSITIVITIES, append_row, write_json
from nsr.run.processes import check_same_settings
from nsr.training.phases import ends_epoch

if TYPE_CHECKING:
    from nsr.training.module import RobustClassifier

METRICS = "metrics.csv"
RECORDS = (METRICS, SENSITIVITIES, COMPRESSED, "layers.csv")  # that grow with the epochs


class RunRecords(Callback):
    """Appends a row per epoch to metrics.csv, without times, so that runs can be compared byte by byte.

    A column that appears later, such as a new term of the loss, is empty in the rows before. Times go to timing.json.
    A checkpoint holds the run's configuration as plain values, to be rebuilt from, and the sizes of the records: a run
    that resumes from it first cuts off what was written later.

    Args:
        directory: the run directory.
        settings: the resolved configuration.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory, self.settings = directory, settings
        self.seconds: dict[str, Any] = {"epochs": []}
        self._started = self._epoch_started = time.perf_counter()
        self._spent = 0.0  # in the epoch at hand, before it was interrupted
        self._learning_rate = 0.0
        self._sizes: dict[str, int] = {}  # of the records when the checkpoint was written
        self._lines: int | None = None  # of metrics.csv then, whose rows become longer with a further column
        self._has_config = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter() - self.seconds.get("fit", 0.0)
        self._epoch_started = time.perf_counter() - self._spent  # until an epoch begins
        self._has_config = (self.directory / "config.yaml").exists()
        check_same_settings(self.settings, trainer.strategy)
        for path in [self.directory / name for name in self._sizes] if trainer.is_global_zero else ():
            if (size := self._size_then(path)) is None:
                raise RunStopped(f"{path} is shorter than when the checkpoint was written; the run cannot be resumed")
            os.truncate(path, size)

    def _size_then(self, path: Path) -> int | None:
        """Return the bytes of a record that were there when the checkpoint was written; None where it has fewer."""
        if not path.exists():
            return None
        if path.name == METRICS and self._lines is not None:
            lines = _lines(path)[: self._lines]
            return sum(map(len, lines)) if len(lines) == self._lines else None
        size = self._sizes[path.name]
        return size if path.stat().st_size >= size else None

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
        training = dict.fromkeys(pl_module.train_metrics.names, "") | dict(result.train)
        row = {"epoch": result.epoch, "learning_rate": learning_rate, **training, **result.validation}
        append_row(self.directory / METRICS, row)

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
        if (metrics := self.directory / METRICS).exists():
            checkpoint["nsr_lines"] = len(_lines(metrics))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._sizes = dict(checkpoint.get("nsr_records", {}))
        self._lines = checkpoint.get("nsr_lines")

    def state_dict(self) -> dict[str, Any]:
        spent = round(time.perf_counter() - self._started, 3)
        resumed = {"resumed": self.seconds["resumed"]} if "resumed" in self.seconds else {}
        epoch = round(time.perf_counter() - self._epoch_started, 3)  # so far in this one
        own = {"epochs": list(self.seconds["epochs"]), "fit": spent, "epoch": epoch, **resumed}
        return {**own, "learning_rate": self._learning_rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        epochs, earlier = list(state_dict["epochs"]), list(state_dict.get("resumed", ()))
        self.seconds = {"epochs": epochs, "fit": state_dict["fit"], "resumed": [*earlier, len(epochs)]}
        self._learning_rate = state_dict["learning_rate"]
        self._spent = state_dict.get("epoch", 0.0)


def _lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
