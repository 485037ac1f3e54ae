"""Images in memory: scaling, whole batches, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from nsr.data import TensorImages
from nsr.data.images import already_collated
from nsr.errors import InputError

LABELS = torch.tensor([0, 1, 1, 2])


def whole(generator_seed=0):
    return torch.randint(256, (4, 3, 5, 5), generator=torch.Generator().manual_seed(generator_seed), dtype=torch.uint8)


def test_bytes_are_scaled_exactly():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    image, label = TensorImages(images, torch.tensor([3]))[0]
    assert image.dtype == torch.float32 and label.dtype == torch.int64
    assert torch.equal(image, images[0].float() / 255)
    assert image.min() == 0 and image.max() == 1


@pytest.mark.parametrize(
    "part", [lambda data: data, lambda data: Subset(data, [3, 1, 0, 2]), lambda data: data.subset(torch.arange(4))]
)
def test_through_a_loader(part):
    data = part(TensorImages(whole(), LABELS))
    images, labels = next(iter(DataLoader(data, batch_size=4, collate_fn=already_collated)))
    assert labels.tolist() == [int(data[number][1]) for number in range(4)]
    for number in range(4):
        assert torch.equal(images[number], data[number][0])


def test_floats_become_float32_and_stay_unchanged():
    source = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    data = TensorImages(source, LABELS)
    assert data[0][0].dtype == torch.float32
    before = data.images.clone()
    data[0][0].add_(1)
    data.__getitems__([0, 1])[0].add_(1)
    assert torch.equal(data.images, before)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_images_outside_the_range(value):
    images = torch.full((4, 1, 2, 2), 0.5)
    images[2, 0, 1, 1] = value
    with pytest.raises(InputError, match=rf"pixels are in \[.*{value:g}.*\]; they must be in"):
        TensorImages(images, LABELS)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (torch.rand(4, 2, 2), LABELS, None, "they must be .image, channel, height, width."),
        (torch.rand(3, 1, 2, 2), LABELS, None, "they must be"),
        (torch.rand(0, 1, 2, 2), LABELS[:0], None, "at least one image"),
        (torch.ones(4, 1, 2, 2, dtype=torch.int64), LABELS, None, "pixels are int64; they must be uint8, or floating"),
        (torch.rand(4, 1, 2, 2), LABELS.float(), None, "labels are float32; they must be whole numbers"),
        (torch.rand(4, 1, 2, 2), LABELS - 1, None, "labels go from -1 to 1; they must be at least 0"),
        (torch.rand(4, 1, 2, 2), LABELS, 2, "labels go from 0 to 2; they must be from 0 to 1 .data.classes is 2."),
    ],
)
def test_refusals(images, labels, classes, message):
    with pytest.raises(InputError, match=message):
        TensorImages(images, labels, classes=classes)
