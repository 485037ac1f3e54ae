"""The choice of loggers, their settings, and what is refused before a run directory is made."""

from __future__ import annotations

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from nsr.app.build import build_loggers
from nsr.app.composition import compose_checked, plain, without_hydra, without_null
from nsr.app.train import train
from nsr.errors import InputError
from tests.conftest import TINY, job


def composed(*overrides: str):
    return without_hydra(compose_checked("train", without_null(overrides)))


class Recorder(DummyLogger):
    """A logger that nsr does not ship."""

    made: list[Recorder] = []

    def __init__(self, *, tag: str = "", save_dir: str | None = None):
        super().__init__()
        self.tag, self.directory = tag, save_dir
        self.rows: list[dict] = []
        self.settings: dict = {}
        self.made.append(self)

    def log_hyperparams(self, params):
        self.settings |= params

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))


RECORDER = f"{__name__}.Recorder"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["wandb"]),
        (["logger=wandb"], ["wandb"]),
        (["logger=[wandb]"], ["wandb"]),
        (["logger=tensorboard"], ["tensorboard"]),
        (["logger=[wandb,csv]"], ["wandb", "csv"]),
        (["logger=none"], []),
        (["logger=null"], []),
        (["logger=[]"], []),
        (["~logger"], []),
        (["logger=csv", f"+logger.mine._target_={RECORDER}"], ["csv", "mine"]),
        (["logger=null", f"+logger.mine={{_target_:{RECORDER},tag:a}}"], ["mine"]),
        (["+logger.mine._target_=pytorch_lightning.loggers.MLFlowLogger"], ["wandb", "mine"]),
    ],
)
def test_loggers_are_chosen_by_name_by_list_or_brought_along(overrides, names):
    config = composed(*overrides)
    assert list(config.get("logger") or {}) == names


def test_a_run_logs_to_a_logger_brought_along(tmp_path):
    Recorder.made.clear()
    extra = [f"+logger.{name}={{_target_:{RECORDER},tag:{name}}}" for name in ("one", "two")]
    train(job("train", tmp_path / "run", *TINY, *extra))
    one, two = Recorder.made
    assert (one.tag, two.tag, one.directory) == ("one", "two", str(tmp_path / "run"))
    assert one.rows == two.rows
    assert one.settings["optimizer.lr"] == 0.005
    names = {name for row in one.rows for name in row}
    assert {"lr-Adam", "sensitivity/relative", "validation/robust_accuracy", "test/clean_accuracy"} <= names
    assert (tmp_path / "run" / "csv" / "metrics.csv").exists()


def test_loggers_that_were_made_are_closed_where_a_later_one_fails(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("nsr.loggers.finish", closed.extend)
    config = composed("logger=csv", f"+logger.mine={{_target_:{RECORDER},_args_:[1]}}")
    with pytest.raises(InputError, match=r"Recorder cannot be made: .*positional"):
        build_loggers(plain(config), tmp_path)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"group": None, "job_type": "train", "name": "digits_small_cnn_pgd_sns_seed0"}),
        ([], {"tags": ["digits", "pgd", "sns"]}),
        (["experiment=digits_natural"], {"tags": ["digits", "natural", "none", "digits_natural"]}),
        (["objective=trades", "stabilizer=none"], {"tags": ["digits", "trades", "none"], "mode": None}),
        (["logger.wandb.tags=[paper,2]", "logger.wandb.group=table2"], {"tags": ["paper", 2], "group": "table2"}),
        (["logger.wandb.name=1"], {"name": 1}),
    ],
)
def test_a_wandb_run_is_labelled_by_its_choices(overrides, expected):
    settings = plain(composed(*overrides))["logger"]["wandb"]
    assert {name: settings[name] for name in expected} == expected
