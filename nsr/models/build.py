"""Build any network with the arguments that its constructor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nsr.errors import InputError, call_checked, check_fits_memory, dotted_name

# names under which constructors ask for the facts about the data
SYNONYMS = {
    "channels": ("channels", "in_channels", "num_channels", "n_channels", "in_chans"),
    "classes": ("classes", "num_classes", "n_classes"),
    "image_size": ("image_size", "img_size"),
}
ALLOCATORS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


def build_network(
    factory: Callable[..., nn.Module], settings: Mapping[str, Any], *, channels: int, classes: int, image_size: int
) -> nn.Module:
    """Return the network that a configuration's model group describes.

    Args:
        factory: the class or function that `_target_` names.
        settings: its arguments.
        channels, classes, image_size: of the data, each passed only where the signature names it (or num_classes,
            in_channels, img_size, ...) and the settings do not set it.
    Errors:
        InputError: in one line: settings that the signature does not name, what the constructor raised, a result that
            is no network, or one larger than this machine's memory.
    """
    offered: dict[str, int] = {}
    for fact, value in (("channels", channels), ("classes", classes), ("image_size", image_size)):
        if not any(name in settings for name in SYNONYMS[fact]):
            offered |= dict.fromkeys(SYNONYMS[fact], value)
    with _Allocations():
        net = call_checked("model", factory, settings, **offered)
    if not isinstance(net, nn.Module):
        raise InputError(f"{dotted_name(factory)} returns {type(net).__name__}; it must be a torch.nn.Module")
    return net


class _Allocations(TorchFunctionMode):
    """Refuse tensors that together exceed the physical memory, before they are allocated."""

    size_bytes = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in ALLOCATORS and kwargs.get("device") is None and kwargs.get("out") is None:
            try:
                self.size_bytes += function(*args, **{**kwargs, "device": "meta"}).nbytes
            except RuntimeError:  # more elements than torch can count
                self.size_bytes += 2**65
            fix = "set a smaller size such as model.width or data.image_size"
            check_fits_memory("the network", self.size_bytes, fix)
        return function(*args, **kwargs)
