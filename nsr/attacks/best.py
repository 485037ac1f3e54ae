"""The best iterate of each image of an attack."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from nsr.attacks.balls import per_image
from nsr.losses import precise

Places = Tensor | slice  # of the images of a pass in the batch; ALL: every one
ALL = slice(None)


class BestIterates:
    """The best iterate of each image so far; nothing here waits for the device."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.losses = torch.full((len(images),), -inf, dtype=precise(images), device=images.device)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def consider(self, images: Tensor, losses: Tensor, success: Tensor, *, places: Places) -> None:
        """Keep the better iterates; `success` is a flag, or the fraction of passes that are fooled."""
        fooled, before = success > 0.5, self.fooled[places]
        better = torch.where(fooled == before, losses > self.losses[places], fooled)
        self.images[places] = torch.where(per_image(better, images), images, self.images[places])
        self.losses[places] = torch.where(better, losses, self.losses[places]).to(self.losses.dtype)
        self.fooled[places] = fooled | before
