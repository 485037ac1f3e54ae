"""Networks that tests name on the command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


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


def noise(images: int = 60) -> dict[str, TensorDataset]:
    """A data set of random images and labels."""
    draw = torch.Generator().manual_seed(0)
    pictures, labels = torch.rand(images, 1, 8, 8, generator=draw), torch.arange(images) % 3
    return {"train": TensorDataset(pictures, labels), "test": TensorDataset(pictures[:30], labels[:30])}


class LearnedTerm(nn.Module):
    """A stabilizer with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, clean: dict[str, Tensor], adversarial: dict[str, Tensor]) -> Tensor:
        return self.factor * sum((clean[name] - adversarial[name]).abs().mean() for name in clean)
