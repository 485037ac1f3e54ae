"""docs/extending.md and examples/own_project hold: every snippet runs, as a user would type it."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import torch

from nsr.app.composition import without_null
from nsr.app.train import train
from tests.conftest import in_a_process, job, made, read_json, refusal, rows
from tests.pages import ROOT, blocks

BLOCKS = blocks(ROOT / "docs" / "extending.md")
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"python train.py(?!.*(--config-dir|MLFlow))", line)]
QUICK = (
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", "validation_attack.steps=1"),
    "test_attacks.pgd.steps=2",
)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The module that the page's snippets make up, importable as from the working directory."""
    folder = tmp_path_factory.mktemp("own")
    snippets = [block for kind, block in BLOCKS if kind == "python" and block.startswith("# mine.py")]
    assert len(snippets) >= 6
    (folder / "mine.py").write_text("\n\n".join(snippets))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    "command", [pytest.param(each, marks=pytest.mark.slow if place > 1 else ()) for place, each in enumerate(COMMANDS)]
)
def test_every_command_of_the_page_trains(command, mine, tmp_path):
    overrides = without_null(shlex.split(command)[2:])
    logger = [] if any("logger" in row for row in overrides) else ["logger=none"]
    train(job("train", tmp_path / "run", *overrides, *logger, *QUICK))
    results = read_json(tmp_path / "run" / "metrics.json")
    assert 0 <= results["test/clean_accuracy"] <= 1
    row = rows(tmp_path / "run" / "metrics.csv")[1]
    if "feature_pairing" in command:
        assert {"train/cross_entropy", "train/pairing"} <= row.keys()
    if "metrics.f1" in command:
        assert {"validation/clean_f1", "validation/robust_f1"} <= row.keys()
        assert "test/pgd_f1" in results
    if "random_signs" in command:
        assert "test/random_signs_accuracy" in results


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox, of scipy
def test_an_attack_of_a_library_through_the_adapter(tmp_path):
    (block,) = [block for kind, block in BLOCKS if kind == "yaml"]
    assert "nsr.attacks.LibraryAttack" in block and "foolbox.attacks.LinfDeepFoolAttack" in block
    deepfool = "{_target_: foolbox.attacks.LinfDeepFoolAttack, steps: 3}"
    attack = f"{{_target_: nsr.attacks.LibraryAttack, epsilon: 0.15, attack: {deepfool}}}"
    train(job("train", tmp_path / "run", f"+test_attacks.deepfool={attack}", "logger=none", *QUICK))
    assert "test/deepfool_accuracy" in read_json(tmp_path / "run" / "metrics.json")


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python" and "trainer.fit" in block])
def test_every_library_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict = {}
        exec(compile(block, "extending.md", "exec"), names)
    if "SensitivityLogger" in block:
        directory = Path(names["trainer"].log_dir)
        assert {row["epoch"] for row in rows(directory / "layers.csv")} == {"0", "1", "2", "3"}
        assert {"sensitivity.csv", "sensitivity.png", "sensitivity.pdf"} <= {path.name for path in directory.iterdir()}


@pytest.mark.slow
def test_the_example_project_trains_and_its_printed_command_evaluates(tmp_path):
    """From its own folder, by --config-dir; the command that is printed at the end works as it is."""
    here = ROOT / "examples" / "own_project"
    settings = ["experiment=bars", "logger=none", f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_epochs=2"]
    done = in_a_process("train.py", "--config-dir", "conf", *settings, folder=here)
    assert done.returncode == 0, done.stderr
    assert "random_signs, L-infinity 0.1" in done.stdout
    assert "pgd_worst_class" in done.stdout
    (printed,) = re.findall(r"^try next +python (.*)$", done.stdout, flags=re.MULTILINE)
    done = in_a_process(*shlex.split(printed), "test_attacks=[clean]", "checks.enabled=false", folder=here)
    assert done.returncode == 0, done.stderr
    assert "all 128 test images" in done.stdout


OWN = """
import torch


class WithoutClosure(torch.optim.SGD):
    def step(self, closure=None):
        return super().step()


def of_another_network(parameters):
    return torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)


def detached(clean, adversarial):
    return sum(each.mean() for each in adversarial.values()).detach()


class Schedule:
    def __init__(self, optimizer):
        pass

    def step(self):
        pass


def brighter(image, by=0.1):
    return (image + by).clamp(0, 1)
"""


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("optimizer", "WithoutClosure"),
        ("optimizer", "of_another_network"),
        ("scheduler", "Schedule"),
        ("stabilizer", "detached"),
    ],
)
def test_a_part_that_would_train_nothing_is_refused(group, name, tmp_path, monkeypatch):
    (tmp_path / "idle_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = [*without_null([f"{group}=null"]), f"+{group}._target_=idle_parts.{name}"]
    assert refusal(made, "train", *own, "model.width=2").startswith(group)


def test_functions_augment_and_a_schedule_follows_the_accuracy(tmp_path, monkeypatch):
    (tmp_path / "idle_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    augment = "data.augmentation=[crop_flip,{_target_: idle_parts.brighter, by: 1.0}]"
    plateau = ["+scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "+scheduler.mode=max"]
    module = made("train", augment, *without_null(["scheduler=null"]), *plateau, "model.width=2").module
    assert torch.equal(module.augment(torch.rand(2, 1, 8, 8)), torch.ones(2, 1, 8, 8))
