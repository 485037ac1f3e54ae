"""One forward pass of a network as calls of its modules, with their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nsr.compat import tensor_version, without_compilation_prefix
from nsr.layers.activations import activations_in, activations_of
from nsr.layers.names import call_name
from nsr.modes import batch_norm_mode, eager_mode, network_mode, unchanged_buffers


@dataclass(frozen=True)
class Call:
    """One call of a module in a pass."""

    module: nn.Module
    output: Tensor
    activations: Sequence[Any]  # that the output is the result of, as nodes of the autograd graph
    copied: bool
    is_output: bool


def observe_calls(net: nn.Module, images: Tensor, root: nn.Module, *, mode: str) -> tuple[dict[str, Call], set[Any]]:
    """Return each call of a module in one pass, and the activations of the whole network."""
    observed: dict[str, tuple[nn.Module, Tensor, list[Any], int | None]] = {}
    counts: dict[str, int] = {}

    def observe(name: str, module: nn.Module, inputs: object, output: object) -> None:
        value = main_tensor(output)
        if value is not None and value.ndim >= 2:
            counts[name] = counts.get(name, 0) + 1
            activations = activations_of(module, list(tensors_in(inputs)), value)
            observed[call_name(name, counts[name])] = (module, value, activations, tensor_version(value))

    devices = [images.device] if images.device.type == "cuda" else []
    with ExitStack() as hooks, torch.random.fork_rng(devices):
        for name, module in named_modules(root).items():
            hooks.callback(module.register_forward_hook(partial(observe, name)).remove)
        images = images.detach().clone()
        with eager_mode(), unchanged_buffers(net), network_mode(net, mode), batch_norm_mode(net, "batch"):
            outputs = list(tensors_in(net(images)))
    calls = {
        name: Call(module, value, nodes, tensor_version(value) != version, any(value is each for each in outputs))
        for name, (module, value, nodes, version) in observed.items()
    }
    return calls, activations_in(outputs)


def observe_if_taken(net: nn.Module, images: Tensor, root: nn.Module) -> dict[str, Call]:
    """Return the calls of a pass in eval mode, none where the network does not take images of this shape."""
    try:
        return observe_calls(net, images, root, mode="eval")[0]
    except Exception:  # whatever its own code raises
        return {}


def main_tensor(output: object) -> Tensor | None:
    """Return a module's output tensor, of a tuple the first entry; None where that is no tensor."""
    value = output[0] if isinstance(output, tuple) and output else output
    return value if isinstance(value, Tensor) else None


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a network's output: a tensor, or a tuple, list, mapping or dataclass of such."""
    if isinstance(value, Tensor):
        yield value
        return
    value = vars(value) if is_dataclass(value) else value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for part in parts:
        yield from tensors_in(part)


def named_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return the sub-modules by name, without torch.compile's prefix; those of TorchScript take no hooks."""
    modules = {without_compilation_prefix(name): module for name, module in net.named_modules()}
    return {name: module for name, module in modules.items() if name and not isinstance(module, torch.jit.ScriptModule)}
