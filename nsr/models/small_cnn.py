"""A small convolutional network for digits and other small images: seconds an epoch on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from nsr.errors import check_number
from nsr.models.shared import check_sizes, initialize_convolutions

HIDDEN_UNITS = 128


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, one hidden fully connected layer, one linear classifier.

    Args:
        channels: color channels of an image.
        classes: number of classes.
        image_size: height and width of an image; it fixes the inputs of `fc1`. Made for 8 to 32 pixels.
        width: channels of the first convolution; the other two have twice as many.
    Errors:
        InputError: a size is not a whole number or too small (the two poolings need 4 pixels).
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
        self.fc1 = nn.Linear(2 * width * (image_size // 4) ** 2, HIDDEN_UNITS)
        self.relu4 = nn.ReLU()
        self.fc2 = nn.Linear(HIDDEN_UNITS, classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, image_size, image_size) -> logits (batch, class)."""
        features = self.pool1(self.relu1(self.bn1(self.conv1(images))))  # (batch, width, size / 2, size / 2)
        features = self.pool2(self.relu2(self.bn2(self.conv2(features))))  # (batch, 2 width, size / 4, size / 4)
        features = self.relu3(self.bn3(self.conv3(features)))
        hidden = self.relu4(self.fc1(features.flatten(1)))  # (batch, HIDDEN_UNITS)
        return self.fc2(hidden)
