"""Networks for small images, every activation a module of its own: a small CNN and VGG-16.

Each is built for the data's channels, classes and image_size, and raises InputError for impossible sizes. The image
size is checked only, except in SmallCNN: the pooling before the last layer is global. `activation` is a name in
torch.nn or a module (see `activation_builder`); the modules are called relu1, ... whatever it is.

Source: K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
arXiv 1409.1556.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nsr.errors import check_number
from nsr.models.activation import activation_builder

# channels of the convolutions of each stage of VGG-16; a max pooling ends a stage
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def check_sizes(*, channels: int, classes: int, image_size: int, smallest: int) -> None:
    """Raise InputError unless a network can be built for square images of at least `smallest` pixels."""
    check_number("channels", channels, lowest=1, whole=True)
    check_number("classes", classes, lowest=2, whole=True)
    advice = "the images are squares of image_size pixels"
    check_number("image_size", image_size, lowest=smallest, whole=True, advice=advice)


def mean_over_positions(features: Tensor) -> Tensor:
    """(batch, channel, height, width) -> (batch, channel), the mean.

    Not AdaptiveAvgPool2d, whose backward is refused by deterministic CUDA runs; a sum and not `mean`, whose gradient is
    never channels-last: the activation below would compute in two layouts, which takes ten times as long on a CPU.
    """
    return features.sum(dim=(2, 3)) / (features.shape[2] * features.shape[3])


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

    def __init__(
        self, *, channels: int, classes: int, image_size: int, width: int = 32, activation: Any = "relu"
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        make_activation = activation_builder(activation)
        check_number("width", width, lowest=1, whole=True)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = make_activation()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = make_activation()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.relu3 = make_activation()
        self.fc1 = nn.Linear(2 * width * (image_size // 4) ** 2, 128)
        self.relu4 = make_activation()
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

    def __init__(self, *, channels: int, classes: int, image_size: int = 32, activation: Any = "relu") -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        make_activation = activation_builder(activation)
        self.features = nn.Sequential()
        width = channels
        for stage, widths in enumerate(VGG16_STAGES, start=1):
            for layer, next_width in enumerate(widths, start=1):
                self.features.add_module(f"conv{stage}_{layer}", nn.Conv2d(width, next_width, 3, padding=1, bias=False))
                self.features.add_module(f"bn{stage}_{layer}", nn.BatchNorm2d(next_width))
                self.features.add_module(f"relu{stage}_{layer}", make_activation())
                width = next_width
            # rounding up keeps one pixel of a map that would vanish: five poolings work below 32 pixels too
            self.features.add_module(f"pool{stage}", nn.MaxPool2d(2, ceil_mode=True))
        self.fc = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> logits (batch, class)."""
        features = self.features(images)  # (batch, 512, height / 32, width / 32), rounded up
        return self.fc(mean_over_positions(features))
