"""The layers of a network: which can be tapped, what they are called, how many neurons they have."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nsr.errors import InputError, did_you_mean
from nsr.modes import batch_norm, network_mode, unchanged_buffers

log = logging.getLogger(__name__)

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Threshold, nn.Tanhshrink, nn.Softshrink),
    *(nn.Hardshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.GLU),
)


@dataclass(frozen=True)
class Layer:
    """One tapped output of a network."""

    name: str  # the module's name, with #2 for its second call in a pass
    neurons: int
    neuron_dim: int = 1  # -1 for tokens (batch, token, dim)
    copied: bool = False  # something later works on it in place


def find_layers(
    net: nn.Module,
    images: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    within: nn.Module | None = None,
) -> list[Layer]:
    """The layers to tap, in the order of their calls, found by a trial pass; the network is left as it was.

    Args:
        net: the network, called as net(images).
        images: a few images of the right shape, (batch, channel, height, width); at least 2 for BatchNorm.
        layers: names or patterns; None: the activation modules, each call its own entry; where there are none the
            outputs of the named children; for token models, whose activations are (batch, token, dim), the outputs of
            the blocks. The network's own output is left out.
        within: the part of `net` that names refer to (None: `net`).

    Errors:
        InputError: a pattern that matches nothing, or a chosen output that is no (batch, neuron, ...) tensor.
    """
    seen = _observe(net, images, within or net, mode="eval")
    # dropout in place works in training alone
    written = {name for name, call in _observe(net, images, within or net, mode="train").items() if call.layer.copied}
    seen = {
        name: replace(call, layer=replace(call.layer, copied=call.layer.copied or name in written))
        for name, call in seen.items()
    }
    if layers is None:
        return [seen[name].layer for name in _default_layers(seen, within or net)]
    chosen: set[str] = set()
    for pattern in as_list(layers):
        matching = calls_matching(pattern, list(seen))
        if not matching:
            raise no_match(pattern, list(seen), within or net)
        chosen.update(matching)
    return [call.layer for name, call in seen.items() if name in chosen]


@dataclass(frozen=True)
class _Call:
    layer: Layer
    module: nn.Module
    dimensions: int
    is_output: bool


class _Observer:
    def __init__(self) -> None:
        self.calls: dict[str, tuple[nn.Module, Tensor, int]] = {}

    def watch(self, name: str, module: nn.Module, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor) and value.ndim >= 2:
            call = 1 + sum(entry.partition("#")[0] == name for entry in self.calls)
            self.calls[name if call == 1 else f"{name}#{call}"] = (module, value, value._version)


def _observe(net: nn.Module, images: Tensor, within: nn.Module, *, mode: str) -> dict[str, _Call]:
    """Every module's outputs in one pass: what they look like and whether they were overwritten afterwards."""
    observer = _Observer()
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: observer.watch(name, module, output))
        for name, module in named_modules(within).items()
    ]
    devices = [images.device] if images.device.type == "cuda" else []
    # as written, for code that was compiled before does not see these hooks
    stance = torch.compiler.set_stance("force_eager") if is_compiled(net) else nullcontext()
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices), stance:
            images = images.clone()
            with unchanged_buffers(net), network_mode(net, mode), batch_norm(net, "batch"):
                result = net(images)
    finally:
        for handle in handles:
            handle.remove()
    calls = {}
    for name, (module, value, version) in observer.calls.items():
        neuron_dim = -1 if value.ndim == 3 else 1
        layer = Layer(name, value.shape[neuron_dim], neuron_dim, copied=value._version != version)
        calls[name] = _Call(layer, module, value.ndim, is_output=value is result)
    return calls


def _default_layers(seen: dict[str, _Call], within: nn.Module) -> list[str]:
    inner = {name: call for name, call in seen.items() if not call.is_output}
    if blocks := _blocks(inner, within):
        return blocks
    if activations := [name for name, call in inner.items() if isinstance(call.module, ACTIVATIONS)]:
        return activations
    kind = type(without_compilation(within)).__name__
    children = {name for name, _ in without_compilation(within).named_children()}
    named = [name for name in inner if name.partition("#")[0] in children]
    if not named:
        raise InputError(f"no layer of {kind} can be tapped by default: name some with layers=[...]")
    log.warning("%s has no activation modules: tapping its children %s", kind, ", ".join(named))
    return named


def _blocks(seen: dict[str, _Call], within: nn.Module) -> list[str]:
    """The outermost repeated parts of a token model: siblings of one class with parts of their own."""
    blocks: list[str] = []
    for name, call in seen.items():
        parent = without_compilation(within).get_submodule(name.partition("#")[0].rpartition(".")[0])
        siblings = sum(type(child) is type(call.module) for child in parent.children())
        if call.dimensions == 3 and siblings >= 2 and any(True for _ in call.module.children()):
            blocks.append(name)
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def named_modules(net: nn.Module) -> dict[str, nn.Module]:
    """The sub-modules by name, without what torch.compile puts in front of a name."""
    return {
        name.replace("_orig_mod.", ""): module for name, module in net.named_modules() if name not in ("", "_orig_mod")
    }


def without_compilation(net: nn.Module) -> nn.Module:
    """The module that torch.compile wraps; any other as it is."""
    return getattr(net, "_orig_mod", net)


def is_compiled(net: nn.Module) -> bool:
    """Whether torch.compile has been asked for any part of `net`."""
    return any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) for module in net.modules())


def as_list(layers: str | Sequence[str] | None) -> list[str]:
    """One pattern, several or none, as a list."""
    return [layers] if isinstance(layers, str) else list(layers or [])


def name_and_call(entry: str) -> tuple[str, int | None]:
    """'relu#2' -> ('relu', 2); 'relu' -> ('relu', None)"""
    name, _, call = entry.partition("#")
    if call and not call.isdecimal():
        raise InputError(f"layer {entry!r}: what follows # is the number of the call in a pass, as in 'relu#2'")
    return name, int(call) if call else None


def calls_matching(pattern: str, entries: Sequence[str]) -> list[str]:
    """The entries that a pattern means: one call of a module (`relu#2`), or all of them where it names none."""
    of_module, call = name_and_call(pattern)
    parts = [(entry, *name_and_call(entry)) for entry in entries]
    return [
        entry for entry, name, number in parts if fnmatch.fnmatchcase(name, of_module) and call in (None, number or 1)
    ]


def no_match(pattern: str, names: Sequence[str], net: nn.Module) -> InputError:
    """The error of a pattern that matches none of `names`."""
    shown = ", ".join(repr(name) for name in names[:4])
    more = f", ... ({len(names) - 4} more)" if len(names) > 4 else ""
    name = type(without_compilation(net)).__name__
    return InputError(
        f"no layer matches {pattern!r} in {name}{did_you_mean(pattern, names)}; it has {shown}{more}; "
        "layers takes names and patterns such as 'layer1.*'"
    )
