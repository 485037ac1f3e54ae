"""VGG16: the paper's layers, one logit a class at every size, no map that vanishes."""

import pytest
import torch
from torch import nn

from nsr.errors import InputError
from nsr.models import VGG16


@pytest.fixture(scope="module")
def net() -> VGG16:
    return VGG16(channels=3, classes=10)


def test_has_the_layers_of_column_d(net: VGG16) -> None:
    widths = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = 9 * sum(before * after for before, after in zip([3, *widths], widths, strict=False))
    batch_norms_and_linear = 2 * sum(widths) + (512 + 1) * 10
    assert sum(parameter.numel() for parameter in net.parameters()) == convolutions + batch_norms_and_linear


def test_every_activation_is_its_own_module_and_not_in_place(net: VGG16) -> None:
    activations = {name: module for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
    assert len(activations) == 13
    assert "features.relu3_2" in activations
    assert not any(module.inplace for module in activations.values())


@pytest.mark.parametrize("image_size", [4, 8, 28, 32, 33])
def test_gives_one_logit_a_class(net: VGG16, image_size: int) -> None:
    assert net(torch.rand(2, 3, image_size, image_size)).shape == (2, 10)


def test_works_in_float64_on_one_channel() -> None:
    net = VGG16(channels=1, classes=10, image_size=28).double()
    logits = net(torch.rand(2, 1, 28, 28, dtype=torch.float64))
    assert logits.dtype == torch.float64
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("image_size", [0, -32, 2, 32.0, True])
def test_impossible_sizes_are_refused(image_size: float) -> None:
    with pytest.raises(InputError, match=f"image_size is {image_size}; it must be a whole number at least 4"):
        VGG16(channels=3, classes=10, image_size=image_size)  # type: ignore[arg-type]
