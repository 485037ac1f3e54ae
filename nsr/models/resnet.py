"""ResNets in CIFAR form, every activation a module of its own: ResNet-20 of the paper, ResNet-18, 34 and 50.

Source: K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from nsr.errors import check_choice
from nsr.models.activation import activation_builder
from nsr.models.networks import check_sizes, initialize_convolutions, mean_over_positions

# builds the shortcut of a block that changes the shape: (channels in, channels out, stride) -> module
ShortcutBuilder = Callable[[int, int, int], nn.Module]
ActivationBuilder = Callable[[], nn.Module]


class PadShortcut(nn.Module):
    """The paper's option A, free of parameters: every `stride`-th pixel, the new channels zero and last."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels_out - channels_in

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height / stride, width / stride), rounded up."""
        # not a slice, whose gradient is never channels-last: the layers before would compute in two layouts
        subsampled = functional.avg_pool2d(features, 1, stride=self.stride)
        return functional.pad(subsampled, (0, 0, 0, 0, 0, self.new_channels))


def projection_shortcut(channels_in: int, channels_out: int, stride: int, *, bias: bool = False) -> nn.Module:
    """The paper's option B: a 1x1 convolution with BatchNorm."""
    convolution = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (batch, channels_in, ...) -> (batch, channels_out, ... / stride)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        shortcut: ShortcutBuilder,
        make_activation: ActivationBuilder = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = make_activation()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        # 'downsample' is the name under which published state_dicts keep the shortcut
        self.downsample = nn.Identity() if same_shape else shortcut(channels_in, channels_out, stride)
        self.relu2 = make_activation()

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.downsample(features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the inner channels a quarter of `channels_out`, around a shortcut."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        shortcut: ShortcutBuilder,
        make_activation: ActivationBuilder = nn.ReLU,
    ) -> None:
        super().__init__()
        width = channels_out // 4
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = make_activation()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = make_activation()
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.downsample = nn.Identity() if same_shape else shortcut(channels_in, channels_out, stride)
        self.relu3 = make_activation()

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        return self.relu3(self.bn3(self.conv3(residual)) + self.downsample(features))


class ResNet(nn.Module):
    """A 3x3 stem and stages `layer1`, `layer2`, ... of residual blocks; every stage but the first halves the map.

    Args:
        stage_channels: channels that each stage returns.
        blocks: blocks in each stage.
        shortcut: builds the shortcut of a block that changes the shape.
        block: the kind of block.
        stem_channels: channels of the stem.
        stem_bias: whether the stem's convolution has a bias.
    """

    # the names of other projects' state_dicts, and ours
    published_names: ClassVar[dict[str, str]] = {".shortcut.": ".downsample.", "linear.": "fc."}

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        stage_channels: Sequence[int],
        blocks: Sequence[int],
        shortcut: ShortcutBuilder = projection_shortcut,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
        stem_channels: int = 64,
        stem_bias: bool = False,
        activation: Any = "relu",
    ) -> None:
        super().__init__()
        make_activation = activation_builder(activation)
        width = stem_channels
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=stem_bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = make_activation()
        self.stages = [f"layer{stage}" for stage in range(1, len(stage_channels) + 1)]
        for name, stage_width, count in zip(self.stages, stage_channels, blocks, strict=True):
            stage = nn.Sequential()
            for index in range(count):
                stride = 2 if index == 0 and name != "layer1" else 1
                stage.append(block(width, stage_width, stride, shortcut, make_activation))
                width = stage_width
            self.add_module(name, stage)
        self.fc = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> logits (batch, class)."""
        features = self.relu1(self.bn1(self.conv1(images)))
        for name in self.stages:
            features = self.get_submodule(name)(features)
        return self.fc(mean_over_positions(features))


class ResNet20(ResNet):
    """ResNet-20 for CIFAR: 16, 32, 64 channels, three blocks a stage; section 4.2 of the paper.

    Args:
        variant: 'published', with the paper's parameter-free shortcuts and no convolution bias (269,722 parameters
            at 3 channels and 10 classes), or 'projection_bias', with 1x1 projections, they and the stem with a
            bias (272,586 parameters), a layout in which pretrained weights are found.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        image_size: int = 32,
        variant: str = "published",
        activation: Any = "relu",
    ) -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        with_bias = check_choice("variant", variant, ["published", "projection_bias"]) == "projection_bias"
        super().__init__(
            channels,
            classes,
            stage_channels=(16, 32, 64),
            blocks=(3, 3, 3),
            shortcut=partial(projection_shortcut, bias=True) if with_bias else PadShortcut,
            stem_channels=16,
            stem_bias=with_bias,
            activation=activation,
        )


class ResNet18(ResNet):
    """ResNet-18 in CIFAR form: 3x3 stem of stride 1, no max pooling, 64 to 512 channels, two blocks a stage.

    11,173,962 parameters at 3 channels and 10 classes.
    """

    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def __init__(self, *, channels: int, classes: int, image_size: int = 32, activation: Any = "relu") -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=8)
        stages = (64, 128, 256, 512)
        super().__init__(channels, classes, stage_channels=stages, blocks=self.blocks, activation=activation)


class ResNet34(ResNet18):
    """ResNet-34 in CIFAR form, see `ResNet18`; 21,282,122 parameters at 3 channels and 10 classes."""

    blocks = (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50 in CIFAR form, see `ResNet18`; 23,520,842 parameters at 3 channels and 10 classes."""

    def __init__(self, *, channels: int, classes: int, image_size: int = 32, activation: Any = "relu") -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=8)
        stages, blocks = (256, 512, 1024, 2048), (3, 4, 6, 3)
        super().__init__(
            channels, classes, stage_channels=stages, blocks=blocks, block=Bottleneck, activation=activation
        )
