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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.layers import (
    ACTIVATIONS,
    Layer,
    as_list,
    is_compiled,
    name_and_call,
    named_modules,
    no_match,
    without_compilation,
)


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
        _forget_compiled_code(net)
        copied: dict[str, dict[int, bool]] = {}
        for layer in self.layers:
            name, call = name_and_call(layer.name)
            copied.setdefault(name, {})[call or 1] = layer.copied
        modules = named_modules(within or net)
        self._handles = [
            modules[name].register_forward_hook(_Tap(self._recorder, name, calls)) for name, calls in copied.items()
        ]

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        recorder = self._recorder
        recorder.restart()
        recorder.active = True
        try:
            logits = self.net(images)
            if len(recorder.features) < len(self.layers):
                missing = [layer.name for layer in self.layers if layer.name not in recorder.features]
                raise RuntimeError(
                    f"no features of {', '.join(missing)}: the pass does not reach them, or runs code compiled "
                    "without the taps; with torch._dynamo.config.skip_nnmodule_hook_guards = False hooks are looked at"
                )
            return logits, dict(recorder.features)
        finally:
            recorder.active = False
            recorder.restart()  # the features belong to the caller; the network keeps none alive

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
    modules = named_modules(net)
    names = list(modules)
    recorder = _Recorder(active=True)
    chosen: dict[str, dict[int, bool] | None] = {}
    if layers is None:
        activations = [name for name in names if isinstance(modules[name], ACTIVATIONS)]
        chosen = dict.fromkeys(activations or [name for name, _ in without_compilation(net).named_children()][:-1])
    for pattern in as_list(layers):
        of_module, call = name_and_call(pattern)
        matching = fnmatch.filter(names, of_module)
        if not matching:
            raise no_match(pattern, names, net)
        for name in matching:
            calls = chosen.setdefault(name, {})
            chosen[name] = None if call is None or calls is None else {**calls, call: True}
    if not chosen:
        raise InputError(
            f"{type(without_compilation(net)).__name__} has no activation modules: name some of {', '.join(names)}"
        )
    compiled = _forget_compiled_code(net)
    handles = [modules[name].register_forward_hook(_Tap(recorder, name, copied)) for name, copied in chosen.items()]
    handles.append(without_compilation(net).register_forward_pre_hook(_Restart(recorder)))
    try:
        yield recorder.features
    finally:
        for handle in handles:
            handle.remove()
        if compiled:
            _forget_compiled_code(net)


class _Restart:
    def __init__(self, recorder: _Recorder):
        self.recorder = recorder

    def __call__(self, module: nn.Module, inputs: object) -> None:
        self.recorder.restart()


def _forget_compiled_code(net: nn.Module) -> bool:
    """Whether parts of `net` are compiled; their code is dropped, for it would not see that taps came or went."""
    compiled = is_compiled(net)
    if compiled:
        torch.compiler.reset()
    return compiled
