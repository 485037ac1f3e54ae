"""A dashboard that fails, is not there or may not be: a run goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nsr.loggers import finish, log_picture, log_results, log_sensitivities, log_settings


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_no_folder_can_be_made(tmp_path, caplog, kind):
    """Where a file is in its way, as no user, root neither, can write there."""
    (tmp_path / kind).write_text("in the way")
    made = make(kind, tmp_path)
    log_settings(made, {"optimizer": {"lr": 0.1}})
    made.log_metrics({"figure": 1.0}, step=0)
    log_results(made, {"test/clean_accuracy": 0.5}, step=1)
    finish(made)
    assert caplog.text.count("this run goes without") == 1


def make(kind: str, directory: Path):
    if kind == "tensorboard":
        from nsr.loggers.tensorboard import tensorboard_logger

        return tensorboard_logger(save_dir=str(directory))
    from nsr.loggers.wandb import wandb_logger

    return wandb_logger(save_dir=str(directory), mode="offline")


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_whatever_a_dashboard_raises_is_told_once(tmp_path, monkeypatch, caplog, kind):
    """Each way into it fails; Lightning's own calls are among them."""

    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(f"no space left\nat {name}")

    made = make(kind, tmp_path)
    real = made.experiment
    made._experiment = Broken()
    with caplog.at_level(logging.WARNING):
        log_settings(made, {"optimizer": {"lr": 0.1}})
        made.log_metrics({"figure": 1.0}, step=0)
        log_sensitivities(made, {}, {}, step=0, epoch=0)
        log_picture(made, "picture", picture(tmp_path), step=0)
        log_results(made, {"test/clean_accuracy": 0.5}, step=0)
        made.save()
        finish(made)
        made.finalize("success")
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("nsr")]
    name = {"wandb": "W&B", "tensorboard": "TensorBoard"}[kind]
    assert warnings == [f"{name} has failed (no space left); the run goes on, its files are complete without it"]
    made._experiment = real
    finish(made)


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path):
    from nsr.loggers import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    modes = []
    monkeypatch.setattr(wandb, "_begin", lambda *arguments: modes.append(arguments[-1]))
    wandb.wandb_logger(save_dir=str(tmp_path))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    wandb.wandb_logger(save_dir=str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.wandb_logger(save_dir=str(tmp_path))
    wandb.wandb_logger(save_dir=str(tmp_path), mode="online")
    assert modes == ["offline", "online", "offline", "online"]


def test_wandb_falls_back_where_it_cannot_be_reached(monkeypatch, tmp_path, caplog):
    from nsr.loggers import wandb

    asked = []

    def begin(save_dir, labels, mode):
        asked.append(mode)
        if mode == "online":
            raise wandb.wandb.errors.CommError("no network")
        return "logger"

    monkeypatch.setattr(wandb, "_begin", begin)
    assert wandb.wandb_logger(save_dir=str(tmp_path), mode="online") == "logger"
    assert asked == ["online", "offline"]
    assert "recorded offline" in caplog.text


@pytest.mark.parametrize("rank", [{"RANK": "1", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "1"}])
def test_only_the_first_of_all_processes_has_a_run(monkeypatch, tmp_path, rank):
    from nsr.loggers import wandb

    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    begun = []
    monkeypatch.setattr(wandb, "_begin", lambda *arguments: begun.append(arguments))
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    wandb.wandb_logger(save_dir=str(tmp_path))
    assert not begun
    for name in rank:
        monkeypatch.setenv(name, "0")
    wandb.wandb_logger(save_dir=str(tmp_path))
    assert len(begun) == 1
