"""Each row of an epoch is of the weights that the epoch ended with, and there is one."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from reference import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError

from nsr.attacks import GradientAttack
from nsr.callbacks import RunRecords, SensitivityLogger, TrainingChecks
from nsr.callbacks.checkpoints import Checkpoints
from nsr.callbacks.progress import ProgressRows
from nsr.layers import find_layers
from nsr.objectives import compute_terms
from nsr.run.files import validated, whole_rows
from nsr.training.module import RobustClassifier


@pytest.fixture
def fit(tmp_path):
    torch.manual_seed(0)
    images, labels = torch.rand(32, 1, 4, 4), torch.arange(32) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    attack = GradientAttack(epsilon=0.05, steps=1)
    optimizer = partial(torch.optim.SGD, lr=0.5)
    layers = find_layers(net, images[:2])
    module = RobustClassifier(net, layers=layers, classes=3, validation_attack=attack, optimizer=optimizer)
    module.train_metrics.add_terms(
        list(compute_terms(module.objective, {"clean_logits": net(images), "labels": labels}))
    )
    loaders = [DataLoader(TensorDataset(images, labels), batch_size=8) for _ in range(2)]
    checks = TrainingChecks()
    callbacks = [
        Checkpoints(tmp_path / "checkpoints"),
        RunRecords(tmp_path, {}),
        SensitivityLogger(directory=tmp_path),
        ProgressRows(),
        checks,
    ]

    def fit(**settings) -> list[str]:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        settings = {"num_sanity_val_steps": -1, **settings}
        trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, inference_mode=False, **quiet, **settings)
        trainer.fit(module, *loaders)
        rows = list(whole_rows(tmp_path / "metrics.csv"))
        (layer,) = {row["layer"] for row in whole_rows(tmp_path / "layers.csv")}
        assert [row["epoch"] for row in whole_rows(tmp_path / "layers.csv")] == [r["epoch"] for r in rows]
        with torch.no_grad():
            accuracy = (net.eval()(images).argmax(1) == labels).double().mean().item()
        net.train()
        assert float(rows[-1]["validation/clean_accuracy"]) == pytest.approx(accuracy, abs=1e-12)
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert [str(epoch.number) for epoch in checks.history] == [row["epoch"] for row in rows]
        assert layer and saved["nsr_place"]["epochs"] == int(rows[-1]["epoch"])
        fit.trainer = trainer
        return [row["epoch"] for row in rows]

    return fit


def test_a_training_step_that_records_nothing_has_no_training_metrics(fit, monkeypatch, tmp_path, capsys):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    monkeypatch.setattr(RobustClassifier, "training_step", training_step)
    assert fit(max_epochs=1) == ["0", "1"]
    _, row = whole_rows(tmp_path / "metrics.csv")
    assert {value for name, value in row.items() if name.startswith("train/")} == {""}
    assert "epoch 1/1" in (printed := capsys.readouterr().out) and "nan" not in printed


@pytest.mark.parametrize("further", [{"limit_val_batches": 0}, {"limit_val_batches": 1, "check_val_every_n_epoch": 2}])
def test_an_epoch_without_validation_has_its_own_training_metrics(further):
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    by_hand = copy.deepcopy(net)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    for _ in range(3):  # epochs of one batch
        expected = nn.functional.cross_entropy(by_hand(images), labels)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    layers = find_layers(net, images[:2])
    module = RobustClassifier(net, layers=layers, classes=3, optimizer=partial(torch.optim.SGD, lr=0.5))
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    trainer = quiet_trainer(max_epochs=3, num_sanity_val_steps=0, **further)
    trainer.fit(module, loader, loader)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.callback_metrics["epoch"] == 3
    assert (module.result is not None) == (further["limit_val_batches"] > 0)


def test_validations_in_the_middle_of_an_epoch_have_no_rows(fit, capsys):
    assert fit(max_epochs=2, val_check_interval=0.5) == ["0", "1", "2"]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["0/2", "1/2", "2/2"]


def test_a_trial_of_a_few_batches_is_no_epoch_before_training(fit, capsys):
    assert fit(max_epochs=1, num_sanity_val_steps=2) == ["1"]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1/1"]


@pytest.mark.parametrize(("steps", "rows"), [(6, ["0", "1", "2"]), (4, ["0", "1"]), (2, ["0", "1"])])
def test_an_epoch_that_is_cut_short_has_its_row(fit, steps, rows, caplog):
    assert fit(max_epochs=5, max_steps=steps) == rows
    messages = [row.message for row in caplog.records if "incomplete" in row.message]
    assert len(messages) == (steps % 4 != 0)
    assert all(message.endswith(f"after step {steps} of the run") for message in messages)


def test_a_run_that_max_time_ends(fit, monkeypatch):
    calls: list[int] = []
    elapsed = lambda self, *stage: calls.append(0) or 100.0 * (len(calls) > 6)  # noqa: E731
    monkeypatch.setattr(pl.callbacks.Timer, "time_elapsed", elapsed)
    found = fit(max_epochs=5, max_time="00:00:01:00")
    assert found == [str(epoch) for epoch in range(len(found))] and 2 <= len(found) < 6


def test_further_epochs_of_the_same_trainer(fit):
    assert fit(max_epochs=1) == ["0", "1"]
    trainer = fit.trainer
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, trainer.train_dataloader, trainer.val_dataloaders)
    records = next(callback for callback in trainer.callbacks if isinstance(callback, RunRecords))
    assert [row["epoch"] for row in whole_rows(records.directory / "metrics.csv")] == ["0", "1", "2", "3"]


class WithLateTerm:
    """Cross-entropy, with a further term of 100 from a step on."""

    def __init__(self, first: int):
        self.steps, self.first = 0, first

    def __call__(self, clean_logits, labels):
        self.steps += 1
        further = {"late": clean_logits.mean() * 0 + 100} if self.steps > self.first else {}
        return {"cross_entropy": nn.functional.cross_entropy(clean_logits, labels), **further}


def late_term_fit(directory, *, epochs, first=1, resume=None, metrics=None):
    directory.mkdir(exist_ok=True)
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    module = RobustClassifier(
        net,
        layers=find_layers(net, images[:2]),
        classes=3,
        objective=WithLateTerm(first),
        terms=["cross_entropy"],
        metrics=metrics,
        optimizer=partial(torch.optim.SGD, lr=0.5),
    )
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)  # an epoch is a step
    callbacks = [Checkpoints(directory / "checkpoints"), RunRecords(directory, {})]
    trainer = quiet_trainer(max_epochs=epochs, num_sanity_val_steps=-1, limit_val_batches=1, callbacks=callbacks)
    trainer.fit(module, loader, loader, ckpt_path=resume, weights_only=True)
    return list(whole_rows(directory / "metrics.csv"))


def test_a_term_that_appears_later_has_a_column_of_its_own(tmp_path):
    rows = late_term_fit(tmp_path, epochs=3)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["train/late"] for row in rows] == ["", "", "100.0", "100.0"]
    assert list(rows[0])[-1] == "train/late", "columns that are there keep their places"
    assert all(0 <= float(row["validation/clean_accuracy"]) <= 1 for row in rows)
    assert validated(tmp_path / "metrics.csv", 3)["validation/clean_accuracy"] == float(
        rows[3]["validation/clean_accuracy"]
    )


def test_a_column_that_came_after_the_checkpoint_leaves_the_rows_before_whole(tmp_path):
    expected = late_term_fit(tmp_path / "whole", epochs=3)
    late_term_fit(tmp_path / "run", epochs=1)
    checkpoint = tmp_path / "first.ckpt"
    checkpoint.write_bytes((tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes())
    late_term_fit(tmp_path / "run", epochs=2, first=0, resume=checkpoint)  # adds the column
    assert late_term_fit(tmp_path / "run", epochs=3, first=0, resume=checkpoint) == expected


def test_a_run_that_resumes_without_a_metric_leaves_its_column_empty(tmp_path):
    metric = MulticlassCalibrationError(3)
    late_term_fit(tmp_path, epochs=1, first=9, metrics={"calibration": metric})
    rows = late_term_fit(tmp_path, epochs=2, first=9, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert [bool(row["validation/clean_calibration"]) for row in rows] == [True, True, False]
    assert "validation/clean_calibration" not in validated(tmp_path / "metrics.csv", 2)
