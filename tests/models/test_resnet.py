"""ResNets: the paper's parameter counts, the layout of published weights, shortcuts against an explicit version."""

import pytest
import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.models import ResNet18, ResNet20
from nsr.models.resnet import BasicBlock, PadShortcut, projection_shortcut


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


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


def test_resnet18_has_the_size_the_literature_reports() -> None:
    net = ResNet18(channels=3, classes=10)
    assert count_parameters(net) == 11_173_962
    assert len([module for module in net.modules() if isinstance(module, BasicBlock)]) == 8


@pytest.mark.parametrize(("image_size", "channels"), [(8, 1), (28, 1), (32, 3)])
@pytest.mark.parametrize("variant", ["published", "projection_bias"])
def test_resnet20_gives_one_logit_a_class(image_size: int, channels: int, variant: str) -> None:
    net = ResNet20(channels=channels, classes=7, image_size=image_size, variant=variant)
    assert net(torch.rand(2, channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize(("image_size", "channels"), [(28, 1), (32, 3)])
def test_resnet18_gives_one_logit_a_class(image_size: int, channels: int) -> None:
    net = ResNet18(channels=channels, classes=7, image_size=image_size)
    assert net(torch.rand(2, channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("net_class", [ResNet20, ResNet18])
def test_last_map_has_the_paper_s_size(net_class: type[ResNet20] | type[ResNet18]) -> None:
    net = net_class(channels=3, classes=10).eval()
    sizes: list[tuple[int, ...]] = []
    net.get_submodule(net.stages[-1]).register_forward_hook(lambda module, inputs, output: sizes.append(output.shape))
    net(torch.rand(1, 3, 32, 32))
    assert sizes == [(1, 64, 8, 8) if net_class is ResNet20 else (1, 512, 4, 4)]


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


def test_block_is_the_residual_plus_the_shortcut() -> None:
    block = BasicBlock(3, 6, 2, PadShortcut).double().eval()
    features = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    residual = block.bn2(block.conv2(block.bn1(block.conv1(features)).clamp(min=0)))
    expected = (residual + slow_pad_shortcut(features, 6, 2)).clamp(min=0)
    assert torch.equal(block(features), expected)
    assert block(features).shape == BasicBlock(3, 6, 2, projection_shortcut).double()(features).shape


@pytest.mark.parametrize("net_class", [ResNet20, ResNet18])
def test_every_activation_is_its_own_module_and_not_in_place(net_class: type[ResNet20] | type[ResNet18]) -> None:
    net = net_class(channels=3, classes=10).eval()
    activations = {name: module for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
    calls: list[nn.Module] = []
    for module in activations.values():
        assert not module.inplace
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    net(torch.rand(1, 3, 8, 8))
    assert list(activations)[:3] == ["relu1", "layer1.0.relu1", "layer1.0.relu2"]
    assert len(activations) == {ResNet20: 19, ResNet18: 17}[net_class]
    assert calls == list(activations.values())  # each once, in order


@pytest.mark.parametrize("net_class", [ResNet20, ResNet18])
def test_works_in_float64_and_every_parameter_gets_a_gradient(net_class: type[ResNet20] | type[ResNet18]) -> None:
    net = net_class(channels=1, classes=10, image_size=8).double()
    logits = net(torch.rand(2, 1, 8, 8, dtype=torch.float64))
    assert logits.dtype == torch.float64
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_convolutions_start_as_he_et_al_prescribe() -> None:
    net = ResNet20(channels=3, classes=10, variant="projection_bias")
    weight = net.get_parameter("layer3.1.conv1.weight").detach()
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert all(
        module.bias is None or not module.bias.any() for module in net.modules() if isinstance(module, nn.Conv2d)
    )


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"variant is 'project'; it must be one of published, projection_bias"):
        ResNet20(channels=3, classes=10, variant="project")
    with pytest.raises(InputError, match="image_size is 2; it must be a whole number at least 4"):
        ResNet20(channels=3, classes=10, image_size=2)
    with pytest.raises(InputError, match="image_size is 4; it must be a whole number at least 8"):
        ResNet18(channels=3, classes=10, image_size=4)
