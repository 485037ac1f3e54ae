"""Loggers that fail, hang, are not reachable or are resumed: the run continues."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel
from pytorch_lightning.loggers.logger import DummyLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsr.app.build import build_loggers
from nsr.compat import wandb_flush_settings
from nsr.loggers import csv_logger, finish, log_picture, log_results, log_sensitivities, log_settings, wandb
from nsr.loggers.fault_tolerant import fault_tolerant
from nsr.loggers.tensorboard import tensorboard_logger
from tests.offline_runs import offline_history, offline_records, offline_run

TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard", "foreign": "Foreign"}


def make(kind: str, directory: Path):
    if kind == "tensorboard":
        return fault_tolerant(tensorboard_logger(save_dir=str(directory)))
    if kind == "foreign":
        return fault_tolerant(type("Foreign", (DummyLogger,), {})())
    return fault_tolerant(wandb.wandb_logger(save_dir=str(directory), mode="offline"))


def log_everything(logger, directory: Path) -> None:
    """All of nsr's calls, Lightning's among them."""
    Image.new("RGB", (4, 4)).save(directory / "picture.png")
    log_settings([logger], {"optimizer.lr": 0.1})
    logger.log_metrics({"metric": 1.0}, step=0)
    log_sensitivities([logger], {}, {}, step=0, epoch=0)
    log_picture([logger], "picture", directory / "picture.png", step=0)
    log_results([logger], {"test/clean_accuracy": 0.5}, step=0)
    logger.save()
    finish([logger])
    logger.finalize("success")


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_a_folder_that_cannot_be_made(tmp_path, caplog, kind):
    """A file is in its way, so that no user, root neither, can write there."""
    (tmp_path / kind).write_text("in the way")
    settings = {"logger": {kind: {"_target_": f"nsr.loggers.{kind}.{kind}_logger"}}}
    for logger in build_loggers(settings, tmp_path):
        log_everything(logger, tmp_path)
    assert caplog.text.count("this run continues without it") == 1


@pytest.mark.parametrize("kind", TITLES)
def test_whatever_a_logger_raises_is_logged_once(tmp_path, monkeypatch, caplog, kind):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("no space\nleft")

    made = make(kind, tmp_path)
    real = made.experiment
    if kind == "foreign":
        monkeypatch.setattr(made, "log_hyperparams", lambda *settings: Broken().anything)
    made._experiment = Broken()
    log_everything(made, tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("nsr")]
    assert warnings == [f"{TITLES[kind]} failed (no space left); the run continues, its files are complete without it"]
    made._experiment = real
    finish([made])


class Unreliable(Logger):
    """A logger of another package, one of whose parts fails."""

    name, version = "unreliable", 0

    def __init__(self, fails=""):
        super().__init__()
        self.fails, self.calls = fails, []

    def _call(self, part):
        self.calls.append(part)
        if part == self.fails:
            raise ConnectionError(f"no answer to {part}")

    @property
    def experiment(self):
        self._call("experiment")

    def log_metrics(self, metrics, step=None):
        self._call("log_metrics")

    def log_hyperparams(self, params):
        self._call("log_hyperparams")

    def save(self):
        self._call("save")

    def finalize(self, status):
        self._call("finalize")


@pytest.mark.parametrize("part", ["experiment", "log_metrics", "log_hyperparams", "save", "finalize"])
def test_a_logger_of_another_package_that_fails_does_not_stop_a_trainer(tmp_path, caplog, part):
    settings = {"logger": {"mine": {"_target_": f"{__name__}.Unreliable", "fails": part}}}
    loggers = build_loggers(settings, tmp_path)
    module, data = BoringModel(), BoringDataModule()
    module.save_hyperparameters({"weight": 1})
    further = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=1, logger=loggers, accelerator="cpu", default_root_dir=tmp_path, **further)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    for logger in loggers:
        logger.log_metrics({"loss": 1.0}, step=1)  # the model logs none
    assert trainer.global_step == 1
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("nsr")]
    assert len(messages) == 1 and f"no answer to {part}" in messages[0]


def test_a_call_that_hangs_disables_wandb(tmp_path, monkeypatch, caplog):
    torn_down, awake = Event(), Event()
    monkeypatch.setattr(wandb, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(wandb.wandb, "teardown", torn_down.set)
    made, other = (make("wandb", tmp_path / name) for name in ("hanging", "other"))
    real = made.experiment
    with monkeypatch.context() as patch:
        patch.setattr(real, "log", lambda row: awake.wait())
        started = time.monotonic()
        log_everything(made, tmp_path)
        assert 0.2 < time.monotonic() - started < 2
    assert torn_down.wait(1)
    assert caplog.text.count("W&B failed (no answer within 0.2 s, so it is disabled); the run continues") == 1
    other.log_metrics({"metric": 1.0}, step=0)
    awake.set()
    real.finish()
    finish([other])
    assert len(offline_history(offline_run(tmp_path / "other"))) == 1


KEY = "k" * 40
NETRC = f"machine api.wandb.ai login user password {KEY}"


@pytest.mark.parametrize(
    ("environment", "netrc", "wanted", "started", "warnings"),
    [
        ({}, "", None, ["offline"], 0),
        ({}, "", "online", ["offline"], 1),
        ({}, NETRC, None, ["online"], 0),
        ({}, NETRC.replace("api.wandb.ai", "elsewhere.org"), None, ["offline"], 0),
        ({"WANDB_API_KEY": KEY}, "", None, ["online"], 0),
        ({"WANDB_API_KEY": KEY}, "", "offline", ["offline"], 0),
        ({"WANDB_MODE": "offline"}, NETRC, None, ["offline"], 0),
        ({"WANDB_MODE": "offline"}, NETRC, "online", ["online"], 0),
        ({"WANDB_MODE": "disabled"}, NETRC, None, ["disabled"], 0),
        ({"WANDB_API_KEY": "short"}, "", None, ["offline"], 1),
        ({"WANDB_BASE_URL": "http://unreachable", "WANDB_API_KEY": KEY}, "", None, ["online", "offline"], 1),
    ],
)
def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path, caplog, environment, netrc, wanted, started, warnings):
    def start(save_dir, labels, mode):
        modes.append(mode)
        if mode == "online" and "WANDB_BASE_URL" in environment:
            raise wandb.wandb.errors.CommError("no network")

    modes: list[str] = []
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(netrc)
    for name, value in {**environment, "NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb, "_start", start)
    wandb.wandb.teardown()  # it reads its environment once
    try:
        wandb.wandb_logger(save_dir=str(tmp_path), mode=wanted)
    finally:
        wandb.wandb.teardown()
    assert modes == started
    assert caplog.text.count("recorded offline") == warnings


@pytest.mark.parametrize("rank", [{"RANK": "1", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "1"}])
def test_only_the_first_of_all_processes_has_a_run(monkeypatch, tmp_path, rank):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    assert isinstance(make("wandb", tmp_path), DummyLogger)
    assert not list(tmp_path.iterdir())


def test_the_private_setting_that_bounds_what_a_killed_run_loses_exists():
    assert wandb_flush_settings(1.0) == {"x_transaction_log_flush_interval": 1.0}


@pytest.mark.slow
def test_a_resumed_run_keeps_its_wandb_id_and_a_failed_one_is_shown_as_failed(tmp_path):
    ids = []
    for folder, step in (("run", 1), ("run", 2), ("other", 3)):
        logger = make("wandb", tmp_path / folder)
        logger.log_metrics({"metric": step}, step=step)
        ids.append(logger.experiment.id)
        with suppress(RuntimeError):
            try:
                raise RuntimeError("the training has failed")
            finally:
                finish([logger])
    assert ids[0] == ids[1] != ids[2]
    segments = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert sorted(offline_history(segment)[0]["metric"] for segment in segments) == [1, 2]
    assert offline_records(offline_run(tmp_path / "other"), "exit")[0]["exit_code"] == 1


def test_a_resumed_run_keeps_its_rows(tmp_path):
    for step in range(3):
        loggers = [csv_logger(save_dir=str(tmp_path)), make("tensorboard", tmp_path)]
        log_settings(loggers, {"seed": 0})
        for logger in loggers:
            logger.log_metrics({"metric": 1.0}, step=step)
            logger.save()
        finish(loggers)
    assert {path.parent.name for path in tmp_path.glob("*/metrics.csv")} == {"csv", "csv_2", "csv_3"}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("metric")] == [0, 1, 2]
