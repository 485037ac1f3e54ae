"""TensorBoard; the one file that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from nsr.metrics.layer_summary import COLUMNS, TABLE, SensitivityRecord
from nsr.run.plain_text import markdown_cell
from nsr.sensitivity import sensitivity_histogram


class _Logger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, with a table of the settings."""

    title = "TensorBoard"

    def __init__(self, *, save_dir: str):
        # flushing each second, not every two minutes, bounds what a killed process loses; Lightning's hp_metric would
        # be a metric that no other dashboard has
        super().__init__(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False, flush_secs=1)
        self.logged: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.logged |= metrics.keys()

    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        super().log_hyperparams(params, metrics, step)
        self.experiment.add_text("settings", _markdown(["setting", "value"], self.hparams.items()))


def tensorboard_logger(*, save_dir: str) -> TensorBoardLogger:
    """Lightning's TensorBoardLogger, files in `save_dir`/tensorboard.

    A resumed run adds a file to the earlier ones; TensorBoard shows them as one run.
    """
    return _Logger(save_dir=save_dir)


def log_sensitivities(logger: TensorBoardLogger, record: SensitivityRecord, *, step: int) -> None:
    """Log metrics, histograms (64 bins from 0 to the largest value) and the table of layers as text."""
    logger.log_metrics(record.metrics, step=step)
    for name, values in record.histograms.items():
        counts, edges = sensitivity_histogram(values)
        logger.experiment.add_histogram_raw(
            name,
            min=float(values.min()),
            max=float(values.max()),
            num=len(values),
            sum=float(values.sum()),
            sum_squares=float(values.square().sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
    logger.experiment.add_text(TABLE, _markdown(COLUMNS, record.rows), global_step=step)


def log_picture(logger: TensorBoardLogger, name: str, path: Path, *, step: int) -> None:
    """Log the picture of a PNG file."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    logger.experiment.add_image(name, pixels, global_step=step, dataformats="HWC")


def log_results(logger: TensorBoardLogger, results: Mapping[str, float], *, step: int) -> None:
    """Log scalars, those that the test has not logged, and a row of settings and results in the tab HPARAMS."""
    logged = getattr(logger, "logged", ())
    logger.log_metrics({name: value for name, value in results.items() if name not in logged}, step)
    plain = (int, float, str, bool, type(None))
    settings = {name: value if isinstance(value, plain) else str(value) for name, value in logger.hparams.items()}
    for summary in hparams(settings, dict(results)):
        logger.experiment.file_writer.add_summary(summary)


def finish(logger: TensorBoardLogger) -> None:
    """Close the event file."""
    logger.experiment.close()


def _markdown(columns: Any, rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(markdown_cell, line))} |" for line in lines)
