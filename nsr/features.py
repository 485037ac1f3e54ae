"""Taps: the outputs of chosen layers, as they go on through the network, gradient included.

A tap is a forward hook. Three traps decide how it is written:
* a later operation may overwrite the tensor in place (ReLU(inplace=True), `out += shortcut`): a copy is kept, but only
  of the layers where a trial pass saw that happen, for a copy of every activation would cost a tenth of the memory;
* one module may be called several times in a pass: each call is an entry of its own, `layer1.0.relu#2`;
* torch.compile ignores hooks that come after compilation (pytorch #117758): `FeatureTaps` hooks the network before,
  and its features are outputs of the compiled graph.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nsr.errors import InputError, did_you_mean
from nsr.modes import batch_norm, network_mode

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


@dataclass
class _Recorder:
    """What the taps of one network share: whether they record, how often each module was called, what came out."""

    active: bool = False
    calls: dict[str, int] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)

    def restart(self) -> None:
        self.calls.clear()
        self.features.clear()


class _Tap:
    """A forward hook; an object and not a closure, so that a network with taps can be copied and pickled."""

    def __init__(self, recorder: _Recorder, name: str, copied: dict[int, bool] | None):
        self.recorder, self.name = recorder, name
        self.copied = copied  # {call that is wanted: whether it is copied}; None: every call, copied

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        recorder = self.recorder
        if not recorder.active:
            return
        call = recorder.calls.get(self.name, 0) + 1
        recorder.calls[self.name] = call
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor) and (self.copied is None or call in self.copied):
            entry = self.name if call == 1 else f"{self.name}#{call}"
            recorder.features[entry] = value.clone() if self.copied is None or self.copied[call] else value


class FeatureTaps:
    """A network with taps: `taps(images) -> (logits, {layer: features})`, in one pass.

    Args:
        net: the network; its taps stay until `remove`, silent in every pass but these.
        layers: what `find_layers` found.
        within: the part of `net` that the layers' names refer to (None: `net` itself).
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer], *, within: nn.Module | None = None):
        self.net = net
        self.layers = list(layers)
        self._recorder = _Recorder()
        copied: dict[str, dict[int, bool]] = {}
        for layer in self.layers:
            name, call = _name_and_call(layer.name)
            copied.setdefault(name, {})[call or 1] = layer.copied
        modules = _modules(within or net)
        self._handles = [
            modules[name].register_forward_hook(_Tap(self._recorder, name, calls)) for name, calls in copied.items()
        ]

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        recorder = self._recorder
        recorder.restart()
        recorder.active = True
        try:
            logits = self.net(images)
        finally:
            recorder.active = False
        features = dict(recorder.features)
        recorder.restart()  # the features belong to the caller; the network keeps none alive
        return logits, features

    def remove(self) -> None:
        """Takes the taps out of the network again."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def capture_features(net: nn.Module, layers: str | Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Inside `with capture_features(net, layers) as features:` each pass of `net` fills `features`.

    Args:
        net: any module; a compiled one too (its compiled code is dropped on the way in and out, so that it is
            traced with the taps and again without).
        layers: names or patterns (`layer1.*`, `*.relu`, `relu#2` for a second call); None: the activation modules,
            where there are none the children but the last.

    Yields:
        {layer: output} of the latest pass, in the order of the calls, with their gradient graph; each a copy, so that
        later operations in place do not reach it. Take `dict(features)` before the next pass. No hook stays.

    Errors:
        InputError: a pattern that matches no layer.
    """
    modules = _modules(net)
    names = list(modules)
    recorder = _Recorder(active=True)
    chosen: dict[str, dict[int, bool] | None] = {}
    if layers is None:
        activations = [name for name in names if isinstance(modules[name], ACTIVATIONS)]
        chosen = dict.fromkeys(activations or [name for name, _ in net.named_children()][:-1])
    for pattern in _as_list(layers):
        of_module, call = _name_and_call(pattern)
        matching = fnmatch.filter(names, of_module)
        if not matching:
            raise _no_match(pattern, names, net)
        for name in matching:
            calls = chosen.setdefault(name, {})
            chosen[name] = None if call is None or calls is None else {**calls, call: True}
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) for module in net.modules()
    )
    if compiled:
        torch.compiler.reset()
    handles = [modules[name].register_forward_hook(_Tap(recorder, name, copied)) for name, copied in chosen.items()]
    handles.append(_unwrapped(net).register_forward_pre_hook(_Restart(recorder)))
    try:
        yield recorder.features
    finally:
        for handle in handles:
            handle.remove()
        if compiled:
            torch.compiler.reset()


