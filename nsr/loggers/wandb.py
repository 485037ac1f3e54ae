"""Weights & Biases; the one file that imports wandb."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from nsr.compat import wandb_flush_settings
from nsr.errors import one_line
from nsr.loggers.fault_tolerant import HangError, call_within
from nsr.metrics.layer_summary import COLUMNS, TABLE, SensitivityRecord
from nsr.run.processes import global_rank
from nsr.sensitivity import sensitivity_histogram

INIT_SECONDS = 10  # for a server to answer before the run is recorded offline
FINISH_SECONDS = 30  # for a server to receive the rest of a run
HANG_SECONDS = 10.0  # for W&B's own process to take a row, which usually needs a millisecond
LOCAL_MODES = ("offline", "dryrun", "disabled")
log = logging.getLogger(__name__)
_disabled: WeakSet[WandbLogger] = WeakSet()


def _call(logger: WandbLogger, call: Callable[[], object], *, further_seconds: float = 0.0) -> None:
    """Run a call to W&B; one that hangs disables the logger."""
    if logger in _disabled:
        return
    try:
        call_within(HANG_SECONDS + further_seconds, call)
    except HangError:
        _disabled.add(logger)
        with suppress(Exception, SystemExit):
            # its first act is to withdraw the hook that would wait for W&B's process at the end of the program
            call_within(1, wandb.teardown)
        raise


class _HangTolerantLogger(WandbLogger):
    """Lightning's WandbLogger; a W&B that hangs does not stop the run."""

    title = "W&B"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        _call(self, partial(super().log_metrics, metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        _call(self, partial(super().log_hyperparams, params))


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
    """Start a W&B run, offline without an account or network; Lightning's logger for it.

    A run that is resumed in the same directory keeps its W&B run id. Only the first of several processes has a run.

    Args:
        save_dir: the run directory.
        group: of runs that belong together, such as those of a sweep.
        mode: 'online' or 'offline'; None: W&B's own setting (WANDB_MODE, `wandb offline`), by default online.
    """
    if global_rank() != 0:
        return DummyLogger()
    texts = {"project": project, "name": name, "group": group, "job_type": job_type}
    labels: dict[str, Any] = {key: str(value) for key, value in texts.items() if value is not None}  # 1 may be a name
    labels["tags"] = [str(tag) for tag in tags]
    # W&B's reports of its own errors would delay the end of the program by 20 s where a server hangs
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        chosen = _mode(mode)
        if chosen not in LOCAL_MODES:
            return _start(save_dir, labels, chosen)
    except Exception as error:
        log.warning("W&B is not reachable (%s); this run is recorded offline", one_line(error))
        wandb.teardown()  # its local process would keep the run's id
        chosen = "offline"
    try:
        return _start(save_dir, labels, chosen)
    except Exception as error:
        log.warning("W&B cannot record (%s); this run continues without it", one_line(error))
        return DummyLogger()


def _mode(wanted: str | None) -> str:
    """The mode to start in, by W&B's own settings and key; it never prompts for one."""
    # silent: W&B would ask the server who is logged in, to print it
    settings = wandb.Settings(silent=True) if wanted is None else wandb.Settings(silent=True, mode=wanted)  # type: ignore[arg-type]
    mode: str = wandb.setup(settings).settings.mode
    if mode in LOCAL_MODES or wandb.login(prompt=False, verify=False):
        return mode
    if wanted is not None:
        log.warning("W&B has no key (`wandb login`, or WANDB_API_KEY); this run is recorded offline")
    return "offline"


def _start(save_dir: str, labels: Mapping[str, Any], mode: str) -> WandbLogger:
    # console off: what is printed is in the run's own log; flushing each second bounds what a killed process loses
    settings = wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        **wandb_flush_settings(1.0),
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
    if mode not in LOCAL_MODES:
        log.info("W&B: %s", run.url)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return _HangTolerantLogger(project=labels["project"], save_dir=save_dir, experiment=run)


def _earlier_run(save_dir: str) -> str | None:
    """The id of the W&B run whose latest segment lies in the run directory."""
    segments = Path(save_dir).glob("wandb/*run-*/run-*.wandb")
    latest = max(segments, key=lambda path: path.parent.name.removeprefix("offline-"), default=None)
    return None if latest is None else latest.stem.removeprefix("run-")


def log_sensitivities(logger: WandbLogger, record: SensitivityRecord, *, step: int) -> None:
    """Log metrics, histograms (64 bins from 0 to the largest value) and the table of layers as one row."""
    row: dict[str, Any] = {**record.metrics, "epoch": record.epoch, "trainer/global_step": step}
    for name, values in record.histograms.items():
        counts, edges = sensitivity_histogram(values)
        row[name] = wandb.Histogram(np_histogram=(counts.cpu().numpy(), edges.cpu().numpy()))
    row[TABLE] = wandb.Table(columns=list(COLUMNS), data=record.rows)
    _call(logger, partial(logger.experiment.log, row))


def log_picture(logger: WandbLogger, name: str, path: Path, *, step: int) -> None:
    """Log the picture of a PNG file."""
    _call(logger, partial(logger.experiment.log, {name: wandb.Image(str(path)), "trainer/global_step": step}))


def log_results(logger: WandbLogger, results: Mapping[str, float], *, step: int) -> None:
    """Write the run's summary, which W&B's tables of runs show."""
    _call(logger, partial(logger.experiment.summary.update, dict(results)))


def finish(logger: WandbLogger) -> None:
    """End the run; without it the next job of a sweep would write into this one."""
    run = logger.experiment
    exit_code = int(sys.exc_info()[0] is not None)  # called in a `finally`
    try:
        _call(logger, partial(run.finish, exit_code=exit_code), further_seconds=FINISH_SECONDS)
    except TimeoutError:
        command = f"wandb sync --include-online {run.settings.sync_dir}"
        log.warning("W&B has not taken everything within %d s; upload the rest with: %s", FINISH_SECONDS, command)
