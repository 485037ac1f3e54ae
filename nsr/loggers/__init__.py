"""Dashboards: what differs between Weights & Biases, TensorBoard and CSV, a file each, loaded only where used.

A run does not depend on them: what Weights & Biases or TensorBoard raises is told once, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nsr.app.configuration import flat
from nsr.loggers.fault_tolerant import steadily
from nsr.metrics.layer_summary import LayerTelemetry
from nsr.metrics.sensitivity import LayerSensitivity

# by name, so that asking about a logger loads no dashboard
_HOMES = {"WandbLogger": "nsr.loggers.wandb", "TensorBoardLogger": "nsr.loggers.tensorboard"}


def _home(logger: Any) -> ModuleType | None:
    for kind in type(logger).__mro__:
        if kind.__name__ in _HOMES:
            return import_module(_HOMES[kind.__name__])
    return None


def log_settings(logger: Any, settings: Mapping[str, Any]) -> None:
    """The resolved configuration, flat: a value for each dotted name, `optimizer.lr`."""
    logger.log_hyperparams(dict(flat(settings)))


def log_sensitivities(
    logger: Any,
    sensitivities: Mapping[str, LayerSensitivity],
    told: Mapping[str, LayerTelemetry],
    *,
    step: int,
    epoch: int,
) -> None:
    """Each layer's histogram, figures and most sensitive neurons to one of Lightning's loggers.

    A logger without histograms (CSV, MLflow, ...) gets the figures.
    """
    figures = layer_figures(told)
    home = _home(logger)
    if home is None:
        logger.log_metrics(figures, step=step)
        return
    with steadily(logger, home.NAME):
        home.log_sensitivities(logger, sensitivities, told, figures, step=step, epoch=epoch)


def log_picture(logger: Any, name: str, path: Path, *, step: int) -> None:
    """A PNG file to a dashboard that shows pictures."""
    home = _home(logger)
    if home is not None:
        with steadily(logger, home.NAME):
            home.log_picture(logger, name, path, step=step)


def log_results(logger: Any, results: Mapping[str, float], *, step: int) -> None:
    """The final figures of a run, best and last checkpoint's, as what stands for it beside other runs.

    The series of validation goes on under its own name, so the figures of the best epoch are `validation_best/...`. A
    logger that is no dashboard gets nothing: metrics.json has them.

    Args:
        results: what metrics.json holds: test/..., test_last/..., best_epoch, last_epoch, validation/... of the best.
    """
    home = _home(logger)
    if home is not None:
        figures = {name.replace("validation/", "validation_best/"): value for name, value in results.items()}
        with steadily(logger, home.NAME):
            home.log_results(logger, figures, step=step)


def layer_figures(told: Mapping[str, LayerTelemetry]) -> dict[str, float]:
    """{sensitivity/FIGURE/LAYER: ...}: absolute, relative and activation always side by side."""
    return {
        f"sensitivity/{figure}/{layer}": value for layer, row in told.items() for figure, value in row.figures().items()
    }


def finish(logger: Any) -> None:
    """Closes the dashboard's run, so that the next job of a sweep begins its own."""
    home = _home(logger)
    if home is not None:
        with steadily(logger, home.NAME):
            home.finish(logger)
