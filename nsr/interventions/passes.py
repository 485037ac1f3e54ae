"""One forward pass as calls of sub-modules: recording their outputs, and substituting them in a later pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nsr.compat import without_compilation
from nsr.layers.passes import main_tensor, tensors_in


@dataclass
class Call:
    """One call of a sub-module in a pass."""

    number: int  # in the order in which calls begin
    module: nn.Module
    parent: int | None
    blank: Tensor | None = None  # as the output for one image, without memory; None where that is not a tensor
    batch_first: bool = False


class Step(NamedTuple):
    """A call in a patched pass."""

    call: Call
    how: str  # 'run'; 'reuse': return its kept output; 'skip': return a placeholder, for nothing reads the output


@dataclass
class Trace:
    """The calls of one pass, with copies of outputs by the number of the call."""

    net: nn.Module
    kept: Collection[int] | None = None  # numbers of the calls whose outputs are kept; None: all
    hooked: Collection[int] | None = None  # the same for features
    calls: list[Call] = field(default_factory=list)
    outputs: dict[int, Tensor] = field(default_factory=dict)  # as `forward` returns them, where the batch comes first
    features: dict[int, Tensor] = field(default_factory=dict)  # after the module's own hooks; of a tuple the first
    unfinished: list[int] = field(default_factory=list)

    def run(self, images: Tensor) -> Tensor:
        """Record the pass: images (batch, ...) -> logits (batch, class)."""
        handles = []
        try:
            for module in self.net.modules():
                if module is self.net or without_compilation(module) is not module:
                    continue
                handles.append(module.register_forward_pre_hook(self._begin))
                # before the module's other hooks, which see the output again in a patched pass; and after them
                first = module.register_forward_hook(lambda *call: self._keep(call[2], len(images)), prepend=True)
                handles += [first, module.register_forward_hook(self._end)]
            return self.net(images)
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, inputs: object) -> None:
        number = len(self.calls)
        self.calls.append(Call(number, module, self.unfinished[-1] if self.unfinished else None))
        self.unfinished.append(number)

    def _keep(self, output: object, batch: int) -> None:
        if not isinstance(output, Tensor):
            return
        call = self.calls[self.unfinished[-1]]
        scalar = output.new_full((), torch.nan) if output.is_floating_point() else output.new_zeros(())
        call.blank = scalar.expand(1, *output.shape[1:])
        call.batch_first = output.ndim > 0 and len(output) == batch
        if call.batch_first and (self.kept is None or call.number in self.kept):
            self.outputs[call.number] = output.clone()

    def _end(self, module: nn.Module, inputs: object, output: object) -> None:
        number, value = self.unfinished.pop(), main_tensor(output)
        if value is not None and (self.hooked is None or number in self.hooked):
            self.features[number] = value.clone()


@contextmanager
def substitution(steps: Sequence[Step], output_of: Callable[[Step], Tensor], patched: Tensor) -> Iterator[None]:
    """Make the pass inside follow the steps; the module of the last step returns `patched`.

    Args:
        steps: the calls in their order, without those inside a call that is not run.
        output_of: returns the output of a step that is not run.
        patched: the output of the last step.
    """
    remaining, is_patched = list(reversed(steps)), False

    def substitute(module: nn.Module, forward: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
        if not remaining:
            return forward(*inputs, **settings)
        step = remaining.pop()
        if step.call.module is not module:
            raise RuntimeError("the pass calls its modules in another order than before")
        return forward(*inputs, **settings) if step.how == "run" else output_of(step)

    def patch(module: nn.Module, inputs: object, output: Any) -> Any:
        nonlocal is_patched
        if is_patched or remaining:
            return None
        is_patched = True
        return (patched, *output[1:]) if isinstance(output, tuple) else patched

    modules = list(dict.fromkeys(step.call.module for step in steps))
    before = [vars(module).get("forward") for module in modules]
    handle = steps[-1].call.module.register_forward_hook(patch)  # the last hook, so that no other changes its result
    try:
        for module in modules:
            module.forward = partial(substitute, module, module.forward)
        yield
        if not is_patched:
            raise RuntimeError("the pass did not reach its last step")
    finally:
        handle.remove()
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


class ReadTracker(TorchFunctionMode):
    """Context that records which watched tensors a function of torch receives; it sees none inside TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self._watched: dict[int, tuple[int, Tensor]] = {}  # kept alive, so that no other tensor takes their memory

    def watch(self, number: int, tensor: Tensor) -> Tensor:
        """Watch `tensor` under a number."""
        self._watched[tensor.untyped_storage().data_ptr()] = (number, tensor)
        return tensor

    def __torch_function__(self, operation: Any, types: Any, inputs: Any = (), settings: Any = None) -> Any:
        for tensor in tensors_in((inputs, settings)):
            if entry := self._watched.get(tensor.untyped_storage().data_ptr()):
                self.seen.add(entry[0])
        return operation(*inputs, **(settings or {}))
