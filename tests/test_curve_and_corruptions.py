"""Accuracy against epsilon, on corrupted images, and how long it will take."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.app.composition import compose_checked
from nsr.app.configuration import unusual_epsilon
from nsr.app.preflight import preflight
from nsr.callbacks import progress
from nsr.callbacks.progress import TimeLeft
from nsr.data.corruptions import Corruptions
from nsr.data.sources import Digits
from nsr.errors import InputError
from nsr.evaluation.corrupted import measure_corruptions
from nsr.evaluation.curve import write_curve
from tests.conftest import evaluated, image_folder, made, read_json, rows

SETTINGS = {"classes": list("0123456789"), "channels": 1, "image_size": 8}


def test_the_curve_of_an_attack_without_norm_is_in_the_norm_of_the_evaluation(tmp_path):
    curve = {"attack": {"_target_": "mine.random_signs", "epsilon": 0.1}, "scales": [1, 2]}
    settings = {"norm": "l2", "epsilon": 0.1, "test_attacks": {"curve": curve}}
    kinds = ("accuracy", "low", "high")
    metrics = {f"test/{row}_{kind}": 0.5 for row in ("clean", "curve_x1", "curve_x2") for kind in kinds}
    write_curve(tmp_path, metrics, settings)
    assert [row["epsilon"] for row in rows(tmp_path / "curve.csv")] == ["0.0", "0.1", "0.2"]
    assert (tmp_path / "curve.png").exists()


@pytest.mark.slow
def test_a_curve_is_the_same_attack_at_other_radii(best, tmp_path, capsys):
    common = [best, "evaluation.n_examples=60", "checks.enabled=false"]
    curve = [
        "test_attacks=[clean,pgd,curve]",
        "test_attacks.curve.scales=[0.5,1,2]",
        "test_attacks.curve.attack.steps=3",
    ]
    evaluated(tmp_path / "curve" / "run", *common, *curve, "test_attacks.pgd.steps=3", "epsilon=0.1")
    metrics = read_json(tmp_path / "curve" / "run" / "evaluation.json")
    points = rows(tmp_path / "curve" / "run" / "curve.csv")
    assert [float(row["epsilon"]) for row in points] == pytest.approx([0, 0.05, 0.1, 0.2])
    assert float(points[0]["accuracy"]) == metrics["test/clean_accuracy"]
    for share, row in zip((0.5, 1, 2), points[1:], strict=True):
        name = f"{tmp_path.name}_{share}"
        command = ["test_attacks=[clean,pgd]", "test_attacks.pgd.steps=3", f"epsilon={0.1 * share}"]
        evaluated(tmp_path / name / "run", *common, *command)
        assert float(row["accuracy"]) == read_json(tmp_path / name / "run" / "evaluation.json")["test/pgd_accuracy"]
    # the larger radius is no part of the threat model
    assert metrics["test/curve_x2_accuracy"] < metrics["test/pgd_accuracy"]
    assert metrics["test/worst_case_accuracy"] == metrics["test/pgd_accuracy"]
    for suffix in ("png", "pdf"):
        assert (tmp_path / "curve" / "run" / f"curve.{suffix}").stat().st_size > 5_000
    with Image.open(tmp_path / "curve" / "run" / "curve.png") as picture:
        assert picture.size[0] == 792
    assert "curve: PGD-3, L-infinity 0.05" in capsys.readouterr().out


@pytest.fixture(scope="module")
def digits():
    settings = {"mean": [0.3], "std": [0.3], "batch_size": 10, "validation_images": 100}
    return Digits(channels=1, image_size=8, classes=10, **settings).load("test")


@pytest.fixture
def arrays(tmp_path, digits) -> Path:
    """The test digits as CIFAR-10-C would have them: noise that grows with severity, and none at all."""
    generator = np.random.default_rng(0)
    images = (digits.images.numpy().transpose(0, 2, 3, 1) * 255).round()
    folder = tmp_path / "digits-c"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(digits.labels.numpy(), 5))
    noisy = [np.clip(images + 60 * severity * generator.normal(size=images.shape), 0, 255) for severity in range(1, 6)]
    np.save(folder / "noise.npy", np.concatenate(noisy).astype(np.uint8))
    np.save(folder / "nothing.npy", np.tile(images, (5, 1, 1, 1)).astype(np.uint8))
    return folder


def test_corrupted_images_are_measured_as_a_loop_would(best, arrays, tmp_path, capsys):
    command = [best, "test_attacks=[clean,corruptions]", f"corruptions.root={arrays}", "checks.enabled=false"]
    evaluated(tmp_path / "run" / "first", *command)
    net = made("evaluate", *command).module.net.eval()
    labels = torch.from_numpy(np.load(arrays / "labels.npy"))
    found = rows(tmp_path / "run" / "first" / "corruptions.csv")
    assert [(row["corruption"], int(row["severity"])) for row in found] == [
        (name, severity) for name in ("noise", "nothing") for severity in range(1, 6)
    ]
    for row in found:
        images = np.load(arrays / f"{row['corruption']}.npy")
        here = slice(500 * (int(row["severity"]) - 1), 500 * int(row["severity"]))
        with torch.no_grad():
            logits = net(torch.from_numpy(images[here].transpose(0, 3, 1, 2).astype(np.float32)) / 255)
        assert float(row["accuracy"]) == float((logits.argmax(1) == labels[here]).double().mean())
    accuracies = [float(row["accuracy"]) for row in found]
    metrics = read_json(tmp_path / "run" / "first" / "evaluation.json")
    assert metrics["test/corruptions_accuracy"] == pytest.approx(sum(accuracies) / 10)
    assert accuracies[4] < accuracies[0]
    assert len(rows(tmp_path / "run" / "first" / "images.csv")) == 500  # of the test images
    text = capsys.readouterr().out
    assert "accuracy on corrupted images, by severity" in text
    assert "nothing" in text
    # the same command finds every part
    chunks = sorted((tmp_path / "run" / "cache").rglob("clean-*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in chunks}
    assert len(chunks) == 2 + 2 * 10
    evaluated(tmp_path / "run" / "second", *command)
    assert {path: path.stat().st_mtime_ns for path in chunks} == before
    for name in ("corruptions.csv", "evaluation.json"):
        assert (tmp_path / "run" / "second" / name).read_bytes() == (tmp_path / "run" / "first" / name).read_bytes()


def test_a_folder_of_corruptions_is_the_same_as_arrays(arrays, tmp_path):
    names = [f"class{label}" for label in range(10)]
    labels, folder = np.load(arrays / "labels.npy"), tmp_path / "folder-c"
    noisy = np.load(arrays / "noise.npy")
    for severity in (2, 4):
        for place in range(40):
            image = 500 * (severity - 1) + place
            target = folder / "noise" / str(severity) / names[labels[image]]
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy[image][..., 0]).save(target / f"{place:03}.png")
    chosen = Corruptions(folder, severities=[2, 4], **{**SETTINGS, "classes": names})
    assert chosen.names == ["noise"]
    images = chosen.images("noise")
    assert len(images) == 80
    order = np.argsort(labels[500:540], kind="stable")
    for at in (0, 7, 39, 40, 79):
        image, label = images[at]
        original = 500 * (1 if at < 40 else 3) + order[at % 40]
        assert label == labels[original]
        assert np.array_equal((image * 255).round().numpy()[0], noisy[original][..., 0])


@pytest.mark.parametrize("limit_order", ["balanced", "first"])
def test_a_limit_takes_the_same_images_at_every_severity(arrays, limit_order):
    images = Corruptions(arrays, n_examples=100, subset=limit_order, **SETTINGS).images("nothing")
    assert len(images) == 500
    for severity in range(1, 5):
        assert torch.equal(images.images[:100], images.images[100 * severity : 100 * severity + 100])
    counts = torch.bincount(images.labels[:100], minlength=10)
    assert limit_order == "first" or (counts.min() >= 9 and counts.max() <= 11)


def test_wrong_files_are_reported(arrays, tmp_path):
    def refused(root=arrays, **settings) -> str:
        with pytest.raises(InputError) as caught:
            Corruptions(root, **{**SETTINGS, **settings})
        return str(caught.value)

    assert "is not a folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "contains no corruptions" in refused(tmp_path / "empty")
    assert "did you mean 'noise'" in refused(names=["noisy"])
    assert "it must be (2500, 32, 32, 3)" in refused(channels=3, image_size=32)
    assert "the data have 5 classes" in refused(classes=list("01234"))
    np.save(arrays / "noise.npy", np.load(arrays / "noise.npy")[:-1])
    assert "noise.npy has shape (2499, 8, 8, 1); with 2500 labels" in refused()
    (arrays / "noise.npy").write_bytes(b"no array")
    assert "noise.npy cannot be read" in refused()
    folder = tmp_path / "folder"
    for name in ("cat", "dog"):
        (folder / "fog" / "1" / name).mkdir(parents=True)
    assert "has the classes 'cat', 'dog'; the data have" in refused(folder)
    for severity, count in ((1, 3), (2, 3), (4, 2)):
        for name in ("cat", "dog"):
            (folder / "fog" / str(severity) / name).mkdir(parents=True, exist_ok=True)
            for place in range(count):
                (folder / "fog" / str(severity) / name / f"{place}.png").touch()
    pets = {"classes": ["cat", "dog"]}
    unequal = f"{folder / 'fog' / '4'} has 4 images, {folder / 'fog' / '1'} has 6; every severity must have the same"
    assert unequal in refused(folder, severities=[1, 2, 4], **pets)
    assert Corruptions(folder, severities=[1, 2], **{**SETTINGS, **pets}).names == ["fog"]


def test_wrong_files_are_reported_before_a_directory_is_made(best, arrays, tmp_path):
    shutil.copy(arrays / "labels.npy", arrays / "fog.npy")
    command = [best, "test_attacks=[corruptions]", f"corruptions.root={arrays}"]
    with pytest.raises(InputError, match=r"fog.npy has shape \(2500,\)"):
        preflight(compose_checked("evaluate", [*command, f"hydra.run.dir={tmp_path / 'run'}"]), "evaluate")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="give it to evaluate.py"):
        compose_checked("train", ["test_attacks=[clean,corruptions]", "corruptions.root=x"])


CIFAR = {"linf": "8/255", "l2": 0.5, "l1": 12}


@pytest.mark.parametrize(
    ("norm", "epsilon", "nearest"),
    [
        *(("l2", 0.03, "linf"), ("l2", "8/255", "linf"), ("l1", "8/255", "linf")),
        *(("linf", 0.5, "l2"), ("l1", 0.5, "l2"), ("l2", 12, "l1")),
        *(("linf", "16/255", None), ("linf", "1/255", None), ("linf", 0, None)),
        *(("l2", 0.25, None), ("l2", 1.5, None), ("l1", 40, None)),
    ],
)
def test_a_radius_of_another_norms_size_is_reported(norm, epsilon, nearest):
    warning = unusual_epsilon(norm, epsilon, CIFAR)
    if nearest is None:
        assert warning is None
    else:
        assert f"is customary in {nearest}, but norm is {norm}" in warning
        assert "\n" not in warning


def test_the_warning_is_on_the_screen(best, tmp_path, caplog):
    command = [best, "test_attacks=[clean]", "norm=l2", "evaluation.n_examples=50", "checks.enabled=false"]
    evaluated(tmp_path / "odd" / "run", *command, "epsilon=0.03")
    assert "epsilon=0.03 is customary in linf, but norm is l2" in caplog.text
    caplog.clear()
    evaluated(tmp_path / "usual" / "run", *command)
    assert "customary" not in caplog.text


def test_a_checkpoint_of_other_images(best, tmp_path):
    image_folder(tmp_path / "images", size=16)
    command = [best, "data=image_folder", f"data.root={tmp_path / 'images'}"]
    with pytest.raises(InputError, match="has the class .cat., which is none"):
        evaluated(tmp_path / "run", *command, "data.channels=1", "data.image_size=8")
    with pytest.raises(InputError, match="does not fit Classifier"):
        evaluated(tmp_path / "sizes", *command, "data.class_names=ignore")


def test_the_time_left_is_the_sum_of_each_rows_own():
    left = TimeLeft(["clean", "pgd", "autoattack"], 4)
    assert left.left() is None
    left.add("clean", 1.0)
    left.add("pgd", 10.0)
    assert left.left() is None  # autoattack is not known yet
    left.add("autoattack", 100.0)
    left.add("pgd", 20.0)
    assert left.left() == 3 * 1.0 + 2 * 15.0 + 3 * 100.0
    for _ in range(2):
        left.add("autoattack", None)  # kept from before: no time
    assert left.left() == 3 * 1.0 + 2 * 15.0 + 1 * 100.0


def test_progress_is_a_row_now_and_then(best, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_ROWS", 0.0)
    command = [best, "test_attacks=[clean,fgsm]", "evaluation.n_examples=100", "data.evaluation_batch_size=50"]
    evaluated(tmp_path / "run", *command, "checks.enabled=false")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("measuring", "first of"))]
    assert [re.sub(r"\d+:\d\d", "M:SS", line.split(",")[0]) for line in lines] == [  # the time is the machine's
        *(f"measuring {row}: 1 of 2 batches" for row in ("clean", "fgsm")),
        "first of 2 batches measured: about M:SS left",
        *(f"measuring {row}: 2 of 2 batches" for row in ("clean", "fgsm", "sensitivity")),
    ]
    assert lines[0].endswith(", ? left")
    assert lines[-1].endswith(", 0:00 left")


@pytest.mark.parametrize("tested", [12, 7, 4, 3])
def test_images_that_a_limit_leaves_out_are_of_no_severity(tested):
    """Severities of 4 images each, with 4, 2 and 1 of them correct; a limit of batches ends inside one."""
    correct = torch.tensor([1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1], dtype=torch.uint8)

    class Tested:
        def test(self, module, *, datamodule, verbose):
            module.suite.result = SimpleNamespace(outcomes={"clean": correct[:tested]})

    corruptions = SimpleNamespace(names=["fog"], severities=[1, 3, 5], images=lambda name: range(12))
    module, data = (
        SimpleNamespace(suite=None),
        SimpleNamespace(test_set=None, test_places=None, relabeled=lambda images: images),
    )
    rows = measure_corruptions(Tested(), module, data, corruptions, lambda name: None)  # type: ignore[arg-type]
    expected = {12: [1, 0.5, 0.25], 7: [1, 1 / 3], 4: [1], 3: [1]}[tested]
    assert [row.accuracy for row in rows] == expected
    assert [row.severity for row in rows] == [1, 3, 5][: len(expected)]
