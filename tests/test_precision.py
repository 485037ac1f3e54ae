"""trainer.precision: what trains the network, what it is measured in, and precisions that a device does not have."""

from __future__ import annotations

import csv

import pytest
import pytorch_lightning as pl
import torch

from nsr.app.composition import compose_checked
from nsr.app.network import load_network
from nsr.app.preflight import preflight
from nsr.app.train import train
from nsr.errors import InputError
from nsr.features import FeatureExtractor
from nsr.metrics.sensitivity import NetworkSensitivity
from nsr.models.weights import read_checkpoint
from tests.conftest import TINY, job, made


@pytest.mark.slow
def test_averages_of_float64_training_are_float64(tmp_path):
    """They are swapped with the weights for each validation, which float32 averages would round."""
    train(job("train", tmp_path / "run", *TINY, "trainer.precision=64-true", "callbacks=[ema]"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        weights = [value for name, value in saved[part].items() if name.endswith("weight")]
        assert weights and all(value.dtype == torch.float64 for value in weights)
        assert any((value != value.float()).any() for value in weights)


def test_half_precision_trains_and_float32_measures(tmp_path, monkeypatch):
    """Hooked layers of bf16 training are bf16; those of validation float32, its sums float64 of float32 differences,
    and its sensitivities those that a run in float32 measures on the same weights."""
    seen = set()
    tapped = FeatureExtractor.__call__

    def watched(self, images):
        logits, features = tapped(self, images)
        seen.update((self.net.training, value.dtype) for value in (logits, *features.values()))
        return logits, features

    sums = []
    added = NetworkSensitivity.update

    def recorded(self, *values):
        sums.extend(value.dtype for value in values if isinstance(value, torch.Tensor))
        added(self, *values)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractor, "__call__", watched)
        patched.setattr(NetworkSensitivity, "update", recorded)
        train(job("train", tmp_path / "run", *TINY, "trainer.precision=bf16-mixed"))
    assert (True, torch.bfloat16) in seen
    assert {dtype for training, dtype in seen if not training} == {torch.float32}
    assert sums and set(sums) == {torch.float64}

    again = made("train", *TINY)
    data, module = again.data, again.module
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    load_network(module.net, read_checkpoint(path), path)
    trainer = pl.Trainer(accelerator="cpu", logger=False, inference_mode=False, use_distributed_sampler=False)
    trainer.validate(module, datamodule=data, verbose=False)
    with (tmp_path / "run" / "sensitivity.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] == "1"]
    assert rows
    for row in rows:
        expected = module.result.sensitivities[row["layer"]].absolute[int(row["neuron"])]
        assert float(row["absolute"]) == pytest.approx(float(expected), rel=1e-9)


def refused(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        preflight(compose_checked("train", list(overrides)), "train")
    return str(caught.value)


def test_float16_on_a_cpu(tmp_path):
    message = "trainer.precision is 16-mixed, which needs a GPU; bf16-mixed works on a CPU"
    directory = f"hydra.run.dir={tmp_path / 'run'}"
    assert refused("trainer.precision=16-mixed", "trainer.accelerator=cpu", directory) == message
    assert not (tmp_path / "run").exists()


def test_bfloat16_on_a_gpu_without(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation))
    for accelerator in ("auto", "gpu"):
        text = refused("trainer.precision=bf16-mixed", f"trainer.accelerator={accelerator}")
        assert text == "trainer.precision is bf16-mixed, which Tesla T4 does not have; 16-mixed works there"
    assert asked == [False, False]  # emulated, it is slower than float32


def test_float64_on_mps():
    assert "which mps does not have" in refused("trainer.precision=64-true", "trainer.accelerator=mps")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_what_a_cpu_has(precision, tmp_path):
    directory = f"hydra.run.dir={tmp_path / 'run'}"
    settings = [f"trainer.precision={precision}", "trainer.accelerator=cpu", directory]
    preflight(compose_checked("train", settings), "train")
