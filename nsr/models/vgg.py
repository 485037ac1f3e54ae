"""VGG-16 for CIFAR-sized images.

Source: K. Simonyan, A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
arXiv 1409.1556, table 1, column D. The CIFAR form adds BatchNorm and has one linear layer instead of three.
"""

from __future__ import annotations

from torch import Tensor, nn

from nsr.models.shared import check_sizes, initialize_convolutions

# channels of the convolutions of each stage; a max pooling ends a stage
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with BatchNorm in five stages, global average pooling, one linear layer.

    The layers are named as in the paper: `features.conv3_2` is the second convolution of the third stage.

    Args:
        channels: color channels of an image.
        classes: number of classes.
        image_size: height and width of an image, checked only: the pooling before `fc` is global.
    Errors:
        InputError: an impossible size.
    """

    def __init__(self, *, channels: int, classes: int, image_size: int = 32) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=4)
        self.features = nn.Sequential()
        width = channels
        for stage, widths in enumerate(STAGES, start=1):
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