class _Restart:
    def __init__(self, recorder: _Recorder):
        self.recorder = recorder

    def __call__(self, module: nn.Module, inputs: object) -> None:
        self.recorder.restart()


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
    for pattern in _as_list(layers):
        of_module, call = _name_and_call(pattern)
        matching = {
            entry
            for entry in seen
            if fnmatch.fnmatchcase(entry.partition("#")[0], of_module) and call in (None, _name_and_call(entry)[1] or 1)
        }
        if not matching:
            raise _no_match(pattern, list(seen), within or net)
        chosen |= matching
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
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: observer.watch(name, module, output))
        for name, module in _modules(within).items()
    ]
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), network_mode(net, mode), batch_norm(net, "batch"):
            result = net(images)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    calls = {}
    for name, (module, value, version) in observer.calls.items():
        neuron_dim = -1 if value.ndim == 3 else 1
        layer = Layer(name, value.shape[neuron_dim], neuron_dim, copied=value._version != version)
        calls[name] = _Call(layer, module, value.ndim, is_output=value is result)
    return calls


def _default_layers(seen: dict[str, _Call], within: nn.Module) -> list[str]:
    inner = {name: call for name, call in seen.items() if not call.is_output}
    activations = [name for name, call in inner.items() if isinstance(call.module, ACTIVATIONS)]
    if any(inner[name].dimensions == 3 for name in activations):
        return _blocks(inner, within) or activations
    if activations:
        return activations
    children = {name for name, _ in within.named_children()}
    named = [name for name in inner if name.partition("#")[0] in children]
    if not named:
        raise InputError(f"no layer of {type(within).__name__} can be tapped: name some with layers=[...]")
    log.warning("%s has no activation modules: tapping its children %s", type(within).__name__, ", ".join(named))
    return named


def _blocks(seen: dict[str, _Call], within: nn.Module) -> list[str]:
    """The outermost repeated parts of a token model: siblings of one class with parts of their own."""
    blocks: list[str] = []
    for name, call in seen.items():
        parent = within.get_submodule(name.partition("#")[0].rpartition(".")[0])
        siblings = sum(type(child) is type(call.module) for child in parent.children())
        if call.dimensions == 3 and siblings >= 2 and any(True for _ in call.module.children()):
            blocks.append(name)
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def _modules(net: nn.Module) -> dict[str, nn.Module]:
    """The sub-modules by name, without what torch.compile puts in front of a name."""
    return {
        name.replace("_orig_mod.", ""): module for name, module in net.named_modules() if name not in ("", "_orig_mod")
    }


def _unwrapped(net: nn.Module) -> nn.Module:
    return getattr(net, "_orig_mod", net)


def _as_list(layers: str | Sequence[str] | None) -> list[str]:
    return [layers] if isinstance(layers, str) else list(layers or [])


def _name_and_call(entry: str) -> tuple[str, int | None]:
    """'relu#2' -> ('relu', 2); 'relu' -> ('relu', None)"""
    name, _, call = entry.partition("#")
    if call and not call.isdecimal():
        raise InputError(f"layer {entry!r}: what follows # is the number of the call in a pass, as in 'relu#2'")
    return name, int(call) if call else None


def _no_match(pattern: str, names: list[str], net: nn.Module) -> InputError:
    shown = ", ".join(repr(name) for name in names[:4])
    more = f", ... ({len(names) - 4} more)" if len(names) > 4 else ""
    name = type(_unwrapped(net)).__name__
    return InputError(
        f"no layer matches {pattern!r} in {name}{did_you_mean(pattern, names)}; it has {shown}{more}; "
        "layers takes names and patterns such as 'layer1.*'"
    )
