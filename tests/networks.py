"""Networks that tests name on the command line."""

from __future__ import annotations

from torch import Tensor, nn


class Plain(nn.Module):
    """Convolutions without BatchNorm: what one process computes, two can compute too."""

    def __init__(self, channels: int, classes: int, image_size: int, width: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2 * width * (image_size // 2) ** 2, classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)
