"""Digits as they are; Fashion-MNIST and CIFAR-10 from small files in the original formats, and what goes wrong."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

from nsr.data import CIFAR10, Digits, FashionMNIST
from nsr.errors import InputError

COMMON = dict(batch_size=8, validation_images=10)
SHAPES = {
    Digits: dict(channels=1, image_size=8, classes=10, mean=[0.3057], std=[0.3765]),
    FashionMNIST: dict(channels=1, image_size=28, classes=10, mean=[0.286], std=[0.353]),
    CIFAR10: dict(channels=3, image_size=32, classes=10, mean=[0.5] * 3, std=[0.25] * 3),
}


def made(kind, **changes):
    return kind(**{**SHAPES[kind], **COMMON, **changes})


@pytest.fixture
def offline(monkeypatch):
    """A machine without network; the list of the requests."""
    asked = []

    def refuse(request, *args, **kwargs):
        asked.append(request)
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


def idx(array):
    """The idx format: type 8 (unsigned bytes), number of dimensions, sizes, bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def fashion_files():
    random = np.random.RandomState(0)
    files = {}
    for name, count in (("train", 40), ("t10k", 20)):
        files[f"{name}-images-idx3-ubyte"] = idx(random.randint(256, size=(count, 28, 28)).astype(np.uint8))
        files[f"{name}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def write_cifar(folder, monkeypatch):
    """Six batches of 20 images and the names; torchvision is given their checksums. Returns the test images."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    sums, images = {}, {}
    for file in CIFAR10.files:
        name = file.split("/")[1]
        images[name] = random.randint(256, size=(20, 3072)).astype(np.uint8)
        content = {"data": images[name], "labels": list(range(10)) * 2, "label_names": []}
        # as in the original files of 2009: numbers in the place of truth values, of which some numpy 2.4 warn
        packed = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
        (folder / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()
    source = torchvision.datasets.CIFAR10
    batches = [[name, sums[name]] for name in sums if name.startswith("data")]
    monkeypatch.setattr(source, "train_list", batches)
    monkeypatch.setattr(source, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums["batches.meta"]})
    return torch.from_numpy(images["test_batch"]).reshape(20, 3, 32, 32)


def test_digits():
    data = made(Digits, validation_images=200)
    data.prepare()
    data.setup()
    assert [len(part) for part in (data.training_set, data.validation_set, data.test_set)] == [1097, 200, 500]
    assert data.training_set.images.max() == 1 and data.training_set.images.min() == 0
    assert data.describe().class_names == tuple("0123456789")
    train = torch.cat([data.training_set.images, data.validation_set.images])
    assert train.mean().item() == pytest.approx(0.3057, abs=5e-5)
    assert train.std(correction=0).item() == pytest.approx(0.3765, abs=5e-5)


def test_the_test_images_of_digits_are_fixed():
    first, other = made(Digits), made(Digits, seed=3, split_seed=5, validation_images=77)
    for data in (first, other):
        data.setup("test")
    assert torch.equal(first.test_set.images, other.test_set.images)
    assert first.test_set.labels.bincount().tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert first.test_set.labels[:12].tolist() == [1, 2, 4, 5, 6, 9, 4, 7, 8, 9, 2, 7]
    assert first.test_set.images.sum().item() == pytest.approx(9727.6875)


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist(tmp_path, offline, packed):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    files = fashion_files()
    for name, content in files.items():
        # packed by a third party: the checksums are not those torchvision knows
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    data = made(FashionMNIST, root=tmp_path)
    data.prepare()
    data.setup()
    assert not offline
    assert data.test_set.images.dtype == torch.uint8 and data.test_set.images.shape == (20, 1, 28, 28)
    assert data.test_set.images.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert data.test_set.labels.tolist() == [*range(10), *range(10)]
    assert (len(data.training_set), len(data.validation_set)) == (30, 10)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.filterwarnings("error")
def test_cifar10(tmp_path, offline, monkeypatch, packed):
    expected = write_cifar(tmp_path / "made", monkeypatch)
    root = tmp_path / "made"
    if packed:
        root = tmp_path / "packed"
        root.mkdir()
        with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    data = made(CIFAR10, root=root, download=False)
    data.prepare()
    data.setup()
    assert not offline
    assert len(data.training_set) + len(data.validation_set) == 100
    assert torch.equal(data.test_set.images, expected)


@pytest.mark.parametrize(
    ("kind", "file", "page", "folder"),
    [
        (CIFAR10, "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html", ""),
        (
            FashionMNIST,
            "t10k-images-idx3-ubyte.gz",
            "https://github.com/zalandoresearch/fashion-mnist",
            "FashionMNIST/raw",
        ),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_missing_files_are_reported(tmp_path, monkeypatch, offline, capfd, kind, file, page, folder, download):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        made(kind, root="datasets", download=download).prepare()
    text = str(caught.value)
    assert "\n" not in text
    assert f"not in {tmp_path / 'datasets' / folder} " in text and file in text and page in text
    assert "data.root" in text and ("data.download=true" in text) == (not download)
    assert ("Name or service not known" in text) == download == bool(offline)
    assert capfd.readouterr() == ("", "")


def test_damaged_files(tmp_path, monkeypatch, offline):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>not found</html>")
    for download, reason in ((True, "Name or service"), (False, "cifar-10-python.tar.gz cannot be unpacked: not a gz")):
        with pytest.raises(InputError, match=reason):
            made(CIFAR10, root=tmp_path, download=download).prepare()
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"")
    data = made(CIFAR10, root=tmp_path)
    data.prepare()
    with pytest.raises(InputError, match=f"corrupted.*delete {tmp_path}/cifar-10-batches-py and run again"):
        data.setup("fit")
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in fashion_files().items():
        (folder / name).write_bytes(content[:-5])
    with pytest.raises(InputError, match=f"FashionMNIST in {folder} cannot be read"):
        made(FashionMNIST, root=tmp_path).setup("test")


@pytest.mark.parametrize("kind", [CIFAR10, FashionMNIST])
def test_settings(kind):
    with pytest.raises(InputError, match="data.root is None"):
        made(kind)
    with pytest.raises(InputError, match="data.download is 'yes'; it must be one of True, False"):
        made(kind, root="datasets", download="yes")
