"""What nsr writes to Lightning's loggers: settings, sensitivities, pictures, results.

Every function takes any number of loggers. Weights & Biases and TensorBoard get tables, histograms and pictures, any
other logger the metrics. A logger that fails is reported once and never stops a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from nsr.loggers.fault_tolerant import tolerate_failures
from nsr.metrics.layer_summary import LayerSummary, sensitivity_record
from nsr.metrics.sensitivity import LayerSensitivity


def csv_logger(*, save_dir: str) -> CSVLogger:
    """Lightning's CSVLogger with its file in `save_dir`/csv; a resumed run, whose rows it would delete, has csv_2.

    The folder is its own: metrics.csv and sensitivity.csv in the run directory are nsr's records.
    """
    names = ("csv" if number == 1 else f"csv_{number}" for number in count(1))
    unused = next(name for name in names if not any(Path(save_dir, name).glob("*")))
    return CSVLogger(save_dir=save_dir, name=unused, version="")


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
            if (service := _service(logger)) is None:
                logger.log_metrics(record.metrics, step=step)
            else:
                service.log_sensitivities(logger, record, step=step)


def log_picture(loggers: Iterable[Logger], name: str, path: Path, *, step: int) -> None:
    """Log a PNG file to the loggers that show pictures."""
    _call("log_picture", loggers, name, path, step=step)


def shows_pictures(logger: Logger) -> bool:
    """Return whether a logger is a dashboard that shows pictures."""
    return isinstance(logger, (WandbLogger, TensorBoardLogger))


def log_results(loggers: Iterable[Logger], results: Mapping[str, float], *, step: int) -> None:
    """Log the final metrics of a run, for tables of runs.

    Args:
        results: those of metrics.json: test/..., test_last/..., best_epoch, last_epoch, and of the best epoch
            validation/..., logged as validation_best/... beside the series.
    """
    metrics = {name.replace("validation/", "validation_best/"): value for name, value in results.items()}
    _call("log_results", loggers, metrics, step=step)


def finish(loggers: Iterable[Logger]) -> None:
    """Close the runs on the dashboards, so that the next job of a sweep opens its own."""
    _call("finish", loggers)


def _call(function: str, loggers: Iterable[Logger], *arguments: Any, **settings: Any) -> None:
    """Call a function of each dashboard's module."""
    for logger in loggers:
        with tolerate_failures(logger):
            if (service := _service(logger)) is not None:
                getattr(service, function)(logger, *arguments, **settings)


def _service(logger: Logger) -> ModuleType | None:
    """The module for the logger's dashboard, imported on first use; None for any other logger."""
    if isinstance(logger, WandbLogger):
        from nsr.loggers import wandb

        return wandb
    if isinstance(logger, TensorBoardLogger):
        from nsr.loggers import tensorboard

        return tensorboard
    return None
