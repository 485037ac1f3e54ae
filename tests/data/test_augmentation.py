"""Crop and flip against a slow loop over images; third-party transforms, drawn per image and reproducibly."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from nsr.data import CropFlip
from nsr.data.augmentation import Augmentation, build_augmentation
from nsr.errors import InputError


def one_by_one(images, padding, draws, mode):
    """The definition: each image padded, cropped at its own place, mirrored where its own coin says so."""
    result = []
    for image, top, left, flip in zip(images, *draws, strict=True):
        height, width = image.shape[1:]
        padded = torch.from_numpy(np.pad(image, [(0, 0), (padding, padding), (padding, padding)], mode))
        crop = padded[:, top : top + height, left : left + width]
        result.append(crop.flip(-1) if flip else crop)
    return torch.stack(result)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize(("shape", "padding"), [((16, 3, 32, 32), 4), ((5, 1, 8, 6), 2), ((1, 2, 3, 3), 0)])
def test_crop_flip_against_a_loop(shape, padding, mode):
    images = torch.rand(shape)
    before = images.clone()
    torch.manual_seed(0)
    got = CropFlip(padding, mode)(images)
    torch.manual_seed(0)
    places = [torch.randint(2 * padding + 1, (shape[0], 1)).flatten().tolist() for _ in range(2)]
    flips = torch.randint(2, (shape[0], 1), dtype=torch.bool).flatten().tolist()
    assert torch.equal(got, one_by_one(images, padding, [*places, flips], mode)) and torch.equal(images, before)


def test_a_reflection_wider_than_the_image_is_refused():
    with pytest.raises(
        InputError, match="padding is 8 for images of 8 x 9 pixels; with padding_mode=reflect it must be"
    ):
        CropFlip(8, "reflect")(torch.rand(2, 3, 8, 9))
    with pytest.raises(InputError, match="padding_mode is 'wrap'; it must be one of constant, reflect"):
        CropFlip(padding_mode="wrap")


def test_crop_flip_draws_are_fair_and_reach_every_place():
    # one bright pixel shows where each image was cropped: 9 x 9 places, mirrored or not
    images = torch.zeros(20_000, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    torch.manual_seed(0)
    counts = CropFlip(4)(images).sum(dim=(0, 1))
    assert counts.sum() == 20_000
    assert counts.min() > 0.7 * 20_000 / 81 and counts.max() < 1.3 * 20_000 / 81
    images = torch.tensor([[0.0, 1.0]]).expand(4_000, 1, 1, 2)
    assert 0.45 < CropFlip(0)(images)[:, 0, 0, 0].mean() < 0.55


class PerBatch(nn.Module):
    """Takes batches alone and draws for each image, as kornia does."""

    def forward(self, images):
        assert images.ndim == 4
        return images * torch.rand(len(images), 1, 1, 1, device=images.device)


def per_batch_same(images):
    """Takes batches alone, and draws once for all images."""
    assert images.ndim == 4
    return images * torch.rand(())


def python(image):
    return image.flip(-1) if random.random() < 0.5 else image * np.random.rand()


def single(image):
    assert image.ndim == 3
    return image * torch.rand(())


to_float = v2.ToDtype(torch.float32, scale=True)
TRANSFORMS = {  # transform, how it is applied, different images at least of 32 equal ones
    "per batch": (PerBatch(), "_to_batch", 32),
    "per batch, same draw": (per_batch_same, "_to_batches_of_one", 32),
    "noise": (v2.GaussianNoise(), "_to_batch", 32),
    "crop": (v2.RandomCrop(8, padding=2), "_to_images", 12),
    "flip": (v2.RandomHorizontalFlip(), "_to_images", 2),
    "rare": (v2.RandomGrayscale(p=0.2), "_to_images", 2),
    # the noise alone is drawn for each image of a batch, the flip is not
    "flip and noise": (v2.Compose([v2.RandomHorizontalFlip(), v2.GaussianNoise()]), "_to_images", 32),
    "python and numpy": (python, "_to_images", 12),
    "single": (single, "_to_images", 32),
    "deterministic": (lambda image: image / 2, "_to_images", 1),
    "uint8 inside": (v2.Compose([v2.ToDtype(torch.uint8, scale=True), v2.AutoAugment(), to_float]), "_to_images", 8),
}


@pytest.mark.parametrize(("transform", "applied", "different"), TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_is_drawn_for_every_image_and_reproducibly(transform, applied, different):
    augment = build_augmentation(transform)[0]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    augment.preflight((3, 8, 8))
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert np.array_equal(states[2][1], np.random.get_state()[1])
    assert [applier.__name__ for applier in augment.appliers] == [applied]
    images = torch.rand(1, 3, 8, 8).expand(32, -1, -1, -1)
    results = []
    for unrelated in (1, 2):
        random.seed(unrelated)
        np.random.seed(unrelated)
        torch.manual_seed(5)  # as each training step does
        results.append(augment(images))
    assert torch.equal(*results) and results[0].shape == images.shape and results[0].dtype == torch.float32
    assert len({image.numpy().tobytes() for image in results[0]}) >= different
    if different > 1:
        assert not torch.equal(augment(images), results[0])


def test_a_list_is_applied_in_order_each_in_its_way():
    augment = build_augmentation(["crop_flip", v2.Pad(2), v2.RandomCrop(8), PerBatch()])[0]
    images = torch.rand(32, 3, 8, 8)
    assert augment(images).shape == images.shape  # without a preflight the first batch makes the trial
    assert [applier.__name__ for applier in augment.appliers] == ["_to_batch", "_to_images", "_to_images", "_to_batch"]


def test_settings():
    for nothing in ("none", None, []):
        assert build_augmentation(nothing) == (None, None)
    assert isinstance(build_augmentation("crop_flip")[0], CropFlip)
    assert isinstance(build_augmentation(["none", "crop_flip"])[0], Augmentation)
    with pytest.raises(
        InputError, match="data.augmentation is 'cropflip'; it must be one of none, crop_flip, .* .did you"
    ):
        build_augmentation("cropflip")
    for wrong in (3, {"p": 0.5}, [v2.RandomCrop(8), 3]):
        with pytest.raises(
            InputError, match=r"data.augmentation is .*; it must be none, crop_flip, .*, a callable or a"
        ):
            build_augmentation(wrong)


class OwnGenerator:
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, image):
        return image * self.generator.random()


def stretched(image, factor):
    return factor * image


def broken(image):
    raise OSError("no\nluck")


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Normalize([0.5] * 3, [0.5] * 3), r"gives pixels in \[-1, 1\]; they must stay in \[0, 1\]"),
        (lambda image: image / 0, r"gives pixels in \[nan, nan\]; they must stay"),
        (
            v2.Resize(4),
            r"gives torch.float32 images of shape \(3, 4, 4\); they must be torch.float32 of shape \(3, 8, 8\)",
        ),
        (v2.ToDtype(torch.float64), r"ToDtype. gives torch.float64 images"),
        (lambda image: image.half(), r"gives torch.float16 images"),
        (partial(stretched, factor=2), r"\(.*test_augmentation.stretched\) gives pixels in"),
        (v2.ToDtype(torch.uint8, scale=True), "gives torch.uint8 images of shape"),
        (v2.ToPILImage(), "takes no image of shape .3, 8, 8.: TypeError"),
        (broken, "broken. takes no image of shape .3, 8, 8.: OSError: no luck; it must map an image or a batch"),
        (OwnGenerator(), "OwnGenerator. gives different images with equal seeds; it must draw from torch,"),
    ],
)
def test_transforms_that_cannot_be_used(transform, message):
    with pytest.raises(InputError, match=f"data.augmentation .*{message}"):
        build_augmentation(transform)[0].preflight((3, 8, 8))
