"""Weights & Biases; the one file that imports wandb."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import wandb
from pytorch_lightning.loggers import WandbLogger

from nsr.metrics import LayerSensitivity
from nsr.sensitivity import sensitivity_histogram
from nsr.telemetry import LayerTelemetry

log = logging.getLogger(__name__)


def wandb_logger(
    *, save_dir: str, project: str = "nsr", name: str | None = None, mode: str | None = None
) -> WandbLogger:
    """Lightning's WandbLogger, its run begun; offline by itself where there is no account or no network.

    Args:
        save_dir: the run directory.
        mode: 'online' or 'offline'; None: WANDB_MODE, else online where there is a key, else offline. Decided before
            wandb.init, which would ask on a terminal and wait for ever.
    """
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    try:
        return _begin(save_dir, project, name, mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        log.warning("W&B is not reachable (%s); this run is recorded offline", str(error).splitlines()[0])
        return _begin(save_dir, project, name, "offline")


def _begin(save_dir: str, project: str, name: str | None, mode: str) -> WandbLogger:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return WandbLogger(project=project, save_dir=save_dir)  # one process has the run; this one logs nothing
    # console off: what is printed is in the run's own log; flushing each second bounds what a killed process loses
    settings = wandb.Settings(
        init_timeout=20, silent=mode != "online", console="off", x_transaction_log_flush_interval=1.0
    )
    # not left to Lightning, which passes a parameter that wandb warns of
    run = wandb.init(
        project=project,
        name=name,
        dir=save_dir,
        mode=mode,  # type: ignore[arg-type]  # wandb itself checks WANDB_MODE
        settings=settings,
        reinit="create_new",
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(project=project, save_dir=save_dir, experiment=run)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_sensitivities(
    logger: WandbLogger,
    sensitivities: Mapping[str, LayerSensitivity],
    told: Mapping[str, LayerTelemetry],
    figures: Mapping[str, float],
    *,
    step: int,
    epoch: int,
) -> None:
    """Histograms (64 bins, edges from 0 to the layer's largest), figures, and a table of neurons, in one record."""
    record: dict[str, Any] = {**figures, "epoch": epoch, "trainer/global_step": step}
    rows = []
    for layer, sensitivity in sensitivities.items():
        counts, edges = sensitivity_histogram(sensitivity.absolute)
        histogram = wandb.Histogram(np_histogram=(counts.cpu().numpy(), edges.cpu().numpy()))
        record[f"sensitivity/histogram/{layer}"] = histogram
        ids = told[layer].most_sensitive
        record[f"sensitivity/most_sensitive/{layer}"] = ", ".join(map(str, ids))
        rows += [
            [epoch, layer, rank, neuron, float(sensitivity.absolute[neuron]), float(sensitivity.relative[neuron])]
            for rank, neuron in enumerate(ids, start=1)
        ]
    columns: list[str | int] = ["epoch", "layer", "rank", "neuron", "absolute", "relative"]
    record["sensitivity/most_sensitive_neurons"] = wandb.Table(columns=columns, data=rows)
    logger.experiment.log(record)


def log_picture(logger: WandbLogger, name: str, path: Path, *, step: int) -> None:
    """The picture of a PNG file."""
    logger.experiment.log({name: wandb.Image(str(path)), "trainer/global_step": step})


def finish(logger: WandbLogger) -> None:
    """Ends the run; without it the next job of a sweep would write into this one."""
    logger.experiment.finish()
