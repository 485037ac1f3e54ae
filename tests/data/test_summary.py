"""The summary of the splits, and its warnings."""

from __future__ import annotations

import numpy as np

from nsr.data import Digits, image_data, npz
from nsr.data.summary import summary

DIGITS = dict(channels=1, image_size=8, classes=10, mean=[0.3], std=[0.4], batch_size=64, validation_images=200)


def of(data, **processes):
    data.prepare()
    data.setup()
    return summary(data, **processes)


def test_digits():
    lines, warnings = of(Digits(**DIGITS))
    assert lines == [
        "data: Digits, 1 x 8 x 8, 10 classes, from the package scikit-learn",
        "  train      1,097 images, 106 to 112 per class, 18 steps of 64 per epoch",
        "  validation 200 images, 20 per class, held out of train",
        "  test       500 images, 48 to 51 per class",
    ]
    assert warnings == []


def test_a_file_with_extra_images_and_classes_that_are_missing(tmp_path):
    images, labels = np.zeros((30, 8, 8), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_val=images[:9], y_val=labels[:9] // 2)
    np.savez(tmp_path / "b.npz", image=images, label=labels)
    settings = {"path": str(tmp_path / "a.npz"), "test_images": 6, "extra": str(tmp_path / "b.npz")}
    lines, warnings = of(image_data(npz, {**settings, "extra_fraction": 0.5}), processes=2)
    assert lines == [
        f"data: nsr.data.arrays.npz, 1 x 8 x 8, 3 classes, from {tmp_path}/a.npz",
        "  train      24 images, 8 per class, 1 step of 128 per epoch",
        "  validation 9 images, 3 to 6 per class, 2 classes",
        "  test       6 images, 2 per class, cut from train",
        f"  extra      30 images, 0.5 of each training batch, from {tmp_path}/b.npz",
    ]
    assert warnings == [
        "1 of the 3 classes in the training set have no validation image, such as '2'",
        "data.batch_size is 128, but there are 24 training images: an epoch is one smaller batch; set it lower, or add "
        "images",
    ]
