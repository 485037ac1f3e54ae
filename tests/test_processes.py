"""Two processes (gloo) count and measure what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.models import SmallCNN
from tests.conftest import assert_same_rows, in_a_process, rows

ROOT = Path(__file__).parent.parent
IMAGES = 101  # in batches of 16: seven, the last of 5, so that one process has a batch more than the other


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """Third-party weights and a folder of 101 test images."""
    root = tmp_path_factory.mktemp("two")
    draws = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", IMAGES)):
        for number in range(count):
            folder = root / "images" / split / f"class{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    torch.manual_seed(0)
    torch.save(SmallCNN(channels=3, classes=3, image_size=8, width=4).state_dict(), root / "weights.pt")
    return [
        *("data=image_folder", f"data.root={root / 'images'}", "data.evaluation_batch_size=16", "epsilon=8/255"),
        *("model=small_cnn", "model.width=4", f"model.weights={root / 'weights.pt'}", "trainer.accelerator=cpu"),
        "model.normalization=data",
    ]


def run(entry: str, directory: Path, *overrides: str) -> None:
    done = in_a_process(entry, *overrides, f"hydra.run.dir={directory}", folder=directory.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_measure_what_one_does(command, tmp_path):
    run("evaluate.py", tmp_path / "one", *command)
    run("evaluate.py", tmp_path / "two", *command, "trainer.devices=2", "trainer.strategy=ddp")
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.endswith("_accuracy"):  # whole counts of the same 101 images
            assert value == two[name]
            assert value * IMAGES == pytest.approx(round(value * IMAGES), abs=1e-9)
        else:
            assert value == pytest.approx(two[name], rel=1e-6)
    assert_same_rows(tmp_path / "one" / "sensitivity.csv", tmp_path / "two" / "sensitivity.csv")


@pytest.mark.slow
def test_two_processes_train_and_leave_one_run(command, tmp_path):
    training = [
        *command,
        *("data.batch_size=6", "data.validation_images=11", "data.evaluation_batch_size=4", "train_attack.steps=1"),
        *("trainer.max_epochs=1", "logger=csv", "validation_attack.steps=2", "test_attacks.pgd.steps=2"),
    ]
    run("train.py", tmp_path / "run", *training, "trainer.devices=2", "trainer.strategy=ddp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert [row["epoch"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["0", "1"]
    run("train.py", tmp_path / "one", *training)
    # before training both have the same weights, so epoch 0 must agree
    for name in ("sensitivity.csv", "layers.csv"):
        assert_same_rows(tmp_path / "run" / name, tmp_path / "one" / name, epoch="0")
    accuracies = [rows(tmp_path / name / "metrics.csv")[0] for name in ("run", "one")]
    assert accuracies[0]["validation/clean_accuracy"] == accuracies[1]["validation/clean_accuracy"]
    assert accuracies[0]["validation/robust_accuracy"] == accuracies[1]["validation/robust_accuracy"]


FOREIGN = """
import sys
import pytorch_lightning as pl, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import nsr
from nsr.attacks import GradientAttack

class Theirs(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(216, 3))
    def forward(self, images):
        return self.body(images)
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        pass
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    devices, folder = int(sys.argv[1]), sys.argv[2]
    generator = torch.Generator().manual_seed(1)
    images = TensorDataset(
        torch.rand(48, 1, 8, 8, generator=generator), torch.randint(0, 3, (48,), generator=generator)
    )
    telemetry = nsr.SensitivityLogger(attack=GradientAttack(epsilon=0.1, steps=2, random_start=False), directory=folder)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
        callbacks=[telemetry], num_sanity_val_steps=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Theirs(), DataLoader(images, batch_size=8), DataLoader(images, batch_size=8))
