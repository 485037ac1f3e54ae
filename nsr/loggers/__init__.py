"""What nsr writes to Lightning's loggers: settings, sensitivities, pictures, results.

Every function takes any number of loggers. Weights & Biases and TensorBoard get tables, histograms and pictures, any
other logger the metrics. A logger that fails is reported once and never stops a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from nsr.loggers.fault_tolerant import tolerate_failures
from nsr.loggers.sensitivities import sensitivity_record
from nsr.metrics.layer_summary import LayerSummary
from nsr.metrics.sensitivity import LayerSensitivity


def log_settings(loggers: Iterable[Logger], settings: Mapping[str, object]) -> None:
    """Log {dotted name: value}, such as `optimizer.lr`."""
    for logger in loggers:
        with tolerate_failures(logger):
            logger.log_hyperparams(dict(settings))


def log_sensitivities(
    loggers: Iterable[Logger],
    sensitivities: Mapping[str, LayerSensitivity],
    summaries: Mapping[str, LayerSummary],
    *,
    step: int,
    epoch: int,
    per_layer: bool = False,
) -> None:
    """Log the means over layers, one table of all layers and one histogram of all neurons.

    Args:
        sensitivities, summaries: by layer.
        per_layer: log each layer's metrics as series and its histogram too.
    """
    record = sensitivity_record(sensitivities, summaries, epoch=epoch, per_layer=per_layer)
    for logger in loggers:
        with tolerate_failures(logger):
            if (service := _service(logger)) is not None:
                service.log_sensitivities(logger, record, step=step)
            else:
                logger.log_metrics(record.metrics, step=step)


def log_picture(loggers: Iterable[Logger], name: str, path: Path, *, step: int) -> None:
    """Log a PNG file to the loggers that show pictures."""
    for logger in loggers:
        if (service := _service(logger)) is not None:
            with tolerate_failures(logger):
                service.log_picture(logger, name, path, step=step)


def log_results(loggers: Iterable[Logger], results: Mapping[str, float], *, step: int) -> None:
    """Log the final metrics of a run, for tables of runs.

    Args:
        results: those of metrics.json: test/..., test_last/..., best_epoch, last_epoch, and of the best epoch
            validation/..., logged as validation_best/... beside the series.
    """
    metrics = {name.replace("validation/", "validation_best/"): value for name, value in results.items()}
    for logger in loggers:
        if (service := _service(logger)) is not None:
            with tolerate_failures(logger):
                service.log_results(logger, metrics, step=step)


def finish(loggers: Iterable[Logger]) -> None:
    """Close the runs on the dashboards, so that the next job of a sweep opens its own."""
    for logger in loggers:
        if (service := _service(logger)) is not None:
            with tolerate_failures(logger):
                service.finish(logger)


def _service(logger: Logger) -> ModuleType | None:
    """The module for the logger's dashboard, imported on first use; None for any other logger."""
    if isinstance(logger, WandbLogger):
        from nsr.loggers import wandb

        return wandb
    if isinstance(logger, TensorBoardLogger):
        from nsr.loggers import tensorboard

        return tensorboard
    return None
