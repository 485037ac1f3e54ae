"""Residual networks for CIFAR-sized images: ResNet-20 of the paper, ResNet-18 as the robustness literature uses it.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from nsr.errors import check_choice
from nsr.models.shared import check_sizes, initialize_convolutions

# builds the shortcut of a block that changes the shape: (channels in, channels out, stride) -> module
ShortcutBuilder = Callable[[int, int, int], nn.Module]


class PadShortcut(nn.Module):
    """The paper's option A, free of parameters: every `stride`-th pixel, the new channels zero and last."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height / stride, width / stride), rounded up."""
        subsampled = features[:, :, :: self.stride, :: self.stride]
        return functional.pad(subsampled, (0, 0, 0, 0, 0, self.new_channels))


def projection_shortcut(channels_in: int, channels_out: int, stride: int, *, bias: bool = False) -> nn.Module:
    """The paper's option B: a 1x1 convolution with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=bias), nn.BatchNorm2d(channels_out)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (batch, channels_in, ...) -> (batch, channels_out, ... / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: ShortcutBuilder) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        # 'downsample' is the name under which published state_dicts keep the shortcut
        self.downsample = nn.Identity() if same_shape else shortcut(channels_in, channels_out, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.downsample(features))


class ResNet(nn.Module):
    """A 3x3 stem and stages `layer1`, `layer2`, ... of basic blocks; every stage but the first halves the map.

    Args:
        stage_channels: channels of each stage; the stem has those of the first.
        blocks: blocks in each stage.
        shortcut: builds the shortcut of a block that changes the shape.
        stem_bias: whether the stem's convolution has a bias.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        stage_channels: Sequence[int],
        blocks: int,
        shortcut: ShortcutBuilder,
        stem_bias: bool = False,
    ) -> None:
        super().__init__()
        width = stage_channels[0]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=stem_bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.stages = [f"layer{stage}" for stage in range(1, len(stage_channels) + 1)]
        for name, stage_width in zip(self.stages, stage_channels, strict=True):
            stride = 1 if name == "layer1" else 2
            first = BasicBlock(width, stage_width, stride, shortcut)
            others = [BasicBlock(stage_width, stage_width, 1, shortcut) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *others))
            width = stage_width
        self.fc = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> logits (batch, class)."""
        features = self.relu1(self.bn1(self.conv1(images)))
        for name in self.stages:
            features = self.get_submodule(name)(features)
        # a plain mean: the backward of AdaptiveAvgPool2d is refused by deterministic CUDA runs
        return self.fc(features.mean(dim=(2, 3)))  # (batch, channel, height, width) -> (batch, channel) -> logits


class ResNet20(ResNet):
    """ResNet-20 for CIFAR: 16, 32, 64 channels, three blocks a stage; section 4.2 of the paper.

    Args:
        channels: color channels of an image.
        classes: number of classes.
        image_size: height and width of an image, checked only: the pooling before `fc` is global.
        variant: 'published', with the paper's parameter-free shortcuts and no convolution bias (269,722 parameters
            at 3 channels and 10 classes), or 'projection_bias', with 1x1 projections, they and the stem with a
            bias (272,586 parameters), a layout in which pretrained weights are found.
    Errors:
        InputError: an impossible size, or an unknown variant.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int = 32, variant: str = "published") -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        with_bias = check_choice("variant", variant, ["published", "projection_bias"]) == "projection_bias"
        super().__init__(
            channels=channels,
            classes=classes,
            stage_channels=(16, 32, 64),
            blocks=3,
            shortcut=partial(projection_shortcut, bias=True) if with_bias else PadShortcut,
            stem_bias=with_bias,
        )


class ResNet18(ResNet):
    """ResNet-18 in CIFAR form: 3x3 stem of stride 1, no max pooling, 64 to 512 channels, two blocks a stage.

    11,173,962 parameters at 3 channels and 10 classes.

    Args:
        channels: color channels of an image.
        classes: number of classes.
        image_size: height and width of an image, checked only: the pooling before `fc` is global.
    Errors:
        InputError: an impossible size.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int = 32) -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=8)
        super().__init__(
            channels=channels,
            classes=classes,
            stage_channels=(64, 128, 256, 512),
            blocks=2,
            shortcut=projection_shortcut,
        )
