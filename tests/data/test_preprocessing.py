"""Resizing and cropping against the transforms that torchvision and timm publish with their weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.data import ImageFolder, image_data, npz
from nsr.data.decoding import Preprocessing
from nsr.errors import InputError
from nsr.models import Classifier, torchvision_model
from nsr.models.normalization import torchvision_constants
from nsr.models.preprocessing import published_sizes, unlike_published

SIZES = ((301, 207), (97, 130), (225, 225), (256, 341))  # (width, height) of the images


def picture(size, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (size[1] // 6, size[0] // 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def same(preprocess, transform, mean, std):
    """Whether the network's input is that of the published transform, pixel by pixel."""
    for seed, size in enumerate(SIZES):
        image = picture(size, seed)
        pixels = torch.from_numpy(preprocess(image).copy())[None].float() / 255
        ours = Classifier(torch.nn.Identity(), mean, std).normalize(pixels)[0]
        assert torch.allclose(ours, transform(image), rtol=0, atol=1e-5), (preprocess, size)


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "efficientnet_b1", "swin_t", "vit_b_16", "convnext_tiny"])
def test_torchvision_takes_the_same_input(name):
    from torchvision.models import get_model_weights

    published = published_sizes(name, torch.nn.Identity())
    for weights in get_model_weights(name):
        preset = weights.transforms()
        sizes = (preset.crop_size[0], preset.resize_size[0], preset.interpolation.value)
        assert sizes in published
        same(Preprocessing(3, *sizes), preset, preset.mean, preset.std)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "efficientnet_b0"])
def test_timm_takes_the_same_input(name):
    timm = pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_arch_pretrained_cfgs

    with torch.device("meta"):
        published = published_sizes(None, timm.create_model(name))
    assert published
    for config in get_arch_pretrained_cfgs(name).values():
        settings = resolve_data_config(pretrained_cfg=config.to_dict())
        size = settings["input_size"][-1]
        sizes = next(each for each in published if each[0] == size and each[2] == config.interpolation
                     and each[1] == int(size / settings["crop_pct"]))  # fmt: skip
        same(Preprocessing(3, *sizes), create_transform(**settings), settings["mean"], settings["std"])


def test_a_folder_gives_the_network_the_published_input(tmp_path):
    from torchvision.models import ResNet18_Weights

    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            for k, size in enumerate(SIZES):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                picture(size, seed=8 * number + k).save(tmp_path / split / name / f"{k}.png")
    data = ImageFolder(root=tmp_path, image_size=224, resize_size=256, batch_size=4, validation_images=2)
    data.setup("test")
    net = torchvision_model(name="resnet18", channels=3, classes=2, image_size=224)
    mean, std = torchvision_constants("resnet18", net)
    images = Classifier(net, mean, std).normalize(data.test_set.__getitems__(range(8))[0])
    transform = ResNet18_Weights.IMAGENET1K_V1.transforms()
    expected = [transform(picture(size, seed)) for seed, size in enumerate(SIZES)]
    assert torch.allclose(images[:4], torch.stack(expected), rtol=0, atol=1e-5)


def test_a_callable_gives_the_same_pixels_as_a_folder(tmp_path):
    def of_pictures():
        return [[(picture(size, seed), seed % 2) for seed, size in enumerate(SIZES)]] * 2

    data = image_data(of_pictures, {"image_size": 32, "resize_size": 40, "interpolation": "bicubic", "batch_size": 2,
                                    "validation_images": 2})  # fmt: skip
    data.setup("test")
    expected = [Preprocessing(3, 32, 40, "bicubic")(picture(size, seed)) for seed, size in enumerate(SIZES)]
    assert np.array_equal(data.test_set.images, np.stack(expected))
    assert not np.array_equal(expected[0], Preprocessing(3, 32, 40)(picture(SIZES[0])))


def test_other_sizes_than_the_published_are_said():
    from torchvision.models import resnet50

    with torch.device("meta"):
        published = published_sizes("resnet50", resnet50())
    line = unlike_published(published, Preprocessing(3, 224))
    assert "data.resize_size=256" in line and "data.resize_size=232" in line and "\n" not in line
    assert unlike_published(published, Preprocessing(3, 224, 232)) is None
    assert unlike_published({}, Preprocessing(3, 224)) is unlike_published(published, None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_size": 200, "image_size": 224}, "data.resize_size is 200; it must be a whole number at least 224"),
        ({"resize_size": 256}, "data.image_size, which is cropped, is null"),
        ({"resize_size": 256.5, "image_size": 224}, "data.resize_size is 256.5"),
        ({"interpolation": "cubic"}, "data.interpolation is 'cubic'; it must be one of .*bicubic"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, settings, message):
    for make in (lambda: ImageFolder(root=tmp_path, **settings), lambda: image_data(lambda: None, settings)):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize("images", [torch.rand(8, 3, 4, 4), [torch.rand(3, 4, 4)] * 8])
def test_arrays_are_not_resized(images):
    pairs = [(image, number % 2) for number, image in enumerate(images)]
    data = image_data(lambda: [pairs, pairs], {"image_size": 4, "resize_size": 6, "batch_size": 2})
    with pytest.raises(InputError, match="data.resize_size is 6; only PIL images are resized"):
        data.setup("test")


def test_an_array_file_is_not_resized(tmp_path):
    images, labels = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "it.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = image_data(npz, {"path": tmp_path / "it.npz", "image_size": 4, "resize_size": 6, "validation_images": 2})
    with pytest.raises(InputError, match="data.resize_size is 6, but train of .* is an array"):
        data.preflight(["train", "test"])
