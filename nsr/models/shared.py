"""Size checks and initialization that the networks of this folder have in common."""

from __future__ import annotations

from torch import nn

from nsr.errors import check_number


def check_sizes(*, channels: int, classes: int, image_size: int, smallest: int) -> None:
    """Raise InputError unless a network can be built for square images of these sizes.

    Args:
        channels: color channels of an image, 1 or more.
        classes: number of classes, 2 or more.
        image_size: height and width of an image in pixels.
        smallest: the smallest `image_size` at which the network's last feature map is not empty.
    """
    check_number("channels", channels, lowest=1, whole=True)
    check_number("classes", classes, lowest=2, whole=True)
    check_number(
        "image_size", image_size, lowest=smallest, whole=True, advice="the images are squares of image_size pixels"
    )


def initialize_convolutions(net: nn.Module) -> None:
    """Initialize every convolution of `net` as He et al. do, in place; biases start at zero.

    Source: K. He et al., Delving Deep into Rectifiers, ICCV 2015, equation 14 (fan out, as in the authors' ResNets).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
