"""Layer summaries and SensitivityLogger: each number against its definition, in nsr's runs and in any project."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference import pattern_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nsr
from nsr.attacks import GradientAttack
from nsr.callbacks.sensitivity import draw_heat_map
from nsr.data.batches import images_and_labels
from nsr.errors import InputError
from nsr.features import capture_features
from nsr.metrics.layer_summary import LayerSummaries, gini, overlap
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.randomness import draw_seed
from tests.conftest import rows

ROOT = Path(__file__).parent.parent
VALUES = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=20)


def layer_of(values: list[float]) -> LayerSensitivity:
    tensor = torch.tensor(values, dtype=torch.float64)
    return LayerSensitivity(tensor, tensor / 2, torch.full_like(tensor, 2.0))


# ---------------------------------------------------------------- the numbers
@given(VALUES)
def test_gini_by_its_definition(values):
    found = gini(torch.tensor(values, dtype=torch.float64))
    exact = [Fraction(value) for value in values]
    distances = sum(abs(one - other) for one in exact for other in exact)
    expected = float(distances / (2 * len(exact) * sum(exact))) if any(exact) else 0.0
    assert found == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= found <= 1 - 1 / len(values) + 1e-12


def test_gini_and_overlap_at_their_ends():
    assert gini(torch.zeros(5)) == 0
    assert gini(torch.full((5,), 3.0)) == pytest.approx(0, abs=1e-12)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 7.0])) == pytest.approx(0.75)
    assert [overlap([1, 2, 3], ids) for ids in ([3, 2, 1], [4, 5], [2, 3, 4])] == [1, 0, 2 / 4]


def test_overlaps_are_with_the_validation_before_and_the_first():
    summaries = LayerSummaries(list_top=2)
    epochs = [[4.0, 3.0, 1.0, 0.0], [4.0, 1.0, 3.0, 0.0], [0.0, 1.0, 3.0, 4.0]]
    made = [summaries.add(epoch, {"relu": layer_of(values)})["relu"] for epoch, values in enumerate(epochs)]
    assert [row.most_sensitive for row in made] == [[0, 1], [0, 2], [3, 2]]
    assert [row.overlap_previous for row in made] == [None, 1 / 3, 1 / 3]
    assert [row.overlap_first for row in made] == [1.0, 1 / 3, 0.0]
    assert "overlap_previous" not in made[0].metrics()
    halfway, resumed = LayerSummaries(list_top=2), LayerSummaries(list_top=2)
    for epoch, values in enumerate(epochs[:2]):
        halfway.add(epoch, {"relu": layer_of(values)})
    resumed.load_state_dict(halfway.state_dict())
    assert resumed.add(2, {"relu": layer_of(epochs[2])})["relu"] == made[2]
    assert resumed.history == summaries.history
    resumed.add(1, {"relu": layer_of(epochs[1])})  # an epoch measured again
    assert [epoch for epoch, _ in resumed.history] == [0, 1]


def test_the_heat_map_has_a_column_an_epoch(tmp_path):
    history = [(epoch, {"first": [epoch, 0.1], "second": [1.0, 0.5]}) for epoch in range(12)]
    draw_heat_map(tmp_path / "map", history)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size[0] == 792  # 3.3 inches of 240 dots
        assert len(picture.convert("RGB").getcolors(2**20)) >= 12
    assert (tmp_path / "map.pdf").stat().st_size > 4_000
    before = (tmp_path / "map.png").read_bytes()
    draw_heat_map(tmp_path / "map", history)
    assert (tmp_path / "map.png").read_bytes() == before


# ---------------------------------------------------------------- nsr's own run
def test_layers_csv_is_what_sensitivity_csv_says(trained):
    neurons: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows(trained / "sensitivity.csv"):
        pair = float(row["absolute"]), float(row["mean_activation"])
        neurons.setdefault((row["epoch"], row["layer"]), []).append(pair)
    found = rows(trained / "layers.csv")
    assert [(row["epoch"], row["layer"]) for row in found] == list(neurons)
    named: dict[str, list[set[int]]] = {}
    for row in found:
        absolute, activation = np.array(neurons[row["epoch"], row["layer"]]).T
        assert float(row["absolute"]) == pytest.approx(absolute.mean(), rel=1e-12)
        assert float(row["maximum"]) == absolute.max()
        assert float(row["relative"]) == pytest.approx(absolute.sum() / activation.sum(), rel=1e-12)
        distances = np.abs(absolute[:, None] - absolute[None]).mean()
        assert float(row["gini"]) == pytest.approx(distances / 2 / absolute.mean(), rel=1e-9)
        ids = sorted(range(len(absolute)), key=lambda neuron, row=absolute: (-row[neuron], neuron))[:10]
        assert row["most_sensitive"] == " ".join(map(str, ids))
        seen = named.setdefault(row["layer"], [])
        if seen:
            assert float(row["overlap_previous"]) == len(seen[-1] & set(ids)) / len(seen[-1] | set(ids))
            assert float(row["overlap_first"]) == len(seen[0] & set(ids)) / len(seen[0] | set(ids))
        else:
            assert row["overlap_previous"] == ""
        seen.append(set(ids))
    assert (trained / "sensitivity.png").exists()


# ---------------------------------------------------------------- batches
IMAGES, LABELS = torch.zeros(2, 1, 2, 2), torch.zeros(2)


@pytest.mark.parametrize(
    "batch",
    [(IMAGES, LABELS), [IMAGES, LABELS, "name"]]
    + [
        {image: IMAGES, "name": 1, label: LABELS}
        for image, label in (("image", "label"), ("images", "labels"), ("pixel_values", "y"), ("x", "target"))
    ],
)
def test_images_and_labels_of_a_batch(batch):
    images, labels = images_and_labels(batch)
    assert (images is IMAGES, labels is LABELS) == (True, True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_whole_type(dtype):
    _, labels = images_and_labels((IMAGES, LABELS.to(dtype)))
    assert labels.dtype == torch.int64 and torch.equal(labels, LABELS)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (IMAGES, "a Tensor"),
        ((IMAGES,), "a tuple that begins with Tensor"),
        ([IMAGES, "cat"], "a list that begins with Tensor, str"),
        ({"image": IMAGES, "class": LABELS}, "a mapping with the keys image, class"),
        (None, "a NoneType"),
    ],
)
def test_other_batches_are_refused(batch, got):
    with pytest.raises(InputError, match=re.escape(f"the batch is {got}; it must be (images, labels")):
        images_and_labels(batch)


# ---------------------------------------------------------------- any LightningModule
@dataclass
class Answer:
    logits: torch.Tensor


class Theirs(pl.LightningModule):
    """Not nsr's: BatchNorm, dropout, a ReLU that works in place; any kind of output, an attribute called result."""

    def __init__(self, output=lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 64, 4))
        self.output, self.result = output, "mine"
        self.states: list[dict[str, torch.Tensor]] = []

    def forward(self, images):
        return self.output(self.head(self.body(images)))

    def training_step(self, batch, batch_idx):
        images, labels = images_and_labels(batch)
        return nn.functional.cross_entropy(self.head(self.body(images)), labels)

    def validation_step(self, batch, batch_idx):
        assert not self.training
        if batch_idx == 0:
            self.states.append({name: value.clone() for name, value in self.state_dict().items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    directory: Path, *callbacks: pl.Callback, module=None, collate=None, scale=1, validated=20, **settings
) -> Theirs:
    images, labels = pattern_images(50, classes=4)
    data = TensorDataset(scale * images, labels)
    loader, validation = (DataLoader(data, batch_size=size, collate_fn=collate) for size in (20, validated))
    quiet = dict.fromkeys(("enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = pl.Trainer(
        **{"max_epochs": 2, "num_sanity_val_steps": -1, "logger": False, "log_every_n_steps": 1, **quiet, **settings},
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=directory,
    )
    module = module or Theirs()
    trainer.fit(module, loader, validation)
    return module


def sensitivity_logger(**settings) -> nsr.SensitivityLogger:
    return nsr.SensitivityLogger(**{"attack": GradientAttack(epsilon=0.1, steps=3), "layers": ["body.2"], **settings})


def test_a_foreign_module_is_measured_as_by_hand(tmp_path):
    module = fit(tmp_path, sensitivity_logger(list_top=2))
    images, labels = pattern_images(50, classes=4)
    found = rows(tmp_path / "sensitivity.csv")
    assert len(found) == 3 * 6
    copied, attack = Theirs().eval(), GradientAttack(epsilon=0.1, steps=3)
    for epoch, state in enumerate(module.states):
        copied.load_state_dict(state)
        difference, active = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for number, start in enumerate(range(0, 50, 20)):
            part, true = images[start : start + 20], labels[start : start + 20]
            generator = torch.Generator().manual_seed(draw_seed(0, 1, number, 0))
            adversarial = attack(copied, part, true, generator=generator)
            with torch.no_grad(), capture_features(copied, ["body.2"]) as features:
                copied(part)
                clean = features["body.2"].double()
                copied(adversarial)
                difference += (clean - features["body.2"].double()).abs().mean((2, 3)).sum(0) / 50
                active += clean.abs().mean((2, 3)).sum(0) / 50
        for neuron in range(6):
            row = found[epoch * 6 + neuron]
            assert (row["epoch"], row["layer"], row["neuron"]) == (str(epoch), "body.2", str(neuron))
            assert float(row["absolute"]) == pytest.approx(float(difference[neuron]), rel=1e-6)
            assert float(row["mean_activation"]) == pytest.approx(float(active[neuron]), rel=1e-6)
    assert [row["epoch"] for row in rows(tmp_path / "layers.csv")] == ["0", "1", "2"]
    assert (tmp_path / "sensitivity.png").exists()


def test_validation_batches_of_one_image(tmp_path):
    """BatchNorm after a linear layer needs two images where it uses the batch's statistics."""
    module = Theirs()
    module.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    fit(tmp_path, sensitivity_logger(), module=module, validated=1, limit_val_batches=3, max_epochs=1)
    assert len(rows(tmp_path / "sensitivity.csv")) == 2 * 6


def as_dict(samples):
    images, labels = (torch.stack(each) for each in zip(*samples, strict=True))
    return {"pixel_values": images, "labels": labels, "names": ["a"]}


@pytest.mark.parametrize(
    ("output", "collate", "settings"),
    [
        (lambda logits: (logits, logits.sum()), as_dict, {}),
        (lambda logits: {"loss": 0, "logits": logits}, lambda samples: tuple(as_dict(samples).values()), {}),
        (Answer, None, {}),
        (lambda logits: {"scores": logits}, None, {"output": "scores"}),
        (lambda logits: (logits.sum(), logits), None, {"output": 1}),
    ],
)
def test_other_batches_and_outputs_give_the_same(tmp_path, output, collate, settings):
    fit(tmp_path / "plain", sensitivity_logger(), max_epochs=1)
    fit(tmp_path / "other", sensitivity_logger(**settings), module=Theirs(output), collate=collate, max_epochs=1)
    plain, other = ((tmp_path / run / "sensitivity.csv").read_text() for run in ("plain", "other"))
    assert plain == other


def test_it_leaves_no_trace_in_a_foreign_run(tmp_path):
    torch.manual_seed(5)
    alone = fit(tmp_path / "without")
    torch.manual_seed(5)
    watched = fit(tmp_path / "with", sensitivity_logger(layers=None))
    torch.testing.assert_close(alone.state_dict(), watched.state_dict(), rtol=0, atol=0)
    assert not any(module._forward_hooks for module in watched.modules())


def test_another_training_is_not_added_to_its_files(tmp_path):
    callback = sensitivity_logger()
    fit(tmp_path / "first", callback, max_epochs=1)
    before = (tmp_path / "first" / "sensitivity.csv").read_bytes()
    with pytest.raises(InputError, match=r"sensitivity.csv is of another training.*give SensitivityLogger a directory"):
        fit(tmp_path / "first", sensitivity_logger(), max_epochs=1)
    assert (tmp_path / "first" / "sensitivity.csv").read_bytes() == before
    fit(tmp_path / "second", callback, max_epochs=1)  # the same object forgets the first training
    for name in ("sensitivity.csv", "layers.csv"):
        assert (tmp_path / "second" / name).read_text() == (tmp_path / "first" / name).read_text()


def test_without_a_sanity_check_it_starts_after_the_first_epoch(tmp_path):
    fit(tmp_path, sensitivity_logger(), num_sanity_val_steps=1)
    assert [row["epoch"] for row in rows(tmp_path / "layers.csv")] == ["1", "2"]


@pytest.mark.parametrize("per_layer", [False, True])
def test_what_loggers_get(tmp_path, monkeypatch, per_layer):
    calls = []
    log = lambda *call, **settings: calls.append((*call, settings))  # noqa: E731
    monkeypatch.setattr("nsr.callbacks.sensitivity.log_sensitivities", log)
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(tmp_path, sensitivity_logger(per_layer=per_layer), logger=logger, max_epochs=1)
    loggers, sensitivities, summaries, settings = calls[-1]
    assert loggers == [logger]
    assert list(sensitivities) == list(summaries) == ["body.2"]
    assert settings == {"step": 3, "epoch": 1, "per_layer": per_layer}


@pytest.mark.parametrize(
    ("settings", "run", "message"),
    [
        ({"attack": None}, {}, "SensitivityLogger has no attack to measure Theirs with; give attack=..."),
        ({"layers": ["boddy.*"]}, {}, "no layer matches 'boddy.*'"),
        ({}, {"scale": 255}, "images outside [0, 1]"),
        ({}, {"collate": lambda samples: {"image": samples[0][0]}}, "the batch is a mapping with the keys image"),
        ({}, {"module": Theirs(lambda logits: {"scores": logits})}, "the network returns dict"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, settings, run, message):
    with pytest.raises(InputError, match=re.escape(message)):
        fit(tmp_path, sensitivity_logger(**settings), **run)
