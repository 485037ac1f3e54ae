"""TensorBoard; the one file that imports its logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from nsr.metrics import LayerSensitivity
from nsr.sensitivity import most_sensitive, sensitivity_histogram


def tensorboard_logger(*, save_dir: str) -> TensorBoardLogger:
    """Lightning's TensorBoardLogger, its files in `save_dir`/tensorboard."""
    return TensorBoardLogger(save_dir=save_dir, name="tensorboard", version="")


def log_sensitivities(
    logger: TensorBoardLogger,
    sensitivities: Mapping[str, LayerSensitivity],
    means: Mapping[str, float],
    *,
    top: int,
    step: int,
    epoch: int,
) -> None:
    """Histograms (64 bins, edges from 0 to the layer's largest), means, and the most sensitive neurons as text."""
    writer: Any = logger.experiment
    logger.log_metrics(dict(means), step=step)
    for layer, figures in sensitivities.items():
        counts, edges = sensitivity_histogram(figures.absolute)
        values = figures.absolute
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
        ids = ", ".join(map(str, most_sensitive(values, top).tolist()))
        writer.add_text(f"sensitivity/most_sensitive/{layer}", f"epoch {epoch}: {ids}", global_step=step)


def finish(logger: TensorBoardLogger) -> None:
    """Closes the event file."""
    writer: Any = logger.experiment
    writer.close()
