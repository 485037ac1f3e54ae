"""Layers of a network: which outputs can be captured, their names, how many neurons they have."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, is_dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from nsr.compat import tensor_version, without_compilation, without_compilation_prefix
from nsr.errors import InputError, did_you_mean
from nsr.modes import batch_norm_mode, eager_mode, network_mode, unchanged_buffers

log = logging.getLogger(__name__)

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Threshold, nn.Tanhshrink, nn.Softshrink),
    *(nn.Hardshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.GLU),
)
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Layer:
    """One output of a network: (batch, neuron), (batch, neuron, height, width) or (batch, token, neuron)."""

    name: str  # the module's name, with #2 for its second call in a pass
    neurons: int
    neuron_dim: int = 1  # -1 for tokens (batch, token, dim)
    copied: bool = False  # a later in-place operation overwrites it


def find_layers(
    net: nn.Module, images: Tensor, layers: str | Sequence[str] | None = None, *, root: nn.Module | None = None
) -> list[Layer]:
    """Find the layers to capture, in the order of their calls, by a pass in eval mode and one in train mode.

    The network is left as it was: modes, buffers, gradients, hooks and random states.

    Args:
        net: the network, called as net(images).
        images: a few images of the right shape, (batch, channel, height, width); at least 2 for BatchNorm.
        layers: names or patterns; None: the activation modules, each call its own entry; without any, the named
            children; for token models, whose activations are (batch, token, dim), the blocks. The network's own output
            is left out. So are modules that only a pass in train mode calls (an auxiliary head), and modules that no
            pass calls; both are logged in one line.
        root: the module that the names refer to; None: `net`.

    Errors:
        InputError: a pattern without a layer; a named layer that gives no (batch, neuron, ...) tensor in eval mode; a
            traced or exported network, whose sub-modules are never called.
    """
    root = net if root is None else root
    check_not_traced(net, root)
    seen, trained = (_observe(net, images, root, mode=mode) for mode in ("eval", "train"))
    if not seen and not trained and len(named_modules(root)) > 0:
        raise traced(root)
    if layers is None:
        chosen, candidates = _default_layers(seen, root)
        called = {name_and_call(name)[0] for name in seen}
        _log_left_out([name for name in candidates if name not in called], trained)
    else:
        chosen = {name for pattern in as_list(layers) for name in _matching(pattern, seen, trained, root)}
    # in-place dropout writes in training alone
    overwritten = {name for calls in (seen, trained) for name, call in calls.items() if call.layer.copied}
    return [replace(call.layer, copied=name in overwritten) for name, call in seen.items() if name in chosen]


@dataclass(frozen=True)
class _Call:
    layer: Layer
    module: nn.Module
    is_output: bool


def _observe(net: nn.Module, images: Tensor, root: nn.Module, *, mode: str) -> dict[str, _Call]:
    """Return each call of a module in one pass, with whether its output is overwritten later."""
    observed: dict[str, tuple[nn.Module, Tensor, int | None]] = {}
    counts: dict[str, int] = {}

    def observe(name: str, module: nn.Module, inputs: object, output: object) -> None:
        value = main_tensor(output)
        if value is not None and value.ndim >= 2:
            counts[name] = counts.get(name, 0) + 1
            observed[call_name(name, counts[name])] = (module, value, tensor_version(value))

    devices = [images.device] if images.device.type == "cuda" else []
    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        for name, module in named_modules(root).items():
            hooks.callback(module.register_forward_hook(partial(observe, name)).remove)
        images = images.clone()
        with eager_mode(), unchanged_buffers(net), network_mode(net, mode), batch_norm_mode(net, "batch"):
            outputs = list(tensors_in(net(images)))
    calls = {}
    for name, (module, value, version) in observed.items():
        neuron_dim = -1 if value.ndim == 3 else 1
        layer = Layer(name, value.shape[neuron_dim], neuron_dim, copied=tensor_version(value) != version)
        calls[name] = _Call(layer, module, is_output=any(value is output for output in outputs))
    return calls


def _default_layers(seen: Mapping[str, _Call], root: nn.Module) -> tuple[Collection[str], list[str]]:
    """Return the layers found by default, and the names of all modules of their kind."""
    modules = named_modules(root)
    inner = {name: call for name, call in seen.items() if not call.is_output}
    if blocks := _blocks(inner, root):
        kinds = {type(inner[name].module) for name in blocks}
        return blocks, [name for name, module in modules.items() if type(module) in kinds]
    if activations := [name for name, call in inner.items() if isinstance(call.module, ACTIVATIONS)]:
        return activations, [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
    children = default_children(root)
    named = [name for name in inner if name_and_call(name)[0] in children]
    kind = type(without_compilation(root)).__name__
    if not named:
        raise InputError(f"{kind} has no layer that can be captured by default; name some with layers=[...]")
    log.warning("%s has no activation modules: using its children %s", kind, ", ".join(named))
    return named, children


def default_children(root: nn.Module) -> list[str]:
    """Return the names of the children, the layers of a network without activation modules."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in root.modules()):
        raise traced(root)  # its activations exist, but not as modules that are called
    return [name for name, _ in without_compilation(root).named_children()]


