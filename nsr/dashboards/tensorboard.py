"""TensorBoard; the one file that imports its logger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from nsr.metrics import LayerSensitivity
from nsr.sensitivity import sensitivity_histogram
from nsr.telemetry import LayerTelemetry


def tensorboard_logger(*, save_dir: str) -> TensorBoardLogger:
    """Lightning's TensorBoardLogger, its files in `save_dir`/tensorboard."""
    return TensorBoardLogger(save_dir=save_dir, name="tensorboard", version="")


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


def finish(logger: TensorBoardLogger) -> None:
    """Closes the event file."""
    writer: Any = logger.experiment
    writer.close()
