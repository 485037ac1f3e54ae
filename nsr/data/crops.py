"""Crops and shifts of a whole batch on its device, drawn for every image independently.

torchvision's RandomCrop gives every image of a batch the same draw (pytorch/vision#2929). Draws come from torch's
default generator of the images' device, which the training step seeds; nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsr.errors import InputError, check_choice, check_number


class CropFlip:
    """Random crop after padding, and a horizontal flip with probability 1/2.

    Args:
        padding: pixels added on every side before the crop.
        padding_mode: 'constant', black pixels, or 'reflect', the image mirrored at its edge.
    Errors:
        InputError: a setting out of range, on the first call also a reflection wider than the image.
    """

    def __init__(self, padding: int = 4, padding_mode: str = "constant") -> None:
        self.padding = check_number("padding", padding, lowest=0, whole=True)
        self.padding_mode = check_choice("padding_mode", padding_mode, ["constant", "reflect"])

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> the same."""
        batch, _, height, width = images.shape
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            got = f"padding is {self.padding} for images of {height} x {width} pixels"
            raise InputError(f"{got}; with padding_mode=reflect it must be below {min(height, width)}")
        device = images.device
        top = torch.randint(2 * self.padding + 1, (batch, 1), device=device)
        left = torch.randint(2 * self.padding + 1, (batch, 1), device=device)
        flip = torch.randint(2, (batch, 1), device=device, dtype=torch.bool)
        columns = torch.arange(width, device=device)
        rows = top + torch.arange(height, device=device)  # (batch, height), in the padded image
        columns = left + torch.where(flip, columns.flip(0), columns)  # (batch, width)
        return _gathered(pad(images, [self.padding] * 4, mode=self.padding_mode), rows, columns)


class CropShift:
    """Cropshift: a random part of the image, moved to a random place of a black one of the same size.

    With the strength s drawn uniformly from `lowest` to `highest` pixels, and w from 0 to s, the part lacks w columns
    and s - w rows; where it is taken from and where it is put are uniform too.
    Source: Li and Spratling, ICLR 2023, section 4.1; the strengths 0 to 10 for CIFAR-10 (0 to 8 for SVHN) are their
    code's.

    Args:
        lowest, highest: bounds of the strength, both included; `highest` below height and width.
    Errors:
        InputError: bounds out of range, on the first call also for the image.
    """

    def __init__(self, lowest: int = 0, highest: int = 10) -> None:
        self.lowest = check_number("lowest", lowest, lowest=0, whole=True)
        self.highest = check_number("highest", highest, lowest=lowest, whole=True)

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> the same."""
        batch, _, height, width = images.shape
        if self.highest >= min(height, width):
            got = f"the highest strength of cropshift is {self.highest} for images of {height} x {width} pixels"
            raise InputError(f"{got}; it must be below {min(height, width)} (highest of nsr.data.CropShift)")

        def up_to(most: Tensor) -> Tensor:
            """Draw a whole number from 0 to `most` for each image: (batch, 1)."""
            return (torch.rand(batch, 1, device=images.device) * (most + 1)).long()

        strength = torch.randint(self.lowest, self.highest + 1, (batch, 1), device=images.device)
        fewer_columns = up_to(strength)
        places = []
        for length, fewer in ((height, strength - fewer_columns), (width, fewer_columns)):
            source, target = up_to(fewer), up_to(fewer)
            place = torch.arange(length, device=images.device) - target  # (batch, length), in the part
            is_part = (place >= 0) & (place < length - fewer)
            places.append(((place + source).clamp(0, length - 1), is_part))
        (rows, in_rows), (columns, in_columns) = places
        is_part = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return _gathered(images, rows, columns) * is_part


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at rows (batch, height) and columns (batch, width) of each image, in all channels."""
    # integer indices only: a boolean mask would make the GPU wait for the host
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
