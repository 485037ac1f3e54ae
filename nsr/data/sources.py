"""Known data sets: scikit-learn's digits (no download), Fashion-MNIST and CIFAR-10 (read by torchvision)."""

from __future__ import annotations

import torch
from torch import Tensor

from nsr.data.downloaded import Downloaded
from nsr.data.images import TensorImages
from nsr.data.module import ImageData
from nsr.data.split import stratified_split
from nsr.errors import InputError

DIGITS_TEST_IMAGES = 500


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn, (1, 8, 8): 500 for testing, by a fixed stratified split."""

    class_names = tuple("0123456789")

    def prepare(self) -> None:
        try:
            import sklearn.datasets  # noqa: F401
        except ImportError:
            raise InputError("data=digits needs scikit-learn: pip install scikit-learn") from None

    def load(self, split: str) -> TensorImages:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
        labels = torch.from_numpy(digits.target).to(torch.int64)
        train, test = stratified_split(labels, DIGITS_TEST_IMAGES, seed=0)
        return TensorImages(images, labels).subset(train if split == "train" else test)


class FashionMNIST(Downloaded):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), (1, 28, 28): 60,000 images for training, 10,000 for testing."""

    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    page = "https://github.com/zalandoresearch/fashion-mnist"
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    archives = tuple(f"{file}.gz" for file in files)
    subfolder = "FashionMNIST/raw"

    def read(self, split: str, *, download: bool = False) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import FashionMNIST as Source

        source = Source(self.root, train=split == "train", download=download)
        return source.data[:, None], source.targets


class CIFAR10(Downloaded):
    """CIFAR-10 (Krizhevsky, 2009), (3, 32, 32): 50,000 images for training, 10,000 for testing."""

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    page = "https://www.cs.toronto.edu/~kriz/cifar.html"
    archives = ("cifar-10-python.tar.gz",)
    files = tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
    )

    def read(self, split: str, *, download: bool = False) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import CIFAR10 as Source

        source = Source(self.root, train=split == "train", download=download)
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()  # from (image, height, width, channel)
        return images, torch.tensor(source.targets)
