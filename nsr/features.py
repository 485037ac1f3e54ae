"""Features: the outputs of chosen layers, as the network uses them, with their gradients.

Hooks return them. Three facts decide how:
* a later operation may overwrite an output in place (ReLU(inplace=True), `out += shortcut`): then a copy is kept, and
  only then, for a copy of every activation would cost a tenth of the memory;
* one module may be called several times in a pass: each call is an entry of its own, `layer1.0.relu#2`;
* torch.compile ignores hooks that come after compilation (pytorch #117758): `FeatureExtractor` hooks the network
  before it, and its features are outputs of the compiled graph; `capture_features` runs the network as written.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nsr.compat import tensor_version, without_compilation
from nsr.errors import InputError
from nsr.layers import check_not_traced, default_children, traced
from nsr.layers.activations import ACTIVATIONS
from nsr.layers.axes import Layer
from nsr.layers.names import call_name, call_pattern, calls_matching, name_and_call, no_match, some_names
from nsr.layers.passes import main_tensor, named_modules, tensors_in
from nsr.modes import eager_mode


class _Recorder:
    """State shared by the hooks of one network: calls and outputs of each module in the current pass."""

    def __init__(self, layers: Iterable[Layer] = (), *, active: bool = False):
        self.layers = {layer.name: layer for layer in layers}  # those whose outputs become (batch, neuron, ...)
        self.active = active
        self.calls: dict[str, int] = {}
        self.features: dict[str, Tensor] = {}

    def record(self, layer: str, value: Tensor) -> None:
        value = self.layers[layer].to_features(value)
        self.features[layer] = value.clone() if self.layers[layer].copied else value

    def restart(self) -> None:
        self.calls.clear()
        self.features.clear()


class _Hook:
    """A forward hook; an object and not a closure, so that a hooked network can be copied and pickled."""

    def __init__(self, recorder: _Recorder, module: str, wanted: Collection[int] | None):
        self.recorder, self.module, self.wanted = recorder, module, wanted  # calls by number; None: all

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        recorder = self.recorder
        if not recorder.active:
            return
        call = recorder.calls.get(self.module, 0) + 1
        recorder.calls[self.module] = call
        value = main_tensor(output)
        if value is not None and (self.wanted is None or call in self.wanted):
            recorder.record(call_name(self.module, call), value)


class FeatureExtractor:
    """A hooked network: `extractor(images) -> (logits, {layer: (batch, neuron, ...)})`, in one pass.

    Build it before `torch.compile`, which ignores later hooks. Outputs with `Layer.copied`, which a later operation
    overwrites, are copied; all others are the network's own tensors.

    Args:
        net: the network. Its hooks stay until `remove`, and do nothing in every other pass.
        layers: the result of `find_layers`.
        root: the module that the layers' names refer to; None: `net`.

    Errors:
        InputError: a layer that `root` does not have; at a call, a layer that gives no output.
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer], *, root: nn.Module | None = None):
        self.net = net
        self.layers = list(layers)
        self._recorder = _Recorder(self.layers)
        modules = named_modules(net if root is None else root)
        wanted: dict[str, set[int]] = {}
        for layer in self.layers:
            name, call = name_and_call(layer.name)
            if name not in modules:
                raise no_match(name, list(modules), net)
            wanted.setdefault(name, set()).add(call or 1)
        self._handles = [
            modules[name].register_forward_hook(_Hook(self._recorder, name, frozenset(calls)))
            for name, calls in wanted.items()
        ]

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the network's output and {layer: (batch, neuron, ...)} on images (batch, channel, height, width)."""
        recorder = self._recorder
        recorder.restart()
        recorder.active = True
        try:
            logits = self.net(images)
            if missing := [layer.name for layer in self.layers if layer.name not in recorder.features]:
                raise InputError(
                    f"no output of {some_names(missing)}: the pass does not call them, or runs code compiled before "
                    "they were hooked; build the FeatureExtractor before the first compiled pass of the network, or "
                    "call torch.compiler.reset()"
                )
            return logits, dict(recorder.features)
        finally:
            recorder.active = False
            recorder.restart()  # the features belong to the caller; the network keeps none alive

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def capture_features(
    net: nn.Module, layers: str | Sequence[str] | Sequence[Layer] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with the outputs of layers at each pass: `with capture_features(net, "layer1.*") as features`.

    Args:
        net: any module. A compiled one runs as written inside, so that hooks fire; nothing is compiled again.
        layers: names or patterns (`layer1.*`, `*.relu`, `relu#2` for a second call); None: the activation modules,
            where there are none the children but the last. Or the result of `find_layers`.

    Yields:
        {layer: output} of the latest pass of `net`, in the order of the calls, with their gradient graph: as the module
        returns it for names, (batch, neuron, ...) for layers of `find_layers`. Outputs that an operation in the pass
        writes into and the network's own output are copied. Take `dict(features)` before the next pass. No hook stays.

    Errors:
        InputError: a pattern that matches no layer, or none that a pass of `net` calls; a traced or exported network;
            an in-place write by code that torch.overrides does not show, such as a custom operator.
    """
    check_not_traced(net, net)
    modules = named_modules(net)
    entries: list[str | Layer] = [layers] if isinstance(layers, str) else list(layers or [])
    found = [entry for entry in entries if isinstance(entry, Layer)]
    patterns = [entry if isinstance(entry, str) else call_pattern(entry.name) for entry in entries]
    if layers is None:
        activations = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
        chosen: dict[str, set[int] | None] = dict.fromkeys(activations or default_children(net)[:-1])
    else:
        chosen = _chosen_calls(net, list(modules), patterns)
    original = without_compilation(net)
    if not chosen:
        raise InputError(f"{type(original).__name__} has no activation modules; name some of {some_names(modules)}")
    recorder = _CopyOnWrite(net, patterns, found)
    with ExitStack() as stack:
        stack.enter_context(eager_mode())
        if not recorder.copies_all:
            stack.enter_context(recorder)
        for name, wanted in chosen.items():
            stack.callback(modules[name].register_forward_hook(_Hook(recorder, name, wanted)).remove)
        stack.callback(original.register_forward_pre_hook(recorder.begin_pass).remove)
        stack.callback(original.register_forward_hook(recorder.end_pass).remove)
        yield recorder.features


def _chosen_calls(net: nn.Module, modules: Sequence[str], patterns: Sequence[str]) -> dict[str, set[int] | None]:
    """Return the modules that match the patterns, with the wanted calls in a pass (None: all)."""
    chosen: dict[str, set[int] | None] = {}
    for pattern in patterns:
        of_module, call = name_and_call(pattern)
        matching = fnmatch.filter(modules, of_module)
        if not matching:
            raise no_match(pattern, modules, net)
        for name in matching:
            calls = chosen.setdefault(name, set())
            chosen[name] = None if call is None or calls is None else {*calls, call}
    return chosen


class _CopyOnWrite(_Recorder, TorchFunctionMode):
    """A recorder that copies a feature just before an operation of the pass writes into its memory.

    A function mode receives each call of a torch function before it is made. A write that no function's name shows,
    such as a custom operator's, raises an error at the end of the pass: the version of the tensor has changed. In a
    network with COPIED modules every feature is copied.
    """

    def __init__(self, net: nn.Module, patterns: Sequence[str], layers: Sequence[Layer]):
        TorchFunctionMode.__init__(self)
        _Recorder.__init__(self, layers, active=True)
        self.net, self.patterns = net, patterns
        self.copies_all = any(isinstance(module, COPIED) for module in net.modules())
        self.in_pass = False
        self.shared: dict[int, dict[str, int | None]] = {}  # {address: {feature that is no copy: its version}}

    def begin_pass(self, module: nn.Module, inputs: object) -> None:
        self.restart()
        self.shared.clear()
        self.in_pass = True

    def record(self, layer: str, value: Tensor) -> None:
        if layer in self.layers:
            value = self.layers[layer].to_features(value)
        address = memory_address(value)
        if address is None or self.copies_all or not self.in_pass:
            self.features[layer] = value.clone()
        else:
            self.features[layer] = value
            self.shared.setdefault(address, {})[layer] = tensor_version(value)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.shared:
            self._copy(written_by(function, args, kwargs))
        return function(*args, **kwargs)

    def _copy(self, tensors: Iterable[Tensor]) -> None:
        """Copy the features that share memory with the tensors."""
        for tensor in tensors:
            for layer in self.shared.pop(memory_address(tensor) or 0, {}):
                value = self.features[layer]
                with torch.set_grad_enabled(value.requires_grad):  # the write may be made under no_grad
                    self.features[layer] = value.clone()

    def end_pass(self, module: nn.Module, inputs: object, output: object) -> None:
        self._copy(tensors_in(output))  # the caller may write into it
        versions = {layer: version for entries in self.shared.values() for layer, version in entries.items()}
        changed = [layer for layer, version in versions.items() if tensor_version(self.features[layer]) != version]
        if changed:
            raise InputError(
                f"{some_names(changed)}: overwritten in place by code that torch.overrides does not show, so the "
                "output is lost; name other layers, or make the operation after them work out of place"
            )
        self.in_pass = False
        self.shared.clear()
        for pattern in self.patterns:
            if not calls_matching(pattern, list(self.features)):
                mode = "train" if module.training else "eval"
                raise InputError(
                    f"layer {pattern!r} gives no tensor in a forward pass in {mode} mode, which may not call it; "
                    f"captured are {some_names(list(self.features)) or 'none'}"
                )
        if not self.features:
            raise traced(self.net)


# modules whose fused attention a function mode switches off, or whose operations it does not receive
COPIED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, torch.jit.ScriptModule)


def written_by(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that a call of a torch function writes into, recognized by the function's name."""
    name = getattr(function, "__name__", "").partition(".")[0]  # add_.Tensor -> add_
    in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith(("__i", "__set"))
    if in_place or kwargs.get("inplace"):
        yield from tensors_in(args[0] if args else list(kwargs.values()))
    yield from tensors_in(kwargs.get("out"))


def memory_address(tensor: Tensor) -> int | None:
    """Return where the memory of a tensor and its views begins; None where it has no such memory (sparse)."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None
