"""Small runs of the real thing, made as train.py and evaluate.py make them, without a process of their own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write
from PIL import Image

from nsr.errors import InputError, RunStopped

ROOT = Path(__file__).parent.parent
TINY = (
    *("logger=csv", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"),
    *("model.width=4", "train_attack.steps=2", "validation_attack.steps=2", "test_attacks.pgd.steps=2"),
)
REPEATED = ("test_attacks=[clean,fgsm,pgd]", "test_attacks.pgd.steps=2")  # the tests at the end of a TINY run


torch.set_num_threads(1)  # for session fixtures too
for _name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):  # also of the commands that tests start
    os.environ[_name] = tempfile.mkdtemp()
os.environ["OMP_NUM_THREADS"] = "1"  # of these commands: two threads each, beside two tests, wait for each other


@pytest.fixture(scope="session", autouse=True)
def errors_are_one_line():
    """Check the text of every InputError and RunStopped that any test meets."""

    def checked(self, *arguments):
        assert "\n" not in "".join(map(str, arguments)), arguments

    with pytest.MonkeyPatch.context() as patch:
        for error in (InputError, RunStopped):
            patch.setattr(error, "__init__", checked)
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on networks this small wait for each other, and for minutes beside a busy process."""
    torch.set_num_threads(1)
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(autouse=True)
def quick_heat_maps(monkeypatch):
    """Runs take as long again to draw; session and module fixtures do, and the tests of the picture."""

    def draw(path: Path, history) -> None:
        for suffix in ("png", "pdf"):
            Image.new("RGB", (4, 4)).save(path.with_suffix(f".{suffix}"))

    if "nsr.callbacks.sensitivity" in sys.modules:
        monkeypatch.setattr("nsr.callbacks.sensitivity.draw_heat_map", draw, raising=False)


@pytest.fixture(scope="session", autouse=True)
def no_reports():
    """Write no report and no pictures after a run in this process; the tests of them do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsr.report.automatic.write_or_warn", lambda directory: None)
        patch.setattr("nsr.app.pictures.write_or_warn", lambda *arguments, **settings: {})
        yield


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


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


def evaluated(directory: Path, *overrides: str) -> Path:
    """Evaluate into a new directory."""
    from nsr.app.evaluate import evaluate

    evaluate(job("evaluate", directory, *overrides))
    return directory


def assert_repeats(run: Path, evaluation: Path) -> None:
    """An evaluation with REPEATED gives the metrics at the end of its run."""
    expected = {name: value for name, value in read_json(run / "metrics.json").items() if name.startswith("test/")}
    assert read_json(evaluation / "evaluation.json") == expected


def in_a_process(entry: str, *overrides: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The user's own command, in a process of its own."""
    command, variables = [sys.executable, str(ROOT / entry), *overrides], {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=900)


def refusal(call, *arguments, **settings) -> str:
    """The text of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    return str(caught.value)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_rows(one: Path, two: Path, *, epoch: str | None = None, rel: float = 1e-9, abs: float = 1e-12) -> None:
    """Equal texts and close numbers in two CSV files, or in one epoch of them."""
    first, second = ([row for row in rows(path) if epoch in (None, row["epoch"])] for path in (one, two))
    assert len(first) == len(second) > 0
    for left, right in zip(first, second, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            if name in ("layer", "most_sensitive") or not value:
                assert right[name] == value, name
            else:
                assert float(right[name]) == pytest.approx(float(value), rel=rel, abs=abs), (name, left)


def read_json(path: Path):
    return json.loads(path.read_text())


def without(*prefixes: str) -> list[str]:
    """TINY without the settings that begin so."""
    return [override for override in TINY if not override.startswith(prefixes)]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The directory of one tiny run of the default experiment; tests read it, none writes there."""
    from nsr.app.train import train

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    train(job("train", directory, *TINY, "trainer.max_epochs=2"))
    return directory


def image_folder(root: Path, *, classes=("cat", "dog"), images: int = 6, size: int = 8) -> Path:
    """Random images in root/{train,test}/CLASS."""
    draws = np.random.default_rng(0)
    for name in (f"{split}/{label}" for split in ("train", "test") for label in classes):
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = draws.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def best(trained) -> str:
    """The override that names its best checkpoint."""
    return f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Check a command that must fail; give its one line."""
    from nsr.app.command_line import check_command_line

    def check(entry: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            check_command_line(entry, list(arguments))
        assert stopped.value.code == 1
        assert sorted(tmp_path.rglob("*")) == before, "something was made"
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        return text

    return check
