"""The networks of nsr: the papers' sizes and layers, logits at every size, shortcuts against an explicit version."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.models import VGG16, ResNet18, ResNet20, SmallCNN, WideResNet
from nsr.models.networks import mean_over_positions
from nsr.models.resnet import BasicBlock, PadShortcut, projection_shortcut

SMALLEST = {SmallCNN: 4, ResNet20: 4, VGG16: 4, ResNet18: 8}
every_network = pytest.mark.parametrize("kind", SMALLEST)


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("kind", "image_size", "channels"),
    [
        *((SmallCNN, size, channels) for size in (4, 8, 9, 32) for channels in (1, 3)),
        *((ResNet20, size, channels) for size, channels in ((4, 3), (8, 1), (28, 1))),
        *((VGG16, size, 3) for size in (4, 28, 33)),
        (ResNet18, 28, 1),
    ],
)
def test_one_logit_per_class(kind: type[nn.Module], image_size: int, channels: int) -> None:
    net = kind(channels=channels, classes=7, image_size=image_size)
    assert net(torch.rand(2, channels, image_size, image_size)).shape == (2, 7)


@every_network
def test_every_activation_is_a_module_of_its_own_in_order_and_not_in_place(kind: type[nn.Module]) -> None:
    net = kind(channels=3, classes=10, image_size=8).eval()
    activations = {name: module for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
    calls: list[nn.Module] = []
    for module in activations.values():
        assert not module.inplace
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    net(torch.rand(1, 3, 8, 8))
    assert calls == list(activations.values())
    count, first = {
        SmallCNN: (4, ["relu1", "relu2"]),
        VGG16: (13, ["features.relu1_1", "features.relu1_2"]),
        ResNet20: (19, ["relu1", "layer1.0.relu1"]),
        ResNet18: (17, ["relu1", "layer1.0.relu1"]),
    }[kind]
    assert len(activations) == count and list(activations)[:2] == first


@every_network
def test_works_in_float64_and_every_parameter_gets_a_gradient(kind: type[nn.Module]) -> None:
    net = kind(channels=1, classes=10, image_size=8).double()
    logits = net(torch.rand(2, 1, 8, 8, dtype=torch.float64))
    assert logits.dtype == torch.float64
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@every_network
def test_impossible_sizes_are_refused(kind: type[nn.Module]) -> None:
    smallest = SMALLEST[kind]
    for wrong in (0, smallest - 1, 32.0, True, (8, 8)):
        with pytest.raises(InputError, match=f"; it must be a whole number at least {smallest}"):
            kind(channels=3, classes=10, image_size=wrong)
    with pytest.raises(InputError, match="channels is 0; it must be a whole number at least 1"):
        kind(channels=0, classes=10, image_size=8)
    with pytest.raises(InputError, match="classes is 1; it must be a whole number at least 2"):
        kind(channels=3, classes=1, image_size=8)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"variant is 'project'; it must be one of published, projection_bias"):
        ResNet20(channels=3, classes=10, variant="project")
    message = r"activation is 'sillu' \(did you mean 'silu'\?\); it must be the name of an activation in torch.nn"
    with pytest.raises(InputError, match=message):
        VGG16(channels=3, classes=10, activation="sillu")
    with pytest.raises(InputError, match="activation is 'threshold', which cannot be made without arguments: .*; give"):
        ResNet18(channels=3, classes=10, activation="threshold")
    with pytest.raises(InputError, match="activation is .*len.*cannot be made"):
        ResNet18(channels=3, classes=10, activation=len)
    with pytest.raises(InputError, match="width is 1.5; it must be a whole number at least 1"):
        SmallCNN(channels=1, classes=10, image_size=8, width=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [SmallCNN, ResNet20, pytest.param(VGG16, marks=pytest.mark.slow)])
def test_the_activation_is_any_of_torch_or_a_module_that_is_copied(kind: type[nn.Module]) -> None:
    places = [
        name for name, each in kind(channels=3, classes=10, image_size=8).named_modules() if type(each) is nn.ReLU
    ]
    for choice, expected in (("silu", nn.SiLU), ("LeakyReLU", nn.LeakyReLU), ("leaky_relu", nn.LeakyReLU)):
        net = kind(channels=3, classes=10, image_size=8, activation=choice)
        assert [name for name, each in net.named_modules() if type(each) is expected] == places
    net = kind(channels=3, classes=10, image_size=8, activation=nn.PReLU(init=0.5))
    slopes = {id(net.get_submodule(name).weight): net.get_submodule(name).weight for name in places}
    assert len(slopes) == len(places) and all(slope.item() == 0.5 for slope in slopes.values())


def batch_norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def resnet20_layout(*, projection_bias: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ResNet-20's state_dict, written out from the paper: no code of the package."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}
    if projection_bias:
        shapes["conv1.bias"] = (16,)
    shapes |= batch_norm_shapes("bn1", 16)
    for stage, channels, before in ((1, 16, 16), (2, 32, 16), (3, 64, 32)):
        for block in range(3):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (channels, before if block == 0 else channels, 3, 3)
            shapes |= batch_norm_shapes(f"{name}.bn1", channels)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            shapes |= batch_norm_shapes(f"{name}.bn2", channels)
            if projection_bias and block == 0 and stage > 1:
                shapes[f"{name}.downsample.0.weight"] = (channels, before, 1, 1)
                shapes[f"{name}.downsample.0.bias"] = (channels,)
                shapes |= batch_norm_shapes(f"{name}.downsample.1", channels)
    return shapes | {"fc.weight": (10, 64), "fc.bias": (10,)}


@pytest.mark.parametrize(("variant", "parameters"), [("published", 269_722), ("projection_bias", 272_586)])
def test_resnet20_has_the_layout_and_size_of_its_variant(variant: str, parameters: int) -> None:
    net = ResNet20(channels=3, classes=10, variant=variant)
    assert count_parameters(net) == parameters
    layout = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert layout == resnet20_layout(projection_bias=variant == "projection_bias")
    weight = net.get_parameter("layer3.1.conv1.weight").detach()
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)  # He et al. 2015
    biases = [module.bias for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert all(bias is None or not bias.any() for bias in biases)


def test_sizes_from_the_layers() -> None:
    assert count_parameters(ResNet18(channels=3, classes=10)) == 11_173_962  # as the literature reports
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 64)
    linear = (64 * 2 * 2 + 1) * 128 + (128 + 1) * 10
    assert count_parameters(SmallCNN(channels=1, classes=10, image_size=8)) == convolutions + 2 * 160 + linear
    net = VGG16(channels=3, classes=10)
    widths = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]  # column D
    convolutions = 9 * sum(before * after for before, after in zip([3, *widths], widths, strict=False))
    assert count_parameters(net) == convolutions + 2 * sum(widths) + (512 + 1) * 10


@pytest.mark.parametrize(("kind", "shape"), [(ResNet20, (1, 64, 8, 8)), (ResNet18, (1, 512, 4, 4))])
def test_last_map_has_the_paper_s_size(kind: type[ResNet20] | type[ResNet18], shape: tuple[int, ...]) -> None:
    net = kind(channels=3, classes=10).eval()
    shapes: list[tuple[int, ...]] = []
    net.get_submodule(net.stages[-1]).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    net(torch.rand(1, 3, 32, 32))
    assert shapes == [shape]


def slow_pad_shortcut(features: Tensor, channels_out: int, stride: int) -> Tensor:
    """Option A pixel by pixel."""
    batch, channels, height, width = features.shape
    output = torch.zeros(batch, channels_out, -(-height // stride), -(-width // stride), dtype=features.dtype)
    for sample in range(batch):
        for channel in range(channels):
            for row in range(output.shape[2]):
                for column in range(output.shape[3]):
                    output[sample, channel, row, column] = features[sample, channel, row * stride, column * stride]
    return output


@pytest.mark.parametrize(("size", "channels_out", "stride"), [(4, 6, 2), (5, 6, 2), (3, 3, 2), (3, 5, 1)])
def test_published_shortcut_against_the_explicit_version(size: int, channels_out: int, stride: int) -> None:
    features = torch.randn(2, 3, size, size, dtype=torch.float64)
    shortcut = PadShortcut(3, channels_out, stride)
    assert torch.equal(shortcut(features), slow_pad_shortcut(features, channels_out, stride))


@pytest.mark.parametrize("kind", [ResNet20, ResNet18, VGG16, partial(WideResNet, depth=10, width=1)])
def test_gradients_of_activations_are_channels_last_too(kind: Callable[..., nn.Module]) -> None:
    # an activation whose output and gradient differ in layout takes about ten times as long on a CPU
    net = kind(channels=3, classes=10, image_size=32).eval().to(memory_format=torch.channels_last)
    outputs: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    gradients = torch.autograd.grad(net(images).sum(), outputs)
    assert len(gradients) > 3
    assert all(each.stride(1) == 1 for each in (*outputs, *gradients))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7), (16, 16)])
def test_mean_over_positions(memory_format: torch.memory_format, dtype: torch.dtype, size: tuple[int, int]) -> None:
    features = torch.randn(5, 30, *size).to(dtype).to(memory_format=memory_format).requires_grad_()
    expected, found = features.mean(dim=(2, 3)), mean_over_positions(features)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    upstream = torch.randn(5, 30).to(dtype)
    slopes = [torch.autograd.grad(each, features, upstream)[0] for each in (expected, found)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-6, atol=0)


def test_block_is_the_residual_plus_the_shortcut() -> None:
    block = BasicBlock(3, 6, 2, PadShortcut).double().eval()
    features = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    residual = block.bn2(block.conv2(block.bn1(block.conv1(features)).clamp(min=0)))
    expected = (residual + slow_pad_shortcut(features, 6, 2)).clamp(min=0)
    assert torch.equal(block(features), expected)
    assert block(features).shape == BasicBlock(3, 6, 2, projection_shortcut).double()(features).shape
