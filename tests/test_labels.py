"""What a label is, in evaluations of a checkpoint and of weights: the same image keeps its class, or a line refuses."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.app.job import Job
from nsr.errors import InputError
from nsr.models import SmallCNN
from tests.conftest import made

GRAY = {"a": 40, "b": 80, "c": 120, "d": 160, "z": 40}
MODEL = ("model=small_cnn", "model.width=2", "test_attacks=[clean]")


def folder(root: Path, names: str) -> Path:
    """Write two images per class, all of one gray value, so that the value identifies the class."""
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((8, 8, 3), GRAY[name], np.uint8)).save(root / split / name / f"{number}.png")
    return root


def saved(job: Job, path: Path) -> Path:
    state = {name: values for name, values in job.module.state_dict().items() if name.startswith("net.")}
    torch.save({"nsr_settings": job.record, "state_dict": state}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """A checkpoint of a run in tmp_path/run, on the relative folder `photos` of classes a, b, c, d."""
    folder(tmp_path / "run" / "photos", "abcd")
    monkeypatch.chdir(tmp_path / "run")
    settings = ("data=image_folder", "data.root=photos", "data.batch_size=4", "data.validation_images=4", *MODEL)
    return saved(made("train", *settings, "logger=none"), tmp_path / "run.ckpt")


def classes(job: Job) -> list[str]:
    """The class that each test image is scored as."""
    job.data.setup("test")
    return [job.description.class_names[int(label)] for label in job.data.test_set.labels]


def by_gray(job: Job) -> list[str]:
    job.data.setup("test")
    names = {gray: name for name, gray in GRAY.items() if name != "z"}
    return [names[round(job.data.test_set[index][0].max().item() * 255)] for index in range(len(job.data.test_set))]


def notes(job) -> list[tuple[int, str]]:
    """(level, line) of those on data and weights."""
    return [note for note in job.notes if not note[1].startswith("performance=")]


def test_the_same_folder_needs_no_line(checkpoint):
    job = made("evaluate", f"checkpoint={checkpoint}", "test_attacks=[clean]")
    assert classes(job) == by_gray(job) and notes(job) == [] and job.description.classes == 4


def test_a_subset_is_scored_over_all_logits(checkpoint, tmp_path):
    other = folder(tmp_path / "other", "bd")
    job = made("evaluate", f"checkpoint={checkpoint}", "test_attacks=[clean]", f"data.root={other}")
    assert classes(job) == by_gray(job) == ["b", "b", "d", "d"]
    assert job.description.classes == 4 and job.description.class_names == tuple("abcd")
    assert [note for _, note in notes(job)] == [
        "ImageFolder has 2 of the network's 4 classes; its images are scored over all 4 logits"
    ]


def test_another_order_is_mapped(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["nsr_settings"]["class_names"] = list("dacb")
    torch.save(content, tmp_path / "other.ckpt")
    job = made("evaluate", f"checkpoint={tmp_path / 'other.ckpt'}", "test_attacks=[clean]")
    assert classes(job) == by_gray(job) and job.description.class_names == tuple("dacb")
    assert "mapped to the network's classes by name: 0 = 'd', 1 = 'a'" in notes(job)[0][1]
    weights = (f"model.weights={tmp_path / 'other.ckpt'}", "data=image_folder", "data.root=photos")
    assert made("evaluate", *MODEL, *weights).description.class_names == tuple("dacb")


def test_other_classes_are_refused_unless_names_are_ignored(checkpoint, tmp_path):
    command = (f"checkpoint={checkpoint}", "test_attacks=[clean]", f"data.root={folder(tmp_path / 'other', 'bcdz')}")
    with pytest.raises(InputError, match=r"ImageFolder has the class 'z', which is none of .*data.class_names=ignore"):
        made("evaluate", *command)
    assert classes(made("evaluate", *command, "data.class_names=ignore")) == list("aabbccdd")
    (tmp_path / "order.txt").write_text("z\nb\nc\nd\n")
    assert classes(made("evaluate", *command, f"data.class_order={tmp_path / 'order.txt'}")) == list("bbccddzz")
    with pytest.raises(InputError, match="data.class_order is .*run.ckpt', which cannot be read"):
        made("evaluate", *command, f"data.class_order={checkpoint}")


@pytest.mark.parametrize("names", [3, [1, 2], "abcd"])
def test_a_checkpoint_with_other_class_names(names, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["nsr_settings"]["class_names"] = names
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="has class_names that are not a list of texts"):
        made("evaluate", f"checkpoint={tmp_path / 'other.ckpt'}", "test_attacks=[clean]")
    del content["nsr_settings"]["class_names"]
    torch.save(content, tmp_path / "old.ckpt")
    assert made("evaluate", f"checkpoint={tmp_path / 'old.ckpt'}", "test_attacks=[clean]").description.classes == 4


def weights(tmp_path: Path, classes: int) -> tuple[str, ...]:
    torch.save(SmallCNN(channels=3, classes=classes, image_size=8, width=2).state_dict(), tmp_path / "w.pt")
    return (*MODEL, f"model.weights={tmp_path / 'w.pt'}", "data=image_folder", "data.channels=3")


def test_weights_of_a_third_party(tmp_path, monkeypatch):
    for gray, name in enumerate(map(str, range(12))):
        monkeypatch.setitem(GRAY, name, 20 * gray)
    names = sorted(map(str, range(12)))
    command = (*weights(tmp_path, 12), f"data.root={folder(tmp_path / 'numbers', names)}")
    with pytest.raises(InputError, match="the normalization of model.weights=.*w.pt is not known.* give model.normal"):
        made("evaluate", *command)
    job = made("evaluate", *command, "model.normalization={mean:[0.5,0.5,0.5],std:[0.25,0.25,0.25]}")
    assert notes(job)[0][0] == logging.WARNING and "2 = '10'" in notes(job)[0][1]
    assert job.module.net.normalize.std.flatten().tolist() == [0.25] * 3
    (tmp_path / "order.txt").write_text("\n".join(map(str, range(12))))
    job = made("evaluate", *command, "model.normalization=none", f"data.class_order={tmp_path / 'order.txt'}")
    assert all(level == logging.INFO for level, _ in notes(job)) and "11 = '11'" in notes(job)[-1][1]
    job.data.setup("test")
    for image, label in job.data.test_set:
        assert int(label) == round(image.max().item() * 255) // 20


def test_training_from_weights_records_their_normalization(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("data.batch_size=2", "data.validation_images=2", "logger=none", "model.normalization=imagenet")
    job = made("train", *weights(tmp_path, 2), f"data.root={folder(tmp_path / 'photos', 'ab')}", *settings)
    assert job.record["model"]["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    again = made("evaluate", f"checkpoint={saved(job, tmp_path / 'run.ckpt')}", "test_attacks=[clean]")
    again_by_weights = made(
        "evaluate",
        *weights(tmp_path, 2)[:3],
        f"model.weights={tmp_path / 'run.ckpt'}",
        "data=image_folder",
        "data.channels=3",
        "data.root=photos",
    )
    for other in (again, again_by_weights):
        for name, values in job.module.net.state_dict().items():
            torch.testing.assert_close(other.module.net.state_dict()[name], values, rtol=0, atol=1e-6)


def test_a_relative_folder_from_another_working_directory(checkpoint, tmp_path, monkeypatch):
    command = (f"checkpoint={checkpoint}", "test_attacks=[clean]")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert made("evaluate", *command).data.root == tmp_path / "run" / "photos"
    shutil.copytree(tmp_path / "run" / "photos", "photos")
    assert made("evaluate", *command).data.root == tmp_path / "elsewhere" / "photos"
    shutil.copy("photos/test/a/0.png", "photos/test/b/0.png")
    with pytest.raises(InputError, match=r"data.root is 'photos', and .*elsewhere/photos/test holds other content"):
        made("evaluate", *command)
    assert made("evaluate", *command, "data.root=photos").data.root == tmp_path / "elsewhere" / "photos"
