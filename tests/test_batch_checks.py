"""Images, labels and logits are checked once, at the boundary; errors are one line."""

from __future__ import annotations

import math
import re

import pytest
import torch

from nsr.errors import check_batch, check_logits
from tests.conftest import refusal

IMAGES = torch.linspace(0, 1, 24).view(4, 1, 2, 3)
LABELS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.uint8])
def test_a_good_batch_passes(dtype, label_dtype):
    check_batch(IMAGES.to(dtype), LABELS.to(label_dtype))
    check_batch(IMAGES.to(dtype), LABELS.to(label_dtype), classes=3)
    check_batch(IMAGES.to(dtype).requires_grad_(), LABELS)
    check_batch(IMAGES.to(dtype).flatten(1), LABELS)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ((IMAGES * 255).to(torch.uint8), "images are torch.uint8; .*float"),
        (IMAGES > 0.5, "images are torch.bool"),
        (IMAGES[:0], r"images have shape \(0, 1, 2, 3\)"),
        (IMAGES.flatten()[:4], r"images have shape \(4,\)"),
        (IMAGES - 0.01, r"outside \[0, 1\]: they range from -0.01 to 0.99; the normalization is the model's"),
        (IMAGES + 0.01, r"outside \[0, 1\]: they range from 0.01 to 1.01"),
        (IMAGES * 255, "from 0 to 255"),
        (torch.where(IMAGES == 1, math.nan, IMAGES), "nan"),
        (torch.where(IMAGES == 1, math.inf, IMAGES), "inf"),
    ],
)
def test_wrong_images(images, match):
    assert re.search(match, refusal(check_batch, images, LABELS[: len(images)]))


@pytest.mark.parametrize(
    ("labels", "classes", "text"),
    [
        (LABELS.float(), None, "labels are torch.float32 of shape (4,)"),
        (LABELS[:3], None, "of shape (3,); they must be whole numbers, one an image, (4,)"),
        (LABELS[:, None], None, "of shape (4, 1)"),
        (torch.eye(4)[LABELS].long(), None, "of shape (4, 4)"),  # one-hot
        (torch.tensor(1), None, "of shape ()"),
        (LABELS - 1, None, "labels contain the class -1; the classes are 0 or more"),
        (LABELS - 1, 3, "labels contain the class -1; the classes are 0 to 2"),
        (LABELS + 1, 3, "labels contain the class 3; the classes are 0 to 2"),
    ],
)
def test_wrong_labels(labels, classes, text):
    assert text in refusal(check_batch, IMAGES, labels, classes=classes)


def test_good_logits_pass():
    check_logits(torch.rand(4, 3), LABELS)
    check_logits(torch.rand(4, 9), LABELS)
    check_logits(torch.rand(4, 3), LABELS, classes=3)


@pytest.mark.parametrize(
    ("logits", "classes", "text"),
    [
        ((torch.rand(4, 3),), None, "a tuple; it must be logits (4, class)"),
        (None, None, "a NoneType"),
        (torch.rand(4), None, "of shape (4,)"),
        (torch.rand(4, 3, 1), None, "of shape (4, 3, 1)"),
        (torch.rand(3, 3), None, "of shape (3, 3)"),
        (torch.rand(4, 2), None, "labels contain the class 2; the network gives 2 logits"),
        (torch.rand(4, 9), 3, "the network gives 9 logits per image; the data have 3 classes"),
        (torch.rand(4, 2), 3, "the network gives 2 logits per image; the data have 3 classes"),
    ],
)
def test_wrong_logits(logits, classes, text):
    assert text in refusal(check_logits, logits, LABELS, classes=classes)
