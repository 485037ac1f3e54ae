"""Small runs of the real thing, made as train.py and evaluate.py make them, without a process of their own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

TINY = (
    "logger=csv",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.accelerator=cpu",
    "model.width=4",
    "train_attack.steps=2",
    "validation_attack.steps=2",
    "test_attacks.pgd.steps=2",
)


torch.set_num_threads(1)  # for session fixtures too
for _name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):  # also of the commands that tests start
    os.environ[_name] = tempfile.mkdtemp()


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on networks this small wait for each other, and for minutes beside a busy process."""
    torch.set_num_threads(1)
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def job(entry: str, directory: Path, *overrides: str) -> DictConfig:
    """The configuration of one job as hydra hands it to the entry point, its run directory made."""
    from nsr.app.composition import compose_checked, without_hydra

    config = compose_checked(entry, [*overrides, f"hydra.run.dir={directory}"])
    directory.mkdir(parents=True)
    with read_write(config), open_dict(config), read_write(config.hydra), open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(directory)
    HydraConfig.instance().set_config(config)
    return without_hydra(config)


def made(program: str, *overrides: str):
    """The Job of a command: data, network and module, nothing run or written."""
    from nsr.app.composition import compose_checked, without_hydra
    from nsr.app.job import make_job

    return make_job(without_hydra(compose_checked(program, list(overrides))), program)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The directory of one tiny run of the default experiment; tests read it, none writes there."""
    from nsr.app.train import train

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    train(job("train", directory, *TINY, "trainer.max_epochs=2"))
    return directory