"""


@pytest.mark.slow
def test_a_foreign_module_on_two_processes(tmp_path):
    script = tmp_path / "theirs.py"
    script.write_text(FOREIGN)
    for devices in (1, 2):
        program = [sys.executable, str(script), str(devices), str(tmp_path / str(devices))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert_same_rows(tmp_path / "1" / "sensitivity.csv", tmp_path / "2" / "sensitivity.csv", epoch="0")
    assert [row["epoch"] for row in rows(tmp_path / "2" / "layers.csv")] == ["0", "1"]


@pytest.mark.slow
def test_two_processes_evaluate_checks_as_one_does(command, tmp_path):
    """The classes predicted are added up, and so is a probe that each makes of a part of the images."""
    training = [
        *(*command, "data.batch_size=6", "data.validation_images=11", "data.evaluation_batch_size=4"),
        *("trainer.max_epochs=1", "logger=csv", "train_attack.steps=1", "validation_attack=fgsm"),
        "test_attacks=[clean]",
    ]
    run("train.py", tmp_path / "two", *training, "trainer.devices=2", "trainer.strategy=ddp")
    run("train.py", tmp_path / "one", *training)
    for name in ("one", "two"):
        assert len(json.loads((tmp_path / name / "checks.json").read_text())) == 4
    saved = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two")]
    (before, after), (two_before, two_after) = (each["callbacks"]["TrainingChecks"]["history"] for each in saved)
    assert before.pop("least_sensitive")[1] == pytest.approx(two_before.pop("least_sensitive")[1], rel=1e-9)
    assert before == two_before  # of the same weights
    assert (after["images"], after["strong_images"]) == (11, 4)  # images 0, 3, 6, 9 of three batches
    assert (two_after["images"], two_after["strong_images"]) == (11, 4)


def exchange(rank: int, folder: str) -> None:
    """One of two processes that exchange sensitivities and gradients."""
    from torch import distributed

    from nsr.callbacks.weight_perturbation import _averaged
    from nsr.stabilizer import SensitivityStabilizer, over_processes

    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = {"a": torch.tensor([1.0, 2.0]) * (rank + 1), "b": torch.tensor([3.0]) * (rank + 1)}
    gradients = [torch.full((2, 3), float(rank)), torch.arange(4.0) * rank]
    torch.manual_seed(rank)
    drawn = SensitivityStabilizer(select="random", top=3)._selected({"a": torch.zeros(50)}, samples=2 - rank)
    made = drawn | {"sensitivities": over_processes(mine, samples=(3, 1)[rank]), "gradients": _averaged(gradients)}
    torch.save(made, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_what_processes_exchange_in_a_step(tmp_path):
    """Sensitivities weighted by images, AWP's gradients in the mean, the same in both."""
    torch.multiprocessing.spawn(exchange, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert results[0]["a"].tolist() == results[1]["a"].tolist()  # random neurons
    for made in results:
        assert made["sensitivities"]["a"].tolist() == pytest.approx([1.25, 2.5])  # (3 * 1 + 1 * 2) / 4
        assert made["sensitivities"]["b"].tolist() == pytest.approx([3.75])
        assert torch.equal(made["gradients"][0], torch.full((2, 3), 0.5))
        assert made["gradients"][1].tolist() == [0, 0.5, 1, 1.5]


LEAVING = """
import atexit, sys
from torch import distributed
from nsr.run.processes import leave_processes

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
atexit.register(lambda: print(distributed.is_initialized()))
leave_processes(None, orderly=sys.argv[2] == "orderly")
print(distributed.is_initialized())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "is_of_torchrun", "expected"),
    [("orderly", False, [False, False]), ("orderly", True, [True, False]), ("failed", True, [True, True])],
)
def test_a_process_leaves_the_group_before_it_exits(tmp_path, end, is_of_torchrun, expected):
    """The one that torchrun has started at its exit: the jobs of a sweep share the group."""
    environment = {**os.environ} | ({"TORCHELASTIC_RUN_ID": "1"} if is_of_torchrun else {})
    script = [sys.executable, "-u", "-c", LEAVING, str(tmp_path / "store"), end]  # unbuffered: it may end in an abort
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == [str(each) for each in expected]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    ["objective=free", "objective=trades callbacks=[awp,ema] stabilizer.refresh=average train_attack.steps=1"],
    ids=["free", "awp"],
)
def test_two_processes_train_what_keeps_state(command, tmp_path, choices):
    training = [
        *(*command, *choices.split(), "data.batch_size=6", "data.validation_images=11"),
        *("trainer.max_epochs=1", "logger=csv", "validation_attack.steps=2", "test_attacks.pgd.steps=2"),
    ]
    run("train.py", tmp_path / "run", *training, "trainer.devices=2", "trainer.strategy=ddp")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    if "free" in choices:
        first, second = saved["perturbations"]  # one of each process
        assert first.abs().max() > 0 < second.abs().max()
        assert not torch.equal(first, second)
    else:
        scores = saved["current_model_state"]["stabilizer._extra_state"]
        assert list(scores) == ["relu1", "relu2", "relu3", "relu4"]
        assert all(v.isfinite().all() for name, v in saved["state_dict"].items() if name.startswith("net."))
