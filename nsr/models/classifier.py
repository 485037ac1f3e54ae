"""A network behind its normalization: attacks and epsilon stay in pixels in [0, 1]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nsr.errors import InputError, check_number, did_you_mean


class Normalize(nn.Module):
    """(images - mean) / std for each channel.

    Args:
        mean, std: one number per channel, in units of pixels in [0, 1]; std above 0.
    Errors:
        InputError: no numbers, a std that is not positive, lengths that differ, or images of other channels.
    """

    mean: Tensor  # (channel, 1, 1), like std
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        means, stds = _number_per_channel("mean", mean), _number_per_channel("std", std, above=0)
        if len(means) != len(stds):
            raise InputError(f"mean has {len(means)} numbers and std {len(stds)}; both need one per channel")
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width), pixels in [0, 1] -> the same shape, normalized."""
        if images.shape[1] != self.mean.shape[0]:  # broadcasting could hide it
            raise InputError(
                f"images have {images.shape[1]} channels, but the normalization has {self.mean.shape[0]}; "
                "take mean and std of this data set, or normalization=none"
            )
        return (images - self.mean) / self.std


def _number_per_channel(name: str, values: Iterable[float], *, above: float | None = None) -> list[float]:
    numbers = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not numbers:
        advice = "it must be a list with one number per channel, such as [0.5, 0.5, 0.5]"
        raise InputError(f"{name} is {values!r}; {advice}")
    return [float(check_number(f"{name}[{channel}]", value, above=above)) for channel, value in enumerate(numbers)]


class Classifier(nn.Module):
    """A network behind its normalization: what is trained, attacked and evaluated.

    Args:
        net: normalized images -> logits (batch, class), or a tuple, mapping or dataclass that contains them.
        mean, std: the data set's constants as `Normalize` takes them; both None: `net` takes pixels as they are.
        output: index or key of the logits where `net` returns more than a tensor, see `select_output`.
    Errors:
        InputError: only one of mean and std is given, or `Normalize` refuses them.
    """

    normalization: Any = None  # where mean and std come from, see nsr.models.normalization
    published_sizes: Any = None  # of images for weights of a known name, see nsr.models.preprocessing

    def __init__(
        self,
        net: nn.Module,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        *,
        output: int | str | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise InputError(f"mean is {mean} and std is {std}; give both, or neither for no normalization")
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.net, self.output = net, output

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width), pixels in [0, 1] -> logits (batch, class)."""
        return select_output(self.net(self.normalize(images)), self.output)


def select_output(result: Any, output: int | str | None = None) -> Tensor:
    """Return the logits in what a network returned; a tensor as it is, whatever `output` is.

    Args:
        result: a tensor, tuple, mapping, dataclass or other object.
        output: the index, key or attribute of the logits.
    Errors:
        InputError: there is no such tensor.
    """
    if isinstance(result, Tensor):
        return result
    found = {key: value for key, value in _outputs(result).items() if isinstance(value, Tensor)}
    if not isinstance(output, (int, str)) or isinstance(output, bool) or output not in found:
        kind, names = type(result).__name__, list(map(str, found))
        if not found:
            raise InputError(f"the network returns {kind} without a tensor; it must return logits (batch, class)")
        raise InputError(
            f"the network returns {kind}, and model.output is {output!r}; it must be one of the tensors "
            f"{', '.join(names)}{did_you_mean(output, names)}; set model.output={names[0]}"
        )
    return found[output]


def _outputs(result: Any) -> dict[int | str | None, Any]:
    """{index, key or attribute: value} of what a network returned."""
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, (tuple, list)):
        names = getattr(result, "_fields", ())  # of a named tuple
        return {**dict(zip(names, result, strict=False)), **dict(enumerate(result))}
    if dataclasses.is_dataclass(result):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return dict(getattr(result, "__dict__", {}))
