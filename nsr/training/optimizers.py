"""The optimizer of a run, from a factory of torch's or the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn


def make_optimizer(factory: Callable[..., torch.optim.Optimizer], net: nn.Module) -> torch.optim.Optimizer:
    """Call `factory` on the network's parameters, or on the network itself, for parameter groups of one's own.

    Args:
        factory: parameters -> optimizer, such as a partial of torch.optim.SGD; where its first parameter is called
            `net`, net -> optimizer.
    """
    first = next(iter(inspect.signature(factory).parameters), "")
    return factory(net if first == "net" else net.parameters())
