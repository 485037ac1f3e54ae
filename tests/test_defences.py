"""examples/defences: both equations against slow versions, and the table of the page against its rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nsr.models import SmallCNN
from tests.conftest import in_a_process, read_json

HERE = Path(__file__).parents[1] / "examples" / "defences"


def module(name: str):
    found = importlib.util.spec_from_file_location(f"example_{name}", HERE / f"{name}.py")
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


defences, measure = module("defences"), module("measure")


class Data:
    """Training images as nsr's data sets have them."""

    mean, std = [0.5], [0.25]

    def setup(self, stage: str) -> None:
        draw = torch.Generator().manual_seed(0)
        images = torch.rand(40, 1, 8, 8, generator=draw)
        self.training_set = type("Set", (), {"images": images, "labels": torch.arange(40) % 3})


def network() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(channels=1, classes=3, image_size=8, width=2).eval()


def normalized() -> torch.Tensor:
    data = Data()
    data.setup("fit")
    return (data.training_set.images - 0.5) / 0.25


def test_mean_sparse_value_by_value():
    net = network()
    first = net.bn1(net.conv1(normalized())).detach().numpy()  # (40, 2, 8, 8), the input of relu1
    weights = net.state_dict()
    defended = defences.mean_sparse(network(), Data(), alpha=0.3)
    defended.load_state_dict(weights)  # the same names; the statistics are measured here
    expected = np.empty_like(first)
    for channel in range(2):
        values = first[:, channel].astype(np.float64)
        mean, std = values.mean(), values.std(ddof=1)
        for index, value in np.ndenumerate(first[:, channel]):
            kept = value if abs(value - mean) > 0.3 * std else mean
            expected[(index[0], channel, *index[1:])] = max(kept, 0)
    found = defended.relu1(torch.from_numpy(first)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0.1 < np.mean(found != np.maximum(first, 0)) < 0.6
    assert isinstance(defended.relu4, nn.ReLU) and len(defended.relu4.mean) == 128


def test_a_straight_through_gradient_and_the_same_output():
    plain, through = (defences.MeanSparseReLU(0.5, straight_through) for straight_through in (False, True))
    for layer in (plain, through):
        layer.mean, layer.std = torch.tensor([1.0]), torch.tensor([2.0])
    x = torch.tensor([[0.5], [1.9], [2.5]], requires_grad=True)
    assert plain(x).flatten().tolist() == through(x).flatten().tolist() == [1.0, 1.0, 2.5]
    assert torch.autograd.grad(plain(x).sum(), x)[0].flatten().tolist() == [0, 0, 1]
    assert torch.autograd.grad(through(x).sum(), x)[0].flatten().tolist() == [1, 1, 1]


def test_leave_one_out_importance_of_a_linear_head():
    """Without neuron m the logit falls by its weight times its output."""
    torch.manual_seed(0)
    head, hidden, labels = nn.Linear(5, 3), torch.rand(12, 5), torch.arange(12) % 3
    with torch.no_grad():
        found = defences.leave_one_out(head, hidden, labels, 3)
        expected = torch.stack([head.weight[label] * hidden[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(found, expected)


def test_important_neurons_in_two_passes():
    net = network()
    defended = defences.important_neurons(network(), Data(), "relu4", "fc2", fraction=0.25)
    defended.load_state_dict(net.state_dict())
    assert defended.relu4.kept.sum(1).tolist() == [32, 32, 32]
    images = normalized()[:6]
    with torch.no_grad():
        labels, hidden = net(images).argmax(1), {}
        net.relu4.register_forward_hook(lambda _, __, output: hidden.update(all=output))
        net(images)
        rows = zip(hidden["all"], labels, strict=True)
        expected = torch.stack([net.fc2(row * defended.relu4.kept[label]) for row, label in rows])
        torch.testing.assert_close(defended(images), expected)


def test_the_table_is_that_of_the_rows():
    rows = pd.read_csv(measure.ROWS)
    assert measure.table(rows) in measure.PAGE.read_text()
    assert rows.groupby("defence").size().tolist() == [100] * len(measure.DEFENCES)
    assert (rows[list(measure.ATTACKS)].max(axis=1) <= rows["clean"]).all()


@pytest.mark.slow
def test_a_defence_is_evaluated_by_its_target(tmp_path):
    settings = ["--config-dir", str(HERE / "conf"), "checkpoint=zoo:digits_pgd", "model=mean_sparse"]
    settings += ["test_attacks=[clean]", *measure.IMAGES, f"hydra.run.dir={tmp_path / 'run'}"]
    done = in_a_process("evaluate.py", *settings, folder=tmp_path, PYTHONPATH=str(HERE))
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(measure.ROWS)
    expected = rows[rows["defence"] == "mean_sparse"]["clean"].mean()
    assert read_json(tmp_path / "run" / "evaluation.json")["test/clean_accuracy"] == pytest.approx(expected)