def _blocks(seen: Mapping[str, _Call], root: nn.Module) -> list[str]:
    """Return the outermost repeated parts of a token model: siblings of one class with sub-modules of their own."""
    blocks: list[str] = []
    for name, call in seen.items():
        parent = without_compilation(root).get_submodule(name.partition("#")[0].rpartition(".")[0])
        siblings = sum(type(child) is type(call.module) for child in parent.children())
        if call.layer.neuron_dim == -1 and siblings >= 2 and any(True for _ in call.module.children()):
            blocks.append(name)
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def _matching(pattern: str, seen: Mapping[str, _Call], trained: Mapping[str, _Call], root: nn.Module) -> list[str]:
    """Return the layers that a user's pattern means, InputError where a pass in eval mode reaches none of them."""
    matching = calls_matching(pattern, list(seen))
    training = [name for name in calls_matching(pattern, list(trained)) if name not in seen]
    if matching:
        _log_left_out(training, trained)
        return matching
    if training:
        raise InputError(
            f"layer {training[0]!r} runs in train mode only, as an auxiliary head does; sensitivities are measured in "
            "eval mode: leave it out of layers"
        )
    module, _ = name_and_call(pattern)
    uncalled = fnmatch.filter(named_modules(root), module)
    if uncalled and not calls_matching(module, list(seen)):
        raise InputError(
            f"layer {uncalled[0]!r} gives no (batch, neuron, ...) tensor in a forward pass, which may not call it; "
            f"name another layer, such as {some_names(list(seen))}"
        )
    raise no_match(pattern, list(seen), root)


def _log_left_out(names: Sequence[str], trained: Collection[str]) -> None:
    """Log the layers that a pass in eval mode does not reach, in one line a reason."""
    training, never = [name for name in names if name in trained], [name for name in names if name not in trained]
    if training:
        log.warning("layers that run in train mode only are left out: %s", some_names(training))
    if never:
        log.warning("layers that no forward pass calls are left out: %s", some_names(never))


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


def check_not_traced(net: nn.Module, root: nn.Module) -> None:
    """Raise InputError where `root` was traced or scripted, or a part of `net` exported: no hook fires there."""
    if isinstance(root, torch.jit.ScriptModule) or any(_is_exported(module) for module in net.modules()):
        raise traced(root)


def _is_exported(module: nn.Module) -> bool:
    """Return whether a graph holds modules with parameters and calls none, as torch.export makes it."""
    if not isinstance(module, fx.GraphModule):
        return False
    holders = {name.rpartition(".")[0] for name, _ in module.named_parameters()} - {""}
    return bool(holders) and holders.isdisjoint(node.target for node in module.graph.nodes if node.op == "call_module")


def traced(root: nn.Module) -> InputError:
    """Return the error of a network whose sub-modules are not called."""
    return InputError(
        f"{type(without_compilation(root)).__name__} calls none of its sub-modules in a forward pass, as a traced, "
        "scripted or exported network; hooks cannot capture its layers: pass the original nn.Module"
    )


def named_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return the sub-modules by name, without torch.compile's prefix; those of TorchScript take no hooks."""
    modules = {without_compilation_prefix(name): module for name, module in net.named_modules()}
    return {name: module for name, module in modules.items() if name and not isinstance(module, torch.jit.ScriptModule)}


def as_list(layers: str | Sequence[str] | None) -> list[str]:
    """Return one pattern, several or none as a list."""
    return [layers] if isinstance(layers, str) else list(layers or [])


def call_name(module: str, call: int) -> str:
    """('relu', 2) -> 'relu#2'; ('relu', 1) -> 'relu'"""
    return module if call == 1 else f"{module}#{call}"


def name_and_call(entry: str) -> tuple[str, int | None]:
    """'relu#2' -> ('relu', 2); 'relu' -> ('relu', None)"""
    name, _, call = entry.partition("#")
    if call and not call.isdecimal():
        raise InputError(f"layer {entry!r}: what follows # is the number of the call in a pass, as in 'relu#2'")
    return name, int(call) if call else None


def calls_matching(pattern: str, entries: Sequence[str]) -> list[str]:
    """Return the entries that a pattern means: one call of a module (`relu#2`), or all calls where it names none."""
    of_module, call = name_and_call(pattern)
    parts = [(entry, *name_and_call(entry)) for entry in entries]
    return [
        entry for entry, name, number in parts if fnmatch.fnmatchcase(name, of_module) and call in (None, number or 1)
    ]


def matching_names(setting: str, patterns: Sequence[str] | None, hooked: Sequence[str]) -> list[str]:
    """Return the hooked layers that the patterns of a setting mean, in their order; None: all of them."""
    for pattern in patterns or ():
        if not calls_matching(pattern, hooked):
            raise InputError(
                f"{setting} has {pattern!r}, which matches no hooked layer{did_you_mean(pattern, hooked)}; hooked are "
                f"{', '.join(hooked)}; layers=[...] hooks others"
            )
    chosen = hooked if patterns is None else {name for each in patterns for name in calls_matching(each, hooked)}
    return [name for name in hooked if name in chosen]


def no_match(pattern: str, names: Sequence[str], net: nn.Module) -> InputError:
    """Return the error of a pattern that matches none of `names`."""
    return InputError(
        f"no layer matches {pattern!r} in {type(without_compilation(net)).__name__}{did_you_mean(pattern, names)}; it "
        f"has {some_names(names)}; layers takes names and patterns such as 'layer1.*'"
    )


def some_names(names: Collection[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f", ... ({len(names) - NAMES_SHOWN} more)" if len(names) > NAMES_SHOWN else ""
    return ", ".join(repr(name) for name in list(names)[:NAMES_SHOWN]) + more
