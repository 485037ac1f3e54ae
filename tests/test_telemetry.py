"""Telemetry: each figure against its definition, files against each other, in nsr's runs and in anybody's."""

from __future__ import annotations

import csv
import re
import warnings
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
from nsr.callbacks.heat_map import draw_heat_map
from nsr.errors import InputError
from nsr.features import capture_features
from nsr.metrics.layer_summary import Telemetry, gini, overlap
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.randomness import draw_seed

ROOT = Path(__file__).parent.parent
VALUES = st.lists(st.floats(0, 100), min_size=1, max_size=20)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def layer_of(values: list[float]) -> LayerSensitivity:
    tensor = torch.tensor(values, dtype=torch.float64)
    return LayerSensitivity(tensor, tensor / 2, torch.full_like(tensor, 2.0))


# ---------------------------------------------------------------- the figures


@given(VALUES)
def test_gini_by_its_definition(values):
    found = gini(torch.tensor(values, dtype=torch.float64))
    total = sum(values)
    distances = sum(abs(one - other) for one in values for other in values)
    expected = distances / (2 * len(values) * total) if total > 1e-300 else 0.0
    assert found == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= found <= 1 - 1 / len(values) + 1e-12


def test_gini_at_its_ends():
    assert gini(torch.zeros(5)) == 0
    assert gini(torch.full((5,), 3.0)) == pytest.approx(0, abs=1e-12)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 7.0])) == pytest.approx(0.75)


def test_overlap():
    assert overlap([1, 2, 3], [3, 2, 1]) == 1
    assert overlap([1, 2], [3, 4]) == 0
    assert overlap([1, 2, 3], [2, 3, 4]) == pytest.approx(2 / 4)


def test_overlaps_are_with_the_validation_before_and_the_first():
    telemetry = Telemetry(top=2)
    epochs = [[4.0, 3.0, 1.0, 0.0], [4.0, 1.0, 3.0, 0.0], [0.0, 1.0, 3.0, 4.0]]
    told = [telemetry.add(epoch, {"relu": layer_of(values)})["relu"] for epoch, values in enumerate(epochs)]
    assert [row.most_sensitive for row in told] == [[0, 1], [0, 2], [3, 2]]
    assert [row.overlap_previous for row in told] == [None, 1 / 3, 1 / 3]
    assert [row.overlap_first for row in told] == [1.0, 1 / 3, 0.0]
    # the state goes on
    halfway = Telemetry(top=2)
    for epoch, values in enumerate(epochs[:2]):
        halfway.add(epoch, {"relu": layer_of(values)})
    resumed = Telemetry(top=2)
    resumed.load(halfway.state())
    assert resumed.add(2, {"relu": layer_of(epochs[2])})["relu"] == told[2]
    assert resumed.history == telemetry.history


def test_an_epoch_measured_again_takes_its_place():
    telemetry = Telemetry(top=1)
    for epoch in (0, 1, 2, 1):
        telemetry.add(epoch, {"relu": layer_of([1.0, float(epoch)])})
    assert [epoch for epoch, _ in telemetry.history] == [0, 1]


def test_the_heat_map_has_a_column_an_epoch(tmp_path):
    history = [(epoch, {"first": [epoch, 0.1], "second": [1.0, 0.5]}) for epoch in range(12)]
    draw_heat_map(tmp_path / "map", history)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size[0] == 792  # 3.3 inches of 240 dots
        colours = {picture.convert("RGB").getpixel((x, 60)) for x in range(660)}
    assert len(colours) >= 12
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


# ---------------------------------------------------------------- anybody's module


class Theirs(pl.LightningModule):
    """Not nsr's: BatchNorm, dropout, a ReLU that works in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 64, 4))
        self.states: list[dict[str, torch.Tensor]] = []

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        assert not self.training
        if batch_idx == 0:
            self.states.append({name: value.clone() for name, value in self.state_dict().items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(directory: Path, *callbacks: pl.Callback, **settings) -> tuple[Theirs, pl.Trainer]:
    images, labels = pattern_images(50, classes=4)
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)
    trainer = pl.Trainer(
        **{"max_epochs": 2, "num_sanity_val_steps": -1, **settings},
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Theirs()
    trainer.fit(module, loader, loader)
    return module, trainer


def attack() -> GradientAttack:
    return GradientAttack(epsilon=0.1, steps=3)


def test_a_foreign_module_is_measured_as_by_hand(tmp_path):
    module, _ = fit(tmp_path, nsr.SensitivityLogger(attack=attack(), layers=["body.2"], top=2))
    images, labels = pattern_images(50, classes=4)
    found = rows(tmp_path / "sensitivity.csv")
    assert len(found) == 3 * 6
    twin = Theirs().eval()
    for epoch, state in enumerate(module.states):
        twin.load_state_dict(state)
        moved, active = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for number, start in enumerate(range(0, 50, 20)):
            part, true = images[start : start + 20], labels[start : start + 20]
            generator = torch.Generator().manual_seed(draw_seed(0, 1, number, 0))
            adversarial = attack()(twin, part, true, generator=generator)
            with torch.no_grad(), capture_features(twin, ["body.2"]) as features:
                twin(part)
                clean = features["body.2"].double()
                twin(adversarial)
                moved += (clean - features["body.2"].double()).abs().mean((2, 3)).sum(0) / 50
                active += clean.abs().mean((2, 3)).sum(0) / 50
        for neuron in range(6):
            row = found[epoch * 6 + neuron]
            assert (row["epoch"], row["layer"], row["neuron"]) == (str(epoch), "body.2", str(neuron))
            assert float(row["absolute"]) == pytest.approx(float(moved[neuron]), rel=1e-6)
            assert float(row["mean_activation"]) == pytest.approx(float(active[neuron]), rel=1e-6)
    assert [row["epoch"] for row in rows(tmp_path / "layers.csv")] == ["0", "1", "2"]
    assert (tmp_path / "sensitivity.png").exists()


def test_it_leaves_no_trace_in_a_foreign_run(tmp_path):
    torch.manual_seed(5)
    alone, _ = fit(tmp_path / "without")
    torch.manual_seed(5)
    watched, _ = fit(tmp_path / "with", nsr.SensitivityLogger(attack=attack()))
    assert all(
        torch.equal(one, other)
        for one, other in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    assert not any(module._forward_hooks for module in watched.modules())


def test_without_a_sanity_check_it_begins_after_the_first_epoch(tmp_path):
    fit(tmp_path, nsr.SensitivityLogger(attack=attack()), num_sanity_val_steps=1)
    assert [row["epoch"] for row in rows(tmp_path / "layers.csv")] == ["1", "2"]


def test_a_foreign_module_needs_an_attack(tmp_path):
    with pytest.raises(InputError, match=r"SensitivityLogger needs attack=\.\.\. to measure Theirs") as caught:
        fit(tmp_path, nsr.SensitivityLogger())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no layer matches 'boddy"):
        fit(tmp_path, nsr.SensitivityLogger(attack=attack(), layers=["boddy.*"]))


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "own_project.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", category=UserWarning)
        names: dict = {}
        exec(compile(example, "own_project.md", "exec"), names)
    directory = Path(names["trainer"].log_dir)
    assert {row["epoch"] for row in rows(directory / "layers.csv")} == {"0", "1", "2", "3"}
    assert {"sensitivity.csv", "layers.csv", "sensitivity.png", "sensitivity.pdf"} <= {
        path.name for path in directory.iterdir()
    }
