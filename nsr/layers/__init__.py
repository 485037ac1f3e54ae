"""Layers of a network: which outputs can be captured, their names, their neurons."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from nsr.compat import without_compilation
from nsr.errors import InputError, check_layers
from nsr.layers.activations import ACTIVATIONS
from nsr.layers.axes import Layer, batch_axis, neuron_axis
from nsr.layers.names import calls_matching, name_and_axis, name_and_call, no_match, some_names
from nsr.layers.passes import Call, named_modules, observe_calls, observe_if_taken
from nsr.modes import tracked_parameters

log = logging.getLogger(__name__)


def find_layers(
    net: nn.Module, images: Tensor, layers: str | Sequence[str] | None = None, *, root: nn.Module | None = None
) -> list[Layer]:
    """Find the layers to capture, in the order of their calls, and the axes of their outputs, by passes of the network.

    There is a pass in eval mode and one in train mode, one with an image more and one with smaller images (which a
    network may refuse). The network is left as it was: modes, buffers, gradients, hooks and random states.

    Args:
        net: the network, called as net(images).
        images: a few images of the right shape, (batch, channel, height, width); at least 2 for BatchNorm.
        layers: names or patterns, with the axis of the neurons where it is not the one inferred: 'rnn@2',
            'blocks.*@-1'. None: the modules whose output is an activation, each call its own entry; for token models,
            whose activations are (batch, token, dim), the blocks and the activations outside them; the blocks too
            where most activations are functions inside modules; without any, the named children. The network's own
            output is left out. So are modules that only a pass in train mode calls (an auxiliary head), those that no
            pass calls and those whose output has no batch axis; each is logged in one line.
        root: the module that the names refer to; None: `net`.

    Errors:
        InputError: a pattern without a layer; a named layer that gives no (batch, neuron, ...) tensor in eval mode; an
            axis that its output does not have; a traced or exported network, whose sub-modules are never called.
    """
    root = net if root is None else root
    check_not_traced(net, root)
    layers = None if layers is None else check_layers("layers", layers)
    with torch.inference_mode(False), torch.enable_grad(), tracked_parameters(net):
        passes = _run_passes(net, images, root)
        axes = _default_layers(passes, root) if layers is None else _named_layers(layers, passes, root)
        found, assumed = [], []
        for name in (name for name in passes.seen if name in axes):
            layer, is_known = _layer(name, passes, axes[name])
            found.append(layer)
            assumed += [] if is_known else [f"{name}@{layer.neuron_dim}"]
    if assumed:
        log.warning(
            "the axis of the neurons cannot be inferred, the usual one is taken: %s; where it is another one, name it "
            "after the @ in layers=[...]",
            some_names(assumed),
        )
    return found


class _Passes(NamedTuple):
    """The calls of modules in the passes of one network, {layer: call}."""

    seen: dict[str, Call]  # in eval mode, those whose output has a batch axis
    batch_dims: dict[str, int]
    unbatched: dict[str, Call]  # those whose output has none
    trained: dict[str, Call]  # in train mode
    smaller: dict[str, Call]  # for smaller images, where the network takes them
    activations: set[Any]  # all of the network, as nodes of the autograd graph


def _run_passes(net: nn.Module, images: Tensor, root: nn.Module) -> _Passes:
    """Run the passes that `find_layers` names; that in eval mode keeps its autograd graph."""
    calls, activations = observe_calls(net, images, root, mode="eval")
    with torch.no_grad():
        trained, _ = observe_calls(net, images, root, mode="train")
        if not calls and not trained and len(named_modules(root)) > 0:
            raise traced(root)
        more = observe_if_taken(net, torch.cat([images, images[:1]]), root)
        height, width = (max(1, size // 2) for size in images.shape[-2:])
        smaller = observe_if_taken(net, images[..., :height, :width], root) if images.ndim == 4 else {}
    batch_dims = {}
    for name, call in calls.items():
        other = more[name].output if name in more else None
        axis = batch_axis(call.output, len(images), other, len(images) + 1) if name in more or not more else None
        if axis is not None:
            batch_dims[name] = axis
    seen = {name: calls[name] for name in batch_dims}
    unbatched = {name: call for name, call in calls.items() if name not in seen}
    return _Passes(seen, batch_dims, unbatched, trained, smaller, activations)


def _layer(name: str, passes: _Passes, axis: int | None) -> tuple[Layer, bool]:
    """Return the layer with its neurons on an axis (None: the one inferred), and whether that is known."""
    call, batch_dim, is_known = passes.seen[name], passes.batch_dims[name], True
    shape = tuple(call.output.shape)
    if axis is None:
        other = passes.smaller[name].output if name in passes.smaller else None
        axis, is_known = neuron_axis(call.module, call.output, batch_dim, other)
    if not -len(shape) <= axis < len(shape) or axis % len(shape) == batch_dim:
        raise InputError(
            f"layer {name!r} cannot have its neurons on axis {axis}: its output is {shape}, the batch on axis "
            f"{batch_dim}; after the @ name another of its axes"
        )
    axis %= len(shape)
    # in-place dropout writes in training alone
    copied = call.copied or (name in passes.trained and passes.trained[name].copied)
    is_last = len(shape) > 2 and axis == len(shape) - 1
    return Layer(name, shape[axis], -1 if is_last else axis, copied, batch_dim), is_known


def _named_layers(entries: Sequence[str], passes: _Passes, root: nn.Module) -> dict[str, int | None]:
    """Return {layer: the axis that the user gives, or None} of names and patterns."""
    axes: dict[str, int | None] = {}
    for entry in entries:
        pattern, axis = name_and_axis(entry)
        for name in _matching(pattern, passes, root):
            axes[name] = axes.get(name) if axis is None else axis
    return axes


def _default_layers(passes: _Passes, root: nn.Module) -> dict[str, None]:
    """Return the layers found by default, and log what they leave out."""
    kind, modules = type(without_compilation(root)).__name__, named_modules(root)
    inner = {name: call for name, call in passes.seen.items() if not call.is_output}
    names, hooked = _activations(inner)
    without_batch, _ = _activations(passes.unbatched)
    functions = passes.activations.difference(
        hooked, *(call.activations for call in (*passes.seen.values(), *passes.unbatched.values()))
    )
    blocks = _blocks({name: call for name, call in inner.items() if call.output.ndim == 3}, root)
    if not blocks and len(hooked) < len(functions):
        blocks = _blocks(inner, root)
    outside = [name for name in names if not any(f"{name}.".startswith(f"{block}.") for block in blocks)]
    chosen = dict.fromkeys([*blocks, *outside])
    if not chosen:
        children = default_children(root)
        chosen = dict.fromkeys(name for name in inner if name_and_call(name)[0] in children)
        if not chosen:
            raise InputError(f"{kind} has no layer that can be captured by default; name some with layers=[...]")
        log.warning("%s has no activation modules: using its children %s", kind, ", ".join(chosen))
        _log_left_out(children, passes)
        return chosen
    kinds = (*{type(inner[name].module) for name in blocks}, *(() if blocks else ACTIVATIONS))
    _log_left_out([*without_batch, *(name for name, module in modules.items() if isinstance(module, kinds))], passes)
    if functions and not any(inner[name].output.ndim == 3 for name in blocks):
        log.warning(
            "%s: the default layers are %d of its %d activations%s; the others are functions inside modules: "
            "layers=[...] hooks outputs of modules",
            *(kind, len(outside), len(hooked) + len(functions)),
            f" and the outputs of its {len(blocks)} blocks" if blocks else "",
        )
    return chosen


def _activations(calls: Mapping[str, Call]) -> tuple[list[str], set[Any]]:
    """Return the calls whose output is an activation, of several with one output the first, and all activations."""
    names: list[str] = []
    nodes: set[Any] = set()
    for name, call in calls.items():
        if not nodes.issuperset(call.activations) or (not call.activations and isinstance(call.module, ACTIVATIONS)):
            names.append(name)
        nodes.update(call.activations)
    return names, nodes


def default_children(root: nn.Module) -> list[str]:
    """Return the names of the children, the layers of a network without activation modules."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in root.modules()):
        raise traced(root)  # its activations exist, but not as modules that are called
    return [name for name, _ in without_compilation(root).named_children()]


