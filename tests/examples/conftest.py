"""The packages under examples/, imported and run from their own folders as a user does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from nsr.app.folders import with_folder
from nsr.app.train import train
from tests.conftest import ROOT, job


@pytest.fixture
def example(monkeypatch):
    """Return its module from the folder of an example, which becomes the working directory."""
    modules = set(sys.modules)

    def enter(folder: str, module: str):
        where = ROOT / "examples" / folder
        monkeypatch.chdir(where)
        monkeypatch.syspath_prepend(str(where))
        return importlib.import_module(module)

    yield enter
    for name in {"grad_align", "union", "zero_shot", "hf_images", "tar_images"} & (sys.modules.keys() - modules):
        del sys.modules[name]


@pytest.fixture
def trained_example(tmp_path):
    """Return the directory of a run with the configurations of the working directory."""

    def run(*overrides: str, name: str = "run") -> Path:
        settings = ["logger=none", "stabilizer=none", "trainer.accelerator=cpu", *overrides]
        train(job("train", tmp_path / name, *with_folder(settings, "conf")))
        return tmp_path / name

    return run
