"""Crop and flip against a slow loop over images, with the same draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from nsr.data import CropFlip
from nsr.data.augmentation import augmentation
from nsr.errors import InputError


def one_by_one(images, padding, draws):
    """The definition: each image padded, cut out at its own place, mirrored where its own coin says so."""
    result = []
    for image, top, left, flip in zip(images, *draws, strict=True):
        height, width = image.shape[1:]
        crop = pad(image, [padding] * 4)[:, top : top + height, left : left + width]
        result.append(crop.flip(-1) if flip else crop)
    return torch.stack(result)


@pytest.mark.parametrize(("shape", "padding"), [((16, 3, 32, 32), 4), ((5, 1, 8, 6), 2), ((1, 2, 3, 3), 0)])
def test_against_a_loop(shape, padding):
    images = torch.rand(shape)
    torch.manual_seed(0)
    got = CropFlip(padding)(images)
    torch.manual_seed(0)
    places = [torch.randint(2 * padding + 1, (shape[0], 1)).flatten().tolist() for _ in range(2)]
    flips = torch.randint(2, (shape[0], 1), dtype=torch.bool).flatten().tolist()
    assert torch.equal(got, one_by_one(images, padding, [*places, flips]))
    assert got.shape == images.shape and got.dtype == images.dtype


def test_every_image_has_its_own_draw():
    images = torch.rand(1, 3, 32, 32).expand(64, -1, -1, -1)
    torch.manual_seed(0)
    assert len({image.numpy().tobytes() for image in CropFlip()(images)}) > 40


def test_draws_are_fair_and_reach_every_place():
    # one bright pixel tells where each image was cut out: 9 x 9 places, mirrored or not
    images = torch.zeros(20_000, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    torch.manual_seed(0)
    counts = CropFlip(4)(images).sum(dim=(0, 1))
    assert counts.sum() == 20_000
    assert counts.min() > 0.7 * 20_000 / 81 and counts.max() < 1.3 * 20_000 / 81
    images = torch.tensor([[0.0, 1.0]]).expand(4_000, 1, 1, 2)
    assert 0.45 < CropFlip(0)(images)[:, 0, 0, 0].mean() < 0.55


def test_the_seed_decides_and_the_input_stays():
    images = torch.rand(8, 3, 8, 8)
    before = images.clone()
    torch.manual_seed(5)
    first = CropFlip()(images)
    torch.manual_seed(5)
    assert torch.equal(first, CropFlip()(images)) and torch.equal(images, before)


def test_by_name():
    assert augmentation("none") is None
    assert isinstance(augmentation("crop_flip"), CropFlip)
    with pytest.raises(InputError, match="data.augmentation is 'cropflip'; it must be one of none, crop_flip .did you"):
        augmentation("cropflip")
