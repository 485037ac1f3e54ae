"""The zoo: its index, files, cards and page agree; 'zoo:NAME' is a checkpoint as any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmarks import zoo as benchmark
from nsr import zoo
from nsr.errors import InputError
from nsr.models.weights import read_checkpoint
from nsr.zoo import FOLDER, zoo_file, zoo_index
from tests.conftest import in_a_process, read_json

INDEX = zoo_index()


def test_the_index_the_files_and_the_page_agree():
    assert {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", "")} == {
        "index.json",
        *(f"{name}{ending}" for name in INDEX for ending in (".safetensors", ".md")),
    }
    for name, entry in INDEX.items():
        content = (FOLDER / f"{name}.safetensors").read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["bytes"])
        assert (FOLDER / f"{name}.md").read_text() == benchmark.card(name, entry)
        assert name.startswith(f"{entry['data']}_")
    assert sum(path.stat().st_size for path in FOLDER.glob("*.*")) <= 15e6
    assert benchmark.PAGE.read_text() == benchmark.page(INDEX)


def test_accuracies_are_those_of_the_rows():
    rows = pd.read_csv(benchmark.ROWS)
    for name, entry in INDEX.items():
        own = rows[rows["name"] == name]
        assert len(own) == entry["images"]
        assert own["clean"].mean() == pytest.approx(entry["clean"])
        assert own[["autoattack", "adaptive", "features"]].min(axis=1).mean() == pytest.approx(entry["worst_case"][0])
        assert (own["autoattack"] <= own["clean"]).all()


@pytest.mark.parametrize("name", [name for name in INDEX if name.startswith("digits")])
def test_a_plain_network_with_these_weights_has_the_predictions_of_the_rows(name):
    """The forward pass written out, on the test images of scikit-learn's digits that the rows name."""
    from nsr.data import Digits

    data = Digits(channels=1, image_size=8, classes=10, mean=[0.3057], std=[0.3765])
    rows = pd.read_csv(benchmark.ROWS).query("name == @name")
    test = data.load("test").subset(torch.tensor(rows["image"].to_numpy()))
    state = {key.removeprefix("net.net."): value for key, value in load_file(FOLDER / f"{name}.safetensors").items()}
    x = (test.images - 0.3057) / 0.3765
    for stage in (1, 2, 3):
        x = F.conv2d(x, state[f"conv{stage}.weight"], padding=1)
        statistics = (state[f"bn{stage}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *statistics).relu()
        x = F.max_pool2d(x, 2) if stage < 3 else x
    x = F.linear(x.flatten(1), state["fc1.weight"], state["fc1.bias"]).relu()
    correct = F.linear(x, state["fc2.weight"], state["fc2.bias"]).argmax(1) == test.labels
    assert test.labels.tolist() == rows["label"].tolist()
    assert (correct.numpy() == rows["clean"].to_numpy(bool)).mean() > 0.99  # rounding may decide an image
    assert rows["clean"].mean() == pytest.approx(INDEX[name]["clean"])


def test_an_unknown_name_and_a_changed_file_are_refused_in_a_line(monkeypatch, tmp_path):
    for name, entry in INDEX.items():
        with pytest.raises(InputError, match=rf"network of 'zoo:{name}s' is '{name}s'; it must be one of .*{name}"):
            read_checkpoint(f"zoo:{name}s")
        (tmp_path / f"{name}.safetensors").write_bytes(b"other")
        (tmp_path / "index.json").write_text(json.dumps({name: entry}))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="is missing or not the file of the zoo's index; install nsr again"):
        zoo_file(f"zoo:{name}")
    assert zoo_file("runs/zoo:best.ckpt") == "runs/zoo:best.ckpt"
    assert zoo_file(Path("best.ckpt")) == Path("best.ckpt")


@pytest.mark.parametrize(("root", "kept"), [("/there", "datasets"), ("here/there", "here/there")])
def test_weights_and_settings_of_a_run_survive(tmp_path, root, kept):
    settings = {"data": {"mean": [0.1], "root": root}, "logger": {}, "class_names": ["a", "b"]}
    state = {"net.net.weight": torch.rand(3, 2).T, "net.net.steps": torch.tensor(7), "other.weight": torch.rand(1)}
    torch.save({"state_dict": state, "nsr_settings": settings}, tmp_path / "best.ckpt")
    (tmp_path / "x.safetensors").write_bytes(benchmark.weights(tmp_path / "best.ckpt"))
    saved = read_checkpoint(tmp_path / "x.safetensors")
    assert saved["nsr_settings"] == {"data": {"mean": [0.1], "root": kept}, "class_names": ["a", "b"]}
    assert saved["state_dict"].keys() == {"net.net.weight", "net.net.steps"}
    assert all(torch.equal(value, state[key]) for key, value in saved["state_dict"].items())


@pytest.mark.parametrize("name", INDEX)
def test_data_that_lie_in_a_folder_are_looked_for_in_the_default_one(name):
    root = read_checkpoint(f"zoo:{name}")["nsr_settings"]["data"]["root"]
    folders = {"fashion_mnist": "datasets", "cifar10_jpeg": "datasets/cifar10_jpeg"}
    assert root == folders.get(INDEX[name]["data"])


def test_a_name_is_never_given_twice(tmp_path):
    for name in (*INDEX, "Not a name", "../x"):
        with pytest.raises(InputError, match="it must be a new one"):
            benchmark.add(tmp_path, name)
    with pytest.raises(InputError, match="has no finished evaluation"):
        benchmark.add(tmp_path, "new")
    assert zoo_index() == INDEX


@pytest.mark.slow
def test_the_command_of_a_card_gives_its_clean_accuracy(tmp_path):
    name = "digits_pgd_sns"
    settings = [
        "test_attacks=[clean]",
        "checks.enabled=false",
        "evaluation.n_examples=200",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = in_a_process("evaluate.py", f"checkpoint=zoo:{name}", *settings, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "run" / "evaluation.json")["test/clean_accuracy"] == INDEX[name]["clean"]


@pytest.mark.slow
def test_training_begins_from_a_network_of_the_zoo(tmp_path):
    settings = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "logger=none", "test_attacks=[clean]"]
    settings.append(f"hydra.run.dir={tmp_path / 'run'}")
    done = in_a_process("train.py", "model.width=16", "model.weights=zoo:digits_natural", *settings, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert first["validation/clean_accuracy"][0] > 0.9
