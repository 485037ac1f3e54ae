"""Dashboards: what differs between Weights & Biases, TensorBoard and CSV, a file each, loaded only where used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from nsr.metrics import LayerSensitivity

# by name, so that asking about a logger loads no dashboard
_HOMES = {"WandbLogger": "nsr.dashboards.wandb", "TensorBoardLogger": "nsr.dashboards.tensorboard"}


def _home(logger: Any) -> ModuleType | None:
    for kind in type(logger).__mro__:
        if kind.__name__ in _HOMES:
            return import_module(_HOMES[kind.__name__])
    return None


def log_sensitivities(
    logger: Any, sensitivities: Mapping[str, LayerSensitivity], *, top: int, step: int, epoch: int
) -> None:
    """Each layer's histogram, means and most sensitive neurons to one of Lightning's loggers.

    A logger without histograms (CSV, MLflow, ...) gets the means.
    """
    means = layer_means(sensitivities)
    home = _home(logger)
    if home is None:
        logger.log_metrics(means, step=step)
    else:
        home.log_sensitivities(logger, sensitivities, means, top=top, step=step, epoch=epoch)


def layer_means(sensitivities: Mapping[str, LayerSensitivity]) -> dict[str, float]:
    """{sensitivity/absolute/LAYER: ...}: absolute, relative and activation always side by side."""
    return {
        f"sensitivity/{figure}/{layer}": value
        for layer, row in sensitivities.items()
        for figure, value in row.means().items()
    }


def finish(logger: Any) -> None:
    """Closes the dashboard's run, so that the next job of a sweep begins its own."""
    home = _home(logger)
    if home is not None:
        home.finish(logger)
