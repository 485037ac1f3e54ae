"""Networks for small images, every activation a module of its own: a small CNN, VGG-16, ResNet-20 and ResNet-18.

Each is built for the data's channels, classes and image_size, and raises InputError for impossible sizes. The image
size is checked only, except in SmallCNN: the pooling before the last layer is global.

Sources: K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
arXiv 1409.1556; K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv
1512.03385.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from nsr.errors import check_choice, check_number

# channels of the convolutions of each stage of VGG-16; a max pooling ends a stage
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# builds the shortcut of a block that changes the shape: (channels in, channels out, stride) -> module
ShortcutBuilder = Callable[[int, int, int], nn.Module]


def check_sizes(*, channels: int, classes: int, image_size: int, smallest: int) -> None:
    """Raise InputError unless a network can be built for square images of at least `smallest` pixels."""
    check_number("channels", channels, lowest=1, whole=True)
    check_number("classes", classes, lowest=2, whole=True)
    advice = "the images are squares of image_size pixels"
    check_number("image_size", image_size, lowest=smallest, whole=True, advice=advice)


def initialize_convolutions(net: nn.Module) -> None:
    """Initialize every convolution of `net` as He et al. do, in place; biases start at zero.

    Source: K. He et al., Delving Deep into Rectifiers, ICCV 2015, equation 14 (fan out, as in the authors' ResNets).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, one hidden fully connected layer of 128 units, one linear classifier.

    Made for images of 8 to 32 pixels; their size fixes the inputs of `fc1`, and the two poolings need 4 pixels.

    Args:
        width: channels of the first convolution; the other two have twice as many.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int, width: int = 32) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        check_number("width", width, lowest=1, whole=True)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.relu3 = nn.ReLU()
        self.fc1 = nn.Linear(2 * width * (image_size // 4) ** 2, 128)
        self.relu4 = nn.ReLU()
        self.fc2 = nn.Linear(128, classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, image_size, image_size) -> logits (batch, class)."""
        features = self.pool1(self.relu1(self.bn1(self.conv1(images))))  # (batch, width, size / 2, size / 2)
        features = self.pool2(self.relu2(self.bn2(self.conv2(features))))  # (batch, 2 width, size / 4, size / 4)
        features = self.relu3(self.bn3(self.conv3(features)))
        return self.fc2(self.relu4(self.fc1(features.flatten(1))))


class VGG16(nn.Module):
    """VGG-16 (column D of table 1) in CIFAR form: with BatchNorm, global average pooling and one linear layer.

    The layers are named as in the paper: `features.conv3_2` is the second convolution of the third stage.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int = 32) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        self.features = nn.Sequential()
        width = channels
        for stage, widths in enumerate(VGG16_STAGES, start=1):
            for layer, next_width in enumerate(widths, start=1):
                self.features.add_module(f"conv{stage}_{layer}", nn.Conv2d(width, next_width, 3, padding=1, bias=False))
                self.features.add_module(f"bn{stage}_{layer}", nn.BatchNorm2d(next_width))
                self.features.add_module(f"relu{stage}_{layer}", nn.ReLU())
                width = next_width
            # rounding up keeps one pixel of a map that would vanish: five poolings work below 32 pixels too
            self.features.add_module(f"pool{stage}", nn.MaxPool2d(2, ceil_mode=True))
        self.fc = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> logits (batch, class)."""
        features = self.features(images)  # (batch, 512, height / 32, width / 32), rounded up
        # a plain mean: the backward of AdaptiveAvgPool2d is refused by deterministic CUDA runs
        return self.fc(features.mean(dim=(2, 3)))


class PadShortcut(nn.Module):
    """The paper's option A, free of parameters: every `stride`-th pixel, the new channels zero and last."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels_out - channels_in

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height / stride, width / stride), rounded up."""
        subsampled = features[:, :, :: self.stride, :: self.stride]
        return functional.pad(subsampled, (0, 0, 0, 0, 0, self.new_channels))


def projection_shortcut(channels_in: int, channels_out: int, stride: int, *, bias: bool = False) -> nn.Module:
    """The paper's option B: a 1x1 convolution with BatchNorm."""
    convolution = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


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
        channels: int,
        classes: int,
        *,
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
        return self.fc(features.mean(dim=(2, 3)))  # a plain mean, see VGG16


class ResNet20(ResNet):
    """ResNet-20 for CIFAR: 16, 32, 64 channels, three blocks a stage; section 4.2 of the paper.

    Args:
        variant: 'published', with the paper's parameter-free shortcuts and no convolution bias (269,722 parameters
            at 3 channels and 10 classes), or 'projection_bias', with 1x1 projections, they and the stem with a
            bias (272,586 parameters), a layout in which pretrained weights are found.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int = 32, variant: str = "published") -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        with_bias = check_choice("variant", variant, ["published", "projection_bias"]) == "projection_bias"
        shortcut = partial(projection_shortcut, bias=True) if with_bias else PadShortcut
        stages = (16, 32, 64)
        super().__init__(channels, classes, stage_channels=stages, blocks=3, shortcut=shortcut, stem_bias=with_bias)


class ResNet18(ResNet):
    """ResNet-18 in CIFAR form: 3x3 stem of stride 1, no max pooling, 64 to 512 channels, two blocks a stage.

    11,173,962 parameters at 3 channels and 10 classes.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int = 32) -> None:
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=8)
        stages = (64, 128, 256, 512)
        super().__init__(channels, classes, stage_channels=stages, blocks=2, shortcut=projection_shortcut)
