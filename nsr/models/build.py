"""Build any network with the arguments that its constructor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
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
    factory: Callable[..., nn.Module],
    settings: Mapping[str, Any],
    *,
    channels: int,
    classes: int,
    image_size: int,
    **further: Any,
) -> nn.Module:
    """Return the network that a configuration's model group describes.

    Args:
        factory: the class or function that `_target_` names.
        settings: its arguments.
        channels, classes, image_size: of the data, each passed only where the signature names it (or num_classes,
            in_channels, img_size, ...) and the settings do not set it; likewise `further`.
    Errors:
        InputError: in one line: settings that the signature does not name, what the constructor raised, a result that
            is no network, or one larger than this machine's memory.
    """
    facts = {"channels": channels, "classes": classes, "image_size": image_size}
    offered = {**further}
    for fact, names in SYNONYMS.items():
        if not any(name in settings for name in names):
            offered |= dict.fromkeys(names, facts[fact])
    net = check_memory(lambda: call_checked("model", factory, settings, **offered))
    if not isinstance(net, nn.Module):
        raise InputError(f"{dotted_name(factory)} returns {type(net).__name__}; it must be a torch.nn.Module")
    return net


def check_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what `build` returns; InputError before its tensors take more than this machine's memory."""
    with Allocations():
        return build()


class Allocations(TorchFunctionMode):
    """Refuse tensors that together exceed the physical memory, before they are allocated.

    Args:
        weights: of a checkpoint whose settings are followed: these tensors may take 4 times as much, and 256 MiB.
    """

    def __init__(self, weights: Any = None):
        super().__init__()
        self.size_bytes = 0
        self.most: float | None = None
        if weights is not None:  # by storage: a tensor of any shape may be a view of one number
            values = weights.values() if isinstance(weights, Mapping) else ()
            dense = [value for value in values if isinstance(value, Tensor) and value.layout == torch.strided]
            storages = [value.untyped_storage() for value in dense]
            self.most = 4 * sum({each.data_ptr(): each.nbytes() for each in storages}.values()) + 2**28

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in ALLOCATORS and kwargs.get("device") is None and kwargs.get("out") is None:
            try:
                self.size_bytes += function(*args, **{**kwargs, "device": "meta"}).nbytes
            except RuntimeError:  # more elements than torch can count
                self.size_bytes += 2**65
            if self.most is not None and self.size_bytes > self.most:
                raise InputError("the checkpoint's settings describe a network much larger than its weights: refused")
            check_fits_memory(
                "the network", self.size_bytes, "set a smaller size such as model.width or data.image_size"
            )
        return function(*args, **kwargs)
