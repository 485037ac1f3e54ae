"""Folders of tiny images: inference, pixels, and one line for each fault."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.data import Digits, ImageFolder, decoding, image_folder
from nsr.data.decoding import Preprocessing, decode
from nsr.data.images import LazyImages
from nsr.errors import InputError
from tests.conftest import image_folder as random_folder


def picture(path, size=(6, 6), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)
    image = Image.fromarray(random.randint(256, size=(size[1], size[0], 3)).astype(np.uint8))
    image.convert(mode).save(path)


def fill(root, splits=("train", "test"), classes=("cat", "dog"), images=5, **kind):
    for split in splits:
        for name in classes:
            for number in range(images):
                picture(
                    root / split / name / f"{number}.png",
                    seed=hash((split == "train", name == "cat", number)) % 999,
                    **kind,
                )
    return root


def made(root, **changes):
    return ImageFolder(**{"root": root, "batch_size": 4, "validation_images": 2, **changes})


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def test_everything_is_inferred(tmp_path):
    data = made(fill(tmp_path))
    data.prepare()
    described = data.describe()
    every = np.stack([pixels(path) for path in (tmp_path / "train").rglob("*.png")]) / 255
    assert (described.channels, described.image_size, described.classes) == (3, 6, 2)
    assert described.class_names == ("cat", "dog")
    assert described.mean == pytest.approx(every.mean(axis=(0, 2, 3)), abs=5.1e-5)
    assert described.std == pytest.approx(every.std(axis=(0, 2, 3)), abs=5.1e-5)
    assert all(type(value) is float for value in described.mean + described.std)
    # a second data set of these settings is the same
    settings = asdict(described)
    settings.pop("class_names")
    assert made(tmp_path, **settings).describe() == described


def test_other_sizes_are_resized_and_cropped(tmp_path):
    fill(tmp_path)
    picture(tmp_path / "test" / "cat" / "0.png", size=(24, 12))
    data = made(tmp_path, image_size=6)
    data.setup("test")
    with Image.open(tmp_path / "test" / "cat" / "0.png") as image:
        expected = np.asarray(image.resize((12, 6), Image.Resampling.BILINEAR).crop((3, 0, 9, 6))).transpose(2, 0, 1)
    assert np.array_equal(data.test_set.images[0], expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lazy_and_in_memory_are_the_same(tmp_path, num_workers, monkeypatch):
    fill(tmp_path)
    kept, lazy = made(tmp_path, in_memory=True), made(tmp_path, in_memory=False, num_workers=num_workers)
    for data in (kept, lazy):
        data.setup()
    assert isinstance(lazy.training_set, LazyImages) and kept.training_set.images.dtype == torch.uint8
    assert (len(kept.training_set), len(kept.validation_set), len(kept.test_set)) == (8, 2, 10)
    monkeypatch.setattr(image_folder, "MEMORY_LIMIT_BYTES", 10 * 3 * 6 * 6)
    large = made(tmp_path)
    large.setup("test")
    assert isinstance(large.test_set, LazyImages)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for one, other in zip(getattr(kept, name)(), getattr(lazy, name)(), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            assert other[0].dtype == torch.float32 and other[1].dtype == torch.int64


def test_large_images_are_decoded_in_threads_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "THREADS_FROM_PIXELS", 0)
    monkeypatch.setattr(decoding, "IMAGES_AT_ONCE", 3)
    fill(tmp_path)
    data = made(tmp_path)
    data.setup("test")
    assert data.test_set.labels.tolist() == [0] * 5 + [1] * 5
    for number in range(5):
        assert np.array_equal(data.test_set.images[number], pixels(tmp_path / "test" / "cat" / f"{number}.png"))
    (tmp_path / "test" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="dog/3.png cannot be read"):
        made(tmp_path, channels=3, image_size=6, mean=[0.5] * 3, std=[0.5] * 3).setup("test")


def test_gray_images_have_one_channel(tmp_path):
    data = made(fill(tmp_path, mode="L"))
    assert (data.describe().channels, len(data.describe().mean)) == (1, 1)
    data.setup("test")
    assert data.test_set.images.shape == (10, 1, 6, 6)
    picture(tmp_path / "train" / "cat" / "0.png")
    assert made(tmp_path).describe().channels == 3
    assert made(tmp_path, channels=1).describe().channels == 1


def test_the_sample_is_evenly_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr("nsr.data.description.SAMPLE", 3)
    fill(tmp_path)
    sample = [pixels(tmp_path / "train" / name) / 255 for name in ("cat/0.png", "cat/4.png", "dog/4.png")]
    assert made(tmp_path).describe().mean == pytest.approx(np.stack(sample).mean(axis=(0, 2, 3)), abs=5.1e-5)


def test_images_of_one_color_have_a_spread_to_divide_by(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (51, 102, 204)).save(tmp_path / split / name / "0.png")
    described = made(tmp_path).describe()
    assert described.mean == (0.2, 0.4, 0.8) and described.std == (0.0039,) * 3


def test_train_or_test_may_be_missing(tmp_path):
    data = made(fill(tmp_path / "a", splits=["test"]))
    data.check_splits(["test"])
    data.setup("test")
    assert data.describe().classes == 2
    with pytest.raises(InputError, match=f"{tmp_path}/a has no train; this needs {tmp_path}/a/train/CLASS/IMAGE"):
        data.setup("fit")
    data = made(fill(tmp_path / "b", splits=["train"]))
    data.setup("fit")
    with pytest.raises(InputError, match="has no test"):
        data.check_splits(["train", "test"])
    # test images are evaluated without reading those in train/
    root = fill(tmp_path / "c")
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    data = made(root, channels=3, image_size=6, classes=2, mean=[0.5] * 3, std=[0.5] * 3)
    data.setup("test")
    assert len(data.test_set) == 10


def test_images_in_val_are_the_validation_images(tmp_path):
    data = made(fill(tmp_path, splits=["train", "val", "test"]))
    data.preflight(["train", "test"])
    data.setup()
    assert (len(data.training_set), len(data.validation_set)) == (10, 10)
    assert np.array_equal(data.validation_set.images[0], pixels(tmp_path / "val" / "cat" / "0.png"))
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "cow")
    with pytest.raises(InputError, match=r"train and val in .* only train has 'dog', only val has 'cow'"):
        made(tmp_path).prepare()


def test_suffixes_and_ignored_files(tmp_path):
    fill(tmp_path)
    cat = tmp_path / "test" / "cat"
    for name in ("A.JPG", "b.Jpeg", "c.bmp", "d.webp", "e.tif", "f.gif", "deeper/g.ppm"):
        picture(cat / name)
    for name in ("notes.txt", "Thumbs.db", "._0.png"):
        (cat / name).write_text("no image")
    for hidden in (".ipynb_checkpoints", "deeper/.thumbnails/large"):  # copies that other programs keep
        picture(cat / hidden / "0-checkpoint.png")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    data = made(tmp_path)
    data.setup("test")
    assert data.test_set.labels.tolist() == [0] * 12 + [1] * 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(tmp_path, mode):
    path = tmp_path / "one.png"
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    image.save(path, **({"transparency": bytes([0, 128])} if mode == "P" else {}))
    for channels in (1, 3):
        assert decode(str(path), Preprocessing(channels, 4)).tolist() == [[[255] * 4] * 4] * channels


@pytest.mark.parametrize("content", [b"no image", "half", "16 bits"])
def test_an_unreadable_image_is_named(tmp_path, content):
    fill(tmp_path, size=(40, 40))
    path = tmp_path / "train" / "dog" / "2.png"
    if content == "16 bits":
        Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:900] if content == "half" else content)
    reason = ".*more than 8 bits, mode I;16" if content == "16 bits" else ""
    with pytest.raises(InputError, match=f"^{path} cannot be read as an image .{reason}.*; repair or remove it$"):
        made(tmp_path).setup("fit")


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def empty(*names):
    return lambda root: [(shutil.rmtree(root / name), (root / name).mkdir()) for name in names]


def into_root(root):
    (root / "train" / "cat").rename(root / "cat")
    (root / "train" / "dog").rename(root / "dog")
    remove("train", "test")(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root), "data.root is {root}, which is not a folder; it must contain"),
        (remove("train", "test"), "{root}, which has neither train nor test; it must contain train/CLASS/IMAGE"),
        (into_root, "neither train nor test; .* it has 'cat', 'dog': if these are the classes, move them"),
        (empty("train"), "{root}/train has no class folder; it must have a folder for each of 2 or more classes"),
        (remove("train/cat"), "{root}/train has only the class 'dog'"),
        (empty("train/cat"), "{root}/train/cat has no image .*; add some, or remove the folder"),
        (empty("test/dog"), "{root}/test/dog has no image"),
        (
            lambda root: fill(root, splits=["test"], classes=["bird", "fish"]),
            "train and test in {root} must have the same class folders; only test has 'bird', 'fish'",
        ),
        (lambda root: (root / "test/dog").rename(root / "test/Dog"), "only train has 'dog', only test has 'Dog'"),
    ],
)
def test_one_line_for_each_fault(tmp_path, spoil, message):
    root = fill(tmp_path / "images")
    spoil(root)
    with pytest.raises(InputError, match=message.format(root=root)):
        made(root).prepare()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, "data.root is None; it must be the folder that contains train/CLASS/IMAGE"),
        ({"classes": 3}, "data.classes is 3, but .* has 2 classes; leave data.classes out"),
        ({"channels": 2}, "data.channels is 2; it must be one of None \\(null on the command line\\), 1, 3"),
        ({"mean": [0.5]}, "data.mean has 1 numbers; it must have 3"),
        ({"in_memory": "yes"}, "data.in_memory is 'yes'"),
        ({"image_size": 0}, "data.image_size is 0"),
    ],
)
def test_settings(tmp_path, changes, message):
    fill(tmp_path)
    with pytest.raises(InputError, match=message):
        made(**{"root": tmp_path, **changes}).describe()


@pytest.mark.parametrize(
    ("size", "message"), [((8, 8), "of different sizes .*cat/0.png is 8 x 8.*cat/1.png is 6 x 6"), (None, "not square")]
)
def test_images_that_need_a_size(tmp_path, size, message):
    fill(tmp_path, size=(6, 6) if size else (6, 5))
    if size:
        picture(tmp_path / "train" / "cat" / "0.png", size=size)
    with pytest.raises(InputError, match=f"{message}.* pixels; set data.image_size, to which they are"):
        made(tmp_path).describe()
    assert made(tmp_path, image_size=6).describe().image_size == 6


@pytest.mark.parametrize("name", ["val", "valid"])
def test_an_own_validation_folder_is_used(tmp_path, name):
    fill(tmp_path, splits=("train", "test", name))
    data = made(tmp_path)
    data.setup()
    assert [len(part) for part in (data.training_set, data.validation_set, data.test_set)] == [10, 10, 10]
    assert np.array_equal(data.validation_set.images[7], pixels(tmp_path / name / "dog" / "2.png"))
    fill(tmp_path, splits=("val", "valid"))
    with pytest.raises(InputError, match=f"{tmp_path} has val and valid; it must have one of them"):
        made(tmp_path).prepare()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("part", "count"), [(0.2, 4), (6, 6)])
def test_test_images_are_cut_from_train(tmp_path, in_memory, part, count):
    fill(tmp_path, splits=["train"], images=10)
    data = made(tmp_path, test_images=part, in_memory=in_memory, split_seed=3)
    data.check_splits(["train", "test"])
    data.setup()
    parts = [data.training_set, data.validation_set, data.test_set]
    assert [len(images) for images in parts] == [18 - count, 2, count]
    assert data.test_set.labels.bincount().tolist() == [count // 2] * 2
    seen = [images[index][0].numpy().tobytes() for images in parts for index in range(len(images))]
    every = [(pixels(path) / np.float32(255)).tobytes() for path in (tmp_path / "train").rglob("*.png")]
    assert sorted(seen) == sorted(every)
    # an evaluation alone has the same ones, and the constants are those of the images that are not tested
    alone = made(tmp_path, test_images=part, validation_images=9, seed=8, split_seed=3)
    alone.setup("test")
    assert [row[0].tolist() for row in alone.test_set] == [row[0].tolist() for row in data.test_set]
    trained = np.stack([images[index][0] for images in parts[:2] for index in range(len(images))])
    assert data.describe().mean == pytest.approx(trained.mean(axis=(0, 2, 3)), abs=5.1e-5)


def test_a_cut_that_cannot_be(tmp_path):
    fill(tmp_path / "both")
    with pytest.raises(InputError, match=f"test_images is 0.2, but the test images are in {tmp_path}/both/test"):
        made(tmp_path / "both", test_images=0.2).check_splits(["test"])
    fill(tmp_path / "test", splits=["test"])
    with pytest.raises(InputError, match="data.test_images is 3, but the test images are in"):
        made(tmp_path / "test", test_images=3).check_splits(["test"])
    fill(tmp_path / "train", splits=["train"])
    with pytest.raises(InputError, match=r"has no test; this needs .*; data.test_images=0.2 cuts them from train$"):
        made(tmp_path / "train").check_splits(["train", "test"])
    with pytest.raises(InputError, match="data.test_images asks for 9 of 10 images in 2 classes; it must be from 1 to"):
        made(tmp_path / "train", test_images=9).describe()
    with pytest.raises(InputError, match="data.test_images is 1.5"):
        made(tmp_path, test_images=1.5)
    with pytest.raises(InputError, match="data.test_images is 5, but Digits has test images: leave it out"):
        Digits(channels=1, image_size=8, classes=10, mean=[0.3], std=[0.3], test_images=5).check_splits(["test"])


def test_tiny_imagenets_layout(tmp_path):
    fill(tmp_path, splits=["train"])
    for name in ("cat", "dog"):
        (tmp_path / "train" / name / "images").mkdir()
        for path in (tmp_path / "train" / name).glob("*.png"):
            path.rename(path.parent / "images" / path.name)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("0.png\t0\t0\t3\t3\n")
    classes = ["dog", "cat", "dog"]
    for number in range(3):
        picture(tmp_path / "val" / "images" / f"val_{number}.png", seed=number)
        picture(tmp_path / "test" / "images" / f"test_{number}.png", seed=number + 9)
    rows = [f"val_{number}.png\t{name}\t0\t0\t3\t3\n" for number, name in enumerate(classes)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(rows))
    data = made(tmp_path)
    data.setup()
    assert (len(data.training_set), len(data.validation_set), data.test_set.labels.tolist()) == (8, 2, [0, 1, 1])
    for place, number in enumerate((1, 0, 2)):  # class after class
        assert np.array_equal(data.test_set.images[place], pixels(tmp_path / "val" / "images" / f"val_{number}.png"))
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.png dog\n")
    with pytest.raises(InputError, match="val_annotations.txt, line 1 is 'val_0.png dog'; it must have a file and a"):
        made(tmp_path).prepare()


def test_val_as_the_test_set(tmp_path):
    """ImageNet: the labels of its test images are not public."""
    fill(tmp_path, splits=("train", "val"))
    data = made(tmp_path, test_folder="val")
    data.setup()
    assert [len(part) for part in (data.training_set, data.validation_set, data.test_set)] == [8, 2, 10]
    with pytest.raises(InputError, match="data.test_folder is 'train'; it must be one of None .*, test, val, valid"):
        made(tmp_path, test_folder="train")


def test_the_names_of_files_are_in_the_order_of_the_images(tmp_path):
    root = random_folder(tmp_path / "images", images=3)
    for settings, split in (({}, "test"), ({"test_images": 2}, "test"), ({"test_images": 2}, "train")):
        if settings:
            shutil.rmtree(root / "test", ignore_errors=True)
        data = ImageFolder(root=root, **settings)
        data.describe()
        names, images = data.file_names(split), data.load(split)
        assert len(names) == len(images)
        for name, image in zip(names, images.images, strict=True):
            pixels = np.asarray(Image.open(root / name)).transpose(2, 0, 1)
            assert np.array_equal(image.numpy(), pixels)
