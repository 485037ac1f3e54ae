"""Augmentation of a whole batch on its device, drawn for every image apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr.errors import check_choice, check_number


class CropFlip:
    """Random crop after zero padding, and a horizontal flip with probability 1/2.

    Draws from torch's default generator of the images' device, which the training step seeds. torchvision's batched
    RandomCrop gives every image of a batch the same draw (pytorch/vision#2929); this one draws for each image.

    Args:
        padding: zero pixels added on every side before the crop.
    """

    def __init__(self, padding: int = 4) -> None:
        self.padding = check_number("padding", padding, lowest=0, whole=True)

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> the same."""
        batch, channels, height, width = images.shape
        device = images.device
        top = torch.randint(2 * self.padding + 1, (batch, 1), device=device)
        left = torch.randint(2 * self.padding + 1, (batch, 1), device=device)
        flip = torch.randint(2, (batch, 1), device=device, dtype=torch.bool)
        columns = torch.arange(width, device=device)
        rows = top + torch.arange(height, device=device)  # (batch, height), in the padded image
        columns = left + torch.where(flip, columns.flip(0), columns)  # (batch, width)
        # integer indices only: a boolean mask would make the GPU wait for the host
        return pad(images, [self.padding] * 4)[
            torch.arange(batch, device=device)[:, None, None, None],
            torch.arange(channels, device=device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


AUGMENTATIONS: dict[str, Callable[[], Callable[[Tensor], Tensor]] | None] = {"none": None, "crop_flip": CropFlip}


def augmentation(name: str) -> Callable[[Tensor], Tensor] | None:
    """The augmentation of that name: 'none' (None) or 'crop_flip'."""
    make = AUGMENTATIONS[check_choice("data.augmentation", name, AUGMENTATIONS)]
    return make() if make else None
