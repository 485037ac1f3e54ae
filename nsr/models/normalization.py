"""The normalisation as the model's first layer: attacks and epsilon stay in pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nsr.errors import InputError, check_number


class Normalize(nn.Module):
    """(images - mean) / std, a channel at a time.

    Args:
        mean: one number a channel, in units of pixels in [0, 1].
        std: one number a channel, above 0, in the same units.
    Errors:
        InputError: no numbers, a std that is not positive, or lengths that differ.
    """

    mean: Tensor  # (channel, 1, 1)
    std: Tensor  # (channel, 1, 1)

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        means = _a_number_per_channel("mean", mean)
        stds = _a_number_per_channel("std", std, above=0)
        if len(means) != len(stds):
            raise InputError(f"mean has {len(means)} numbers and std {len(stds)}; both need one a channel")
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width), pixels in [0, 1] -> the same shape, normalised.

        Errors:
            InputError: the number of channels is not that of mean and std, which broadcasting could hide.
        """
        if images.shape[1] != self.mean.shape[0]:
            raise InputError(
                f"images have {images.shape[1]} channels, but the normalisation has {self.mean.shape[0]}; "
                "take mean and std of this data set, or normalization=none"
            )
        return (images - self.mean) / self.std


def _a_number_per_channel(name: str, values: Iterable[float], *, above: float | None = None) -> list[float]:
    numbers = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not numbers:
        raise InputError(f"{name} is {values!r}; it must be a list with one number a channel, such as [0.5, 0.5, 0.5]")
    return [float(check_number(f"{name}[{channel}]", value, above=above)) for channel, value in enumerate(numbers)]


class Classifier(nn.Module):
    """A network behind its normalisation: what is trained, attacked and evaluated.

    Args:
        net: normalised images -> logits (batch, class).
        mean, std: the data set's constants as `Normalize` takes them; both None: `net` takes pixels as they are.
    Errors:
        InputError: only one of mean and std is given, or `Normalize` refuses them.
    """

    def __init__(self, net: nn.Module, mean: Iterable[float] | None = None, std: Iterable[float] | None = None) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise InputError(f"mean is {mean} and std is {std}; give both, or neither for no normalisation")
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width), pixels in [0, 1] -> logits (batch, class)."""
        return self.net(self.normalize(images))
