"""Images in .npz files: every layout, the same batches as a folder of the same images, one line for each fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.data import ImageFolder, arrays, image_data, npz
from nsr.data.arrays import headers
from nsr.data.images import LazyImages
from nsr.errors import InputError

RANDOM = np.random.RandomState(0)
BYTES, LABELS = RANDOM.randint(256, size=(24, 8, 8, 3)).astype(np.uint8), np.arange(24) // 8
TEST, TEST_LABELS = BYTES[::-1][:9], LABELS[::-1][:9]
SETTINGS = {"batch_size": 5, "evaluation_batch_size": 4, "validation_images": 6, "split_seed": 2, "seed": 4}


def saved(path, compressed=False, **content):
    (np.savez_compressed if compressed else np.savez)(path, **content)
    return path


def made(path, **settings):
    return image_data(npz, {**SETTINGS, "path": str(path), **settings})


def whole(images):
    return [torch.stack([image for image, _ in images]), torch.tensor([int(label) for _, label in images])]


LAYOUTS = {
    "keras": dict(x_train=BYTES, y_train=LABELS, x_test=TEST, y_test=TEST_LABELS, note=np.zeros(3)),
    "MedMNIST": dict(
        train_images=BYTES, train_labels=LABELS[:, None], test_images=TEST, test_labels=TEST_LABELS[:, None]
    ),
    "channels first": dict(
        images_train=BYTES.transpose(0, 3, 1, 2), labels_train=LABELS, images_test=TEST.transpose(0, 3, 1, 2).copy(),
        labels_test=TEST_LABELS, label_names=np.array(["a", "b", "c"]),
    ),
    "floats": dict(
        train_x=BYTES / 255, train_y=LABELS.astype(">i4"), test_x=(TEST / 255).astype(">f4"), test_y=TEST_LABELS
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_layouts(tmp_path, content, compressed):
    data = made(saved(tmp_path / "a.npz", compressed, **content))
    data.setup()
    assert (len(data.training_set), len(data.validation_set), len(data.test_set)) == (18, 6, 9)
    images, labels = whole(data.test_set)
    torch.testing.assert_close(
        images, torch.from_numpy(TEST.transpose(0, 3, 1, 2) / np.float32(255)), rtol=0, atol=1e-7
    )
    assert labels.tolist() == TEST_LABELS.tolist() and data.describe().classes == 3
    every = headers(tmp_path / "a.npz")
    assert all((array.offset is None) == compressed for array in every.values())


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("limit", [None, 0])
def test_the_same_batches_as_a_folder_of_the_same_images(tmp_path, monkeypatch, mode, compressed, limit):
    """The images of the folder are decoded by PIL, listed class after class, as the array has them."""
    if limit is not None:
        monkeypatch.setattr(arrays, "MEMORY_LIMIT_BYTES", limit)
    pixels = BYTES if mode == "RGB" else BYTES[..., 0]
    parts = {"train": (pixels, LABELS), "val": (pixels[::2], LABELS[::2]), "test": (pixels[1::2], LABELS[1::2])}
    content = {}
    for split, (images, labels) in parts.items():
        content |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "folder" / split / str(label) / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image, mode=None).save(path)
    folder = ImageFolder(root=tmp_path / "folder", **SETTINGS)
    data = made(saved(tmp_path / "a.npz", compressed, **content))
    for each in (folder, data):
        each.setup()
    assert isinstance(data.training_set, LazyImages) == (limit == 0)
    assert data.describe() == folder.describe()
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches = zip(getattr(data, name)(), getattr(folder, name)(), strict=True)
        for (images, labels), (expected, expected_labels) in batches:
            assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
            assert images.is_contiguous()


def test_a_mapped_array_is_the_loaded_one(tmp_path):
    """Its offset in the file, for names and sizes that shift it; what is changed in memory is not written."""
    content = {"x" * length: RANDOM.randint(256, size=(length, 3)).astype(np.uint8) for length in (1, 2, 33, 60)}
    path = saved(tmp_path / "a.npz", **content, y=np.asfortranarray(RANDOM.rand(3, 4)))
    before = path.read_bytes()
    with np.load(path) as loaded:
        for name, array in headers(path).items():
            assert np.array_equal(array.read(), loaded[name])
            assert isinstance(array.read(), np.memmap) == (name != "y")
    headers(path)["x"].read()[0] = 9
    assert path.read_bytes() == before


def test_test_images_of_another_file_or_cut(tmp_path):
    path = saved(tmp_path / "a.npz", image=BYTES, label=LABELS)
    with pytest.raises(InputError, match="returns train; this needs test; data.test_images=0.2 cuts it from train"):
        made(path).check_splits(["test"])
    other = saved(tmp_path / "b.npz", image=TEST, label=TEST_LABELS)
    data = made(path, test_path=str(other))
    data.setup("test")
    assert data.test_set.labels.tolist() == TEST_LABELS.tolist()
    data = made(path, test_images=0.25, validation_images=3)
    data.setup()
    assert data.test_set.labels.bincount().tolist() == [2, 2, 2] and len(data.training_set) == 15
    images = [bytes((image * 255).round().byte().flatten().tolist()) for part in
              (data.training_set, data.validation_set, data.test_set) for image, _ in part]  # fmt: skip
    assert sorted(images) == sorted(row.transpose(2, 0, 1).tobytes() for row in BYTES)
    both = saved(tmp_path / "c.npz", **LAYOUTS["keras"])
    for settings, message in (
        ({"test_images": 3}, "data.test_images is 3, but nsr.data.arrays.npz has test images: leave it out"),
        ({"test_path": str(other)}, "test_path is .*b.npz, but .*c.npz has test images: leave it out"),
    ):
        with pytest.raises(InputError, match=message):
            made(both, **settings).prepare()


GOOD = dict(x_train=BYTES, y_train=LABELS, x_test=TEST, y_test=TEST_LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": BYTES[:9]},
            r"x_train and y_train in .*a.npz: images have shape \(9, 3, 8, 8\) and labels \(24,\)",
        ),
        (
            {"x_train": BYTES[:, 1:]},
            r"x_train and .*: images have shape \(24, 7, 8, 3\); they must be \(image, size, size\)",
        ),
        ({"x_train": BYTES[0, 0]}, r"images have shape \(8, 3\); they must be"),
        ({"x_train": BYTES[:0], "y_train": LABELS[:0]}, r"images have shape \(0, 3, 8, 8\) .* at least one image"),
        ({"x_train": BYTES.astype(int)}, "x_train and y_train .*: pixels are int64; they must be uint8, or floating"),
        ({"x_train": BYTES / 99}, r"pixels are in \[0, 2.57576\]; they must be in \[0, 1\]; scale them"),
        ({"x_train": BYTES.astype(object)}, "x_train in .* has the type object; Python objects and texts are not read"),
        ({"y_train": LABELS / 2}, "labels are float64; they must be whole numbers from 0"),
        ({"y_train": np.eye(3, dtype=int)[LABELS]}, r"labels \(24, 3\); they must be .*\(image,\)"),
        ({"y_train": LABELS - 1}, "labels go from -1 to 1; they must be at least 0"),
        ({"y_test": TEST_LABELS + 2}, r"labels go from 3 to 4; they must be from 0 to 2 \(data.classes is 3\)"),
        ({"labels_train": LABELS}, "has y_train and labels_train; it must have one of them for train"),
        ({"y_test": None}, "has x_test, but no labels for test; it must have arrays such as x_train and y_train"),
        (
            dict.fromkeys(GOOD) | {"a": BYTES},
            "has the arrays a; it must have arrays such as x_train and y_train, train_",
        ),
    ],
)
def test_one_line_for_each_fault(tmp_path, changes, message):
    content = {name: array for name, array in (GOOD | changes).items() if array is not None}
    for compressed in (False, True):
        data = made(saved(tmp_path / "a.npz", compressed, **content))
        with pytest.raises(InputError, match=message) as caught:
            _ = data.preflight(["train", "test"]), data.setup()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "text", "half", "empty", "numpy"])
def test_files_that_cannot_be_read(tmp_path, name):
    path = tmp_path / "a.npz"
    if name == "half":
        path.write_bytes(saved(path, **GOOD).read_bytes()[:3000])
    elif name == "numpy":
        np.save(tmp_path / "a.npy", BYTES)
        (tmp_path / "a.npy").rename(path)
    elif name != "nothing":
        path.write_bytes(b"some text" if name == "text" else b"")
    expected = "is not there" if name == "nothing" else r"cannot be read \(.*\)"
    with pytest.raises(InputError, match=rf"^{path} {expected}; it must be a .npz file, as numpy.savez writes it$"):
        made(path).prepare()


def test_a_damaged_part(tmp_path):
    """Of a compressed array: its checksum is wrong."""
    content = bytearray(saved(tmp_path / "a.npz", True, **GOOD).read_bytes())
    content[2000] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="x_train and y_train in .*a.npz: .*"):
        made(tmp_path / "a.npz").prepare()
