"""The activation of nsr's own networks, by its name in torch.nn or as a module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules import activation

from nsr.errors import InputError, did_you_mean, dotted_name, one_line

NAMES = {
    name.lower(): kind
    for name, kind in vars(activation).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module
}


def activation_builder(choice: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one activation module at each call; None is ReLU.

    Args:
        choice: the name of a class in torch.nn, 'relu', 'SiLU' or 'leaky_relu'; a class; or a module, which is copied.
    Errors:
        InputError: an unknown name, or a class that cannot be made without arguments.
    """
    if choice is None:
        return nn.ReLU
    if isinstance(choice, nn.Module):
        return partial(copy.deepcopy, choice)
    kind = NAMES.get(choice.lower().replace("_", "")) if isinstance(choice, str) else choice
    if not callable(kind):
        fix = "; it must be the name of an activation in torch.nn, such as silu, or '{_target_: mypackage.Activation}'"
        raise InputError(f"model.activation is {choice!r}{did_you_mean(choice, NAMES)}{fix}")
    try:
        made = kind()
    except Exception as error:  # of any class
        raise InputError(
            f"model.activation is {choice!r}, which cannot be made without arguments: {one_line(error)}; give them as "
            f"'{{_target_: {dotted_name(kind)}, NAME: VALUE}}'"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"model.activation is {choice!r}, which gives a {type(made).__name__}; it must be a module")
    return kind
