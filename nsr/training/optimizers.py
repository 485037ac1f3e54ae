"""The optimizer of a network: one for all parameters, or with settings of their own for groups of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from nsr.errors import InputError, did_you_mean, dotted_name, one_line
from nsr.layers.names import some_names
from nsr.models import Classifier

log = logging.getLogger(__name__)
EXAMPLE = "{conv1: {lr: 0.001}, bn*: {weight_decay: 0}}"


def make_optimizer(factory: Callable[..., torch.optim.Optimizer], net: nn.Module) -> torch.optim.Optimizer:
    """Call `factory` on the network if its first parameter is called `net`, else on the network's parameters."""
    return factory(net if _takes_network(factory) else net.parameters())


def _takes_network(factory: Callable[..., Any]) -> bool:
    return next(iter(inspect.signature(factory).parameters), "") == "net"


def grouped(
    net: nn.Module, *, groups: Mapping[str, Mapping[str, Any]], optimizer: Callable[..., torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Make an optimizer in which some parameters have settings of their own; frozen ones are left out.

    The parameters without settings of their own, if any, are its first group.

    Args:
        groups: {name or pattern: settings}, of parameters, or of modules for all parameters in them, behind the
            normalization of a Classifier; a parameter has the settings of all patterns that match it.
        optimizer: parameters, settings -> optimizer.
    Errors:
        InputError: no such groups; a pattern that matches nothing; two values of one setting for a parameter; settings
            that the optimizer refuses.
    """
    kind = dotted_name(optimizer)
    if _takes_network(optimizer):
        raise InputError(f"optimizer.groups is given, but {kind} takes the network: leave groups out")
    net = net.net if isinstance(net, Classifier) else net
    made: list[tuple[dict[str, Any], list[nn.Parameter]]] = [({}, [])]
    for parameter, own in _own_settings(net, groups).items():
        group = next((group for settings, group in made if settings == own), None)
        if group is None:
            made.append((own, group := []))
        group.append(parameter)
    parts: list[dict[str, Any]] = []
    for own, parameters in made:
        try:
            parts += optimizer(parameters, **own).param_groups if parameters else []
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer.groups: {kind} refuses {own}: {one_line(error)}") from error
    return optimizer(parts)


def _own_settings(net: nn.Module, groups: Mapping[str, Mapping[str, Any]]) -> dict[nn.Parameter, dict[str, Any]]:
    """Return {parameter: the settings of all patterns that match it}, without frozen parameters; these are logged."""
    if not isinstance(groups, Mapping) or not all(isinstance(own, Mapping) and own for own in groups.values()):
        raise InputError(f"optimizer.groups is {groups!r}; it must be {{PATTERN: settings}}, such as {EXAMPLE}")
    named = dict(net.named_parameters(remove_duplicate=False))  # a shared one under each of its names
    found: dict[nn.Parameter, dict[str, Any]] = {parameter: {} for parameter in named.values()}
    for pattern, settings in groups.items():
        matching = [name for name in named if any(fnmatchcase(part, str(pattern)) for part in _around(name))]
        if not matching:
            hint = did_you_mean(pattern, {part for name in named for part in _around(name)})
            raise InputError(f"optimizer.groups: no parameter matches {pattern!r}{hint}; there are {some_names(named)}")
        for name, (key, value) in ((name, entry) for name in matching for entry in settings.items()):
            if (other := found[named[name]].setdefault(str(key), value)) != value:
                raise InputError(
                    f"optimizer.groups gives {name} two values of {key}, {other!r} and {value!r} by {pattern!r}; "
                    "give patterns that do not overlap"
                )
    if frozen := [name for name, parameter in named.items() if not parameter.requires_grad]:
        log.info("optimizer.groups: %d frozen parameters are left out: %s", len(frozen), some_names(frozen))
    return {parameter: own for parameter, own in found.items() if parameter.requires_grad}


def _around(name: str) -> list[str]:
    """Return 'layer1', 'layer1.0', 'layer1.0.weight' for the last: the modules around a parameter, and itself."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
