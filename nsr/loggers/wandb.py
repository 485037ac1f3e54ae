"""Weights & Biases; the one file that imports wandb."""

from __future__ import annotations

import logging
import netrc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlparse

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from nsr.loggers.fault_tolerant import reason, steadily
from nsr.metrics.layer_summary import LayerTelemetry
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.run.processes import global_rank
from nsr.sensitivity import sensitivity_histogram

NAME = "W&B"
INIT_SECONDS = 10  # that a host may take to answer before the run is recorded offline
FINISH_SECONDS = 30  # that a host may take for the rest of a run at its end
HANG_SECONDS = 10.0  # that W&B's own process may take for a row, which usually takes it a thousandth of one
log = logging.getLogger(__name__)


@contextmanager
def answering(seconds: float | None = None) -> Iterator[None]:
    """W&B's own process is killed where the block takes longer: what waits for it fails, and is told of.

    Args:
        seconds: None: HANG_SECONDS.
    """
    watch = Timer(HANG_SECONDS if seconds is None else seconds, _kill_local_process)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _kill_local_process() -> None:
    with suppress(AttributeError):  # no public name leads to it
        wandb.setup()._connection._proc._process.kill()  # type: ignore[union-attr]


class SteadyWandbLogger(WandbLogger):
    """Lightning's WandbLogger; what W&B cannot take does not stop the run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with steadily(self, NAME), answering():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        with steadily(self, NAME), answering():
            super().log_hyperparams(params)


def wandb_logger(
    *,
    save_dir: str,
    project: str = "nsr",
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    mode: str | None = None,
) -> WandbLogger | DummyLogger:
    """Lightning's WandbLogger, its run begun; offline by itself where there is no account or no network.

    A run that was resumed in the same directory goes on as the same W&B run, its id that of the earlier segment. Of
    several processes only the first has a run.

    Args:
        save_dir: the run directory.
        group: of the runs that belong together, those of a sweep.
        mode: 'online' or 'offline'; None: WANDB_MODE, else online where there is a key, else offline. Decided before
            wandb.init, which would ask on a terminal and wait for ever.
    """
    if global_rank() != 0:
        return SteadyWandbLogger(project=project, save_dir=save_dir)
    texts = {"project": project, "name": name, "group": group, "job_type": job_type}
    labels: dict[str, Any] = {key: str(value) for key, value in texts.items() if value is not None}  # 1 may be a name
    labels["tags"] = [str(tag) for tag in tags]
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if mode not in ("offline", "disabled"):
        try:
            return _begin(save_dir, labels, mode)
        except Exception as error:
            log.warning("W&B is not reachable (%s); this run is recorded offline", reason(error))
            wandb.teardown()  # its local process would not let go of the run's id
            mode = "offline"
    try:
        return _begin(save_dir, labels, mode)
    except Exception as error:
        log.warning("W&B cannot record (%s); this run goes without", reason(error))
        return DummyLogger()


def _begin(save_dir: str, labels: Mapping[str, Any], mode: str) -> WandbLogger:
    # the reports of its own errors that wandb sends home would hold the end of a program up, beside a host that hangs
    # for twenty seconds
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # console off: what is printed is in the run's own log; silent: of a host that hangs wandb would ask who is logged
    # in, for ten seconds, to print it; flushing each second bounds what a killed process loses
    settings = wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        x_transaction_log_flush_interval=1.0,
    )
    earlier = _earlier_run(save_dir)
    # not left to Lightning, which passes a parameter that wandb warns of
    run = wandb.init(
        **labels,
        id=earlier,
        resume=None if earlier is None else "allow",
        dir=save_dir,
        mode=mode,  # type: ignore[arg-type]  # wandb itself checks WANDB_MODE
        settings=settings,
        reinit="create_new",
    )
    if mode == "online":
        log.info("W&B: %s", run.url)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return SteadyWandbLogger(project=labels["project"], save_dir=save_dir, experiment=run)


def _earlier_run(save_dir: str) -> str | None:
    """The id of the W&B run whose latest segment lies in the run directory."""
    segments = Path(save_dir).glob("wandb/*run-*/run-*.wandb")
    latest = max(segments, key=lambda path: path.parent.name.removeprefix("offline-"), default=None)
    return None if latest is None else latest.stem.removeprefix("run-")


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
    with answering():
        logger.experiment.log(record)


def log_picture(logger: WandbLogger, name: str, path: Path, *, step: int) -> None:
    """The picture of a PNG file."""
    with answering():
        logger.experiment.log({name: wandb.Image(str(path)), "trainer/global_step": step})


def log_results(logger: WandbLogger, results: Mapping[str, float], *, step: int) -> None:
    """Into the run's summary, which tables of runs are made of."""
    with answering():
        logger.experiment.summary.update(dict(results))


def finish(logger: WandbLogger) -> None:
    """Ends the run; without it the next job of a sweep would write into this one."""
    run = logger.experiment
    try:
        with answering(FINISH_SECONDS + HANG_SECONDS):
            run.finish(exit_code=int(sys.exc_info()[0] is not None))  # called in a `finally`
    except TimeoutError:
        command = f"wandb sync --include-online {run.settings.sync_dir}"
        log.warning("W&B has not taken all within %d s; the rest: %s", FINISH_SECONDS, command)
