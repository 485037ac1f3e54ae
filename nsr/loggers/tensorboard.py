"""TensorBoard; the one file that imports its logger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch.utils.tensorboard.summary import hparams

from nsr.loggers.fault_tolerant import reason, steadily
from nsr.metrics.layer_summary import LayerTelemetry
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.sensitivity import sensitivity_histogram

NAME = "TensorBoard"
log = logging.getLogger(__name__)


class SteadyTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger; what it cannot write, on a full disk say, does not stop the run."""

    def __init__(self, *, save_dir: str):
        # flushing each second, not every two minutes, bounds what a killed process loses; a figure of its own among
        # the settings, hp_metric, would be one that no other dashboard has
        super().__init__(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False, flush_secs=1)
        self.logged: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with steadily(self, NAME):
            super().log_metrics(metrics, step)
            self.logged |= metrics.keys()

    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        with steadily(self, NAME):
            super().log_hyperparams(params, metrics, step)
            rows = [f"| {name} | {value} |" for name, value in self.hparams.items()]
            writer: Any = self.experiment
            writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]))

    def save(self) -> None:
        with steadily(self, NAME):
            super().save()

    def finalize(self, status: str) -> None:
        with steadily(self, NAME):
            super().finalize(status)


def tensorboard_logger(*, save_dir: str) -> TensorBoardLogger | DummyLogger:
    """Lightning's TensorBoardLogger, its files in `save_dir`/tensorboard; one that logs nothing where it cannot write.

    A resumed run adds a file to those of the earlier ones, which TensorBoard shows as one.
    """
    logger = SteadyTensorBoardLogger(save_dir=save_dir)
    try:
        _ = logger.experiment  # Lightning would make it in the middle of its own setup
    except OSError as error:
        log.warning("TensorBoard cannot write (%s); this run goes without", reason(error))
        return DummyLogger()
    return logger


def log_sensitivities(
    logger: TensorBoardLogger,
    sensitivities: Mapping[str, LayerSensitivity],
    told: Mapping[str, LayerTelemetry],
    figures: Mapping[str, float],
    *,
    step: int,
    epoch: int,
) -> None:
    """Histograms (64 bins, edges from 0 to the layer's largest), figures, and the most sensitive neurons as text."""
    writer: Any = logger.experiment
    logger.log_metrics(dict(figures), step=step)
    for layer, sensitivity in sensitivities.items():
        values = sensitivity.absolute
        counts, edges = sensitivity_histogram(values)
        writer.add_histogram_raw(
            f"sensitivity/histogram/{layer}",
            min=float(values.min()),
            max=float(values.max()),
            num=len(values),
            sum=float(values.sum()),
            sum_squares=float(values.square().sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
        ids = ", ".join(map(str, told[layer].most_sensitive))
        writer.add_text(f"sensitivity/most_sensitive/{layer}", f"epoch {epoch}: {ids}", global_step=step)


def log_picture(logger: TensorBoardLogger, name: str, path: Path, *, step: int) -> None:
    """The picture of a PNG file."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    writer: Any = logger.experiment
    writer.add_image(name, pixels, global_step=step, dataformats="HWC")


def log_results(logger: SteadyTensorBoardLogger, results: Mapping[str, float], *, step: int) -> None:
    """Scalars, of those that the test has not logged, and a row of settings and figures in the tab HPARAMS."""
    logger.log_metrics({name: value for name, value in results.items() if name not in logger.logged}, step)
    plain = (int, float, str, bool, type(None))
    settings = {name: value if isinstance(value, plain) else str(value) for name, value in logger.hparams.items()}
    writer: Any = logger.experiment
    for summary in hparams(settings, dict(results)):
        writer.file_writer.add_summary(summary)


def finish(logger: TensorBoardLogger) -> None:
    """Closes the event file."""
    writer: Any = logger.experiment
    writer.close()
