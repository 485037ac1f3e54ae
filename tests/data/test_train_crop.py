"""Random crops of the whole pictures of a folder: torchvision's pixels, reproducible, for training alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from nsr.data import ImageFolder
from nsr.errors import InputError
from nsr.randomness import draw_seed, seeded

SIZE, PICTURES = 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of 40 x 24 pixels: red where the center crop of 24 x 24 does not reach, else random green."""
    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(PICTURES):
                pixels = np.zeros((24, 40, 3), np.uint8)
                pixels[:, 6:-6, 1] = np.random.RandomState(number).randint(1, 256, size=(24, 28))
                pixels[:, :6, 0] = pixels[:, -6:, 0] = 255
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def made(root, **changes):
    settings = {"root": root, "image_size": SIZE, "batch_size": 4, "validation_images": 2, "train_crop": "random"}
    data = ImageFolder(**settings | changes)
    data.setup()
    return data


def epoch(data, number):
    """All training images of an epoch in its order: (image, channel, height, width)."""
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return torch.cat([images for images, _ in loader])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_pixels_are_those_of_torchvision(folder, interpolation):
    data = made(folder, interpolation=interpolation, seed=3)
    images = data.training_set
    images.epoch.fill_(2)
    transform = v2.RandomResizedCrop(SIZE)
    for index in range(len(images)):
        place = int(images.indices[index])
        with Image.open(folder / data.file_names("train")[place]) as file:
            picture = file.convert("RGB")
        with seeded(draw_seed(3, 2, place)):
            drawn = transform.make_params([picture])
        mode = InterpolationMode(interpolation)
        expected = v2.functional.resized_crop(picture, **drawn, size=[SIZE, SIZE], interpolation=mode)
        got, label = images[index]
        assert torch.equal(got, torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255)
        assert label == place // PICTURES


def test_draws_are_a_function_of_seed_epoch_and_image(folder):
    one = made(folder)
    first, second = epoch(one, 0), epoch(one, 1)
    assert torch.equal(epoch(made(folder), 0), first) and torch.equal(epoch(made(folder), 1), second)
    assert torch.equal(epoch(made(folder, num_workers=2), 1), second)
    torch.manual_seed(9)  # of no importance
    assert torch.equal(epoch(one, 0), first)
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    assert not torch.equal(epoch(made(folder, seed=1), 0).sort(0).values, first.sort(0).values)


def test_the_whole_picture_is_drawn_from_in_training_alone(folder):
    data = made(folder)
    assert epoch(data, 0)[:, 0].max() == 1  # red, which the center crop never has
    center = made(folder, train_crop=None)
    for split in ("validation_set", "test_set"):
        for index in range(len(getattr(data, split))):
            image = getattr(data, split)[index][0]
            assert torch.equal(image, getattr(center, split)[index][0]) and not image[0].any()
    assert (data.describe().mean, data.describe().std) == (center.describe().mean, center.describe().std)
    assert torch.equal(data.training_set.labels, center.training_set.labels)


def test_augmentation_comes_after_the_crop(folder):
    """A transform of single images has draws of its own and leaves those of the crop as they are."""
    plain, flipped = made(folder), made(folder, augmentation=v2.RandomHorizontalFlip(1.0))
    assert torch.equal(epoch(flipped, 1), epoch(plain, 1).flip(-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_crop": "center"}, "data.train_crop is 'center'; it must be random, a transform of pictures"),
        ({"train_crop": 0.5}, "data.train_crop is 0.5; it must be random"),
        ({"in_memory": True}, "data.in_memory is true, but data.train_crop draws from the files"),
        (
            {"train_crop": v2.RandomResizedCrop(8)},
            r"data.train_crop \(.*RandomResizedCrop.*\) gives 8x8; it must give a PIL",
        ),
        ({"train_crop": v2.PILToTensor()}, "gives Tensor; it must give a PIL image of 16x16 pixels, data.image_size"),
        ({"train_crop": partial(int)}, "data.train_crop .* takes no picture: TypeError: "),
    ],
)
def test_what_cannot_be_a_crop_is_refused(folder, changes, message):
    with pytest.raises(InputError, match=message):
        made(folder, **changes)