def _blocks(calls: Mapping[str, Call], root: nn.Module) -> list[str]:
    """Return the outermost repeated parts of a network: siblings of one class with sub-modules of their own."""
    blocks: list[str] = []
    for name, call in calls.items():
        parent = without_compilation(root).get_submodule(name_and_call(name)[0].rpartition(".")[0])
        siblings = sum(type(child) is type(call.module) for child in parent.children())
        if siblings >= 2 and type(call.module) is not nn.Sequential and next(call.module.children(), None) is not None:
            blocks.append(name)
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def _matching(pattern: str, passes: _Passes, root: nn.Module) -> list[str]:
    """Return the layers that a user's pattern means, InputError where a pass in eval mode reaches none of them."""
    names = list(passes.seen)
    matching = calls_matching(pattern, names)
    others = [name for name in calls_matching(pattern, [*passes.unbatched, *passes.trained]) if name not in passes.seen]
    if matching:
        _log_left_out(others, passes)
        return matching
    if others and others[0] in passes.unbatched:
        shape = tuple(passes.unbatched[others[0]].output.shape)
        raise InputError(
            f"layer {others[0]!r} has an output without a batch axis: {shape}, of which no axis alone follows the "
            f"number of images; name another layer, such as {some_names(names)}"
        )
    if others:
        raise InputError(
            f"layer {others[0]!r} runs in train mode only, as an auxiliary head does; sensitivities are measured in "
            "eval mode: leave it out of layers"
        )
    module, _ = name_and_call(pattern)
    uncalled = fnmatch.filter(named_modules(root), module)
    if uncalled and not calls_matching(module, names):
        raise InputError(
            f"layer {uncalled[0]!r} gives no (batch, neuron, ...) tensor in a forward pass, which may not call it; "
            f"name another layer, such as {some_names(names)}"
        )
    raise no_match(pattern, names, root)


def _log_left_out(names: Sequence[str], passes: _Passes) -> None:
    """Log the layers that cannot be captured in eval mode, in one line a reason."""
    captured = passes.seen.keys() | {name_and_call(name)[0] for name in passes.seen}
    left_out = [name for name in dict.fromkeys(names) if name not in captured]
    unbatched = [name for name in left_out if name in passes.unbatched]
    training = [name for name in left_out if name in passes.trained.keys() - passes.unbatched.keys()]
    never = [name for name in left_out if name not in passes.trained.keys() | passes.unbatched.keys()]
    if unbatched:
        log.warning("layers whose output has no batch axis are left out: %s", some_names(unbatched))
    if training:
        log.warning("layers that run in train mode only are left out: %s", some_names(training))
    if never:
        log.warning("layers that no forward pass calls are left out: %s", some_names(never))


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
