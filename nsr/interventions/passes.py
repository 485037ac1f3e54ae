"""One pass of a network seen as calls of its sub-modules: what they give, and what is given in their place.

Nothing here knows of layers or neurons; `nsr.interventions.patching` puts these parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Call:
    """One call of a sub-module in a pass."""

    number: int  # in the order in which calls begin
    module: nn.Module
    parent: int | None
    shape: torch.Size | None = None  # of its output; None where that is no tensor
    batch_first: bool = False
    nothing: Tensor | None = None  # a scalar like its output, not a number

    def blank(self, batch: int) -> Tensor:
        """An output that nobody reads: of the right shape, without memory."""
        assert self.shape is not None
        assert self.nothing is not None
        return self.nothing.expand(batch, *self.shape[1:])


@dataclass
class Trace:
    """The calls of one pass, and copies of the outputs that are wanted of it; None: of all.

    Args:
        net: its sub-modules are watched, those that torch.compile wraps and not the wrappers.
        kept: numbers of the calls whose outputs are wanted as `forward` gives them, where the batch comes first.
        tapped: those whose outputs are wanted as they go on, after the module's hooks; of a tuple the first.
    """

    net: nn.Module
    kept: set[int] | None = None
    tapped: Mapping[int, str] | None = None
    calls: list[Call] = field(default_factory=list)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    features: dict[int, Tensor] = field(default_factory=dict)
    unfinished: list[int] = field(default_factory=list)

    def run(self, images: Tensor) -> Tensor:
        """The pass: images (batch, ...) -> logits (batch, class)."""
        handles = []
        try:
            for module in self.net.modules():
                if module is self.net or hasattr(module, "_orig_mod"):
                    continue
                handles.append(module.register_forward_pre_hook(self._begin))
                # before the module's other hooks, which see the output again in a replay; and after them
                first = module.register_forward_hook(lambda *call: self._keep(call[2], len(images)), prepend=True)
                handles += [first, module.register_forward_hook(lambda *call: self._end(call[2]))]
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
        number = self.unfinished[-1]
        batch_first = output.ndim > 0 and len(output) == batch
        nothing = output.new_full((), torch.nan) if output.is_floating_point() else output.new_zeros(())
        self.calls[number] = replace(self.calls[number], shape=output.shape, batch_first=batch_first, nothing=nothing)
        if batch_first and (self.kept is None or number in self.kept):
            self.outputs[number] = output.clone()

    def _end(self, output: object) -> None:
        number = self.unfinished.pop()
        value = output[0] if isinstance(output, tuple) and output else output
        if isinstance(value, Tensor) and (self.tapped is None or number in self.tapped):
            self.features[number] = value.clone()


class Step(NamedTuple):
    """What becomes of a call in a replay."""

    call: Call
    how: str  # 'run'; 'kept': its output is given; 'blank': neither, for nobody reads it


class Substitution:
    """In `with Substitution(...)` the pass does the steps, and the last call's module gives `mixed`.

    Args:
        steps: the calls in their order, those inside of one that is not run left out.
        given: the output of a step that is not run.
        mixed: the output of the last.
    """

    def __init__(self, steps: Sequence[Step], given: Callable[[Step], Tensor], mixed: Tensor):
        self.steps, self.given, self.mixed = steps, given, mixed
        self.position = 0
        self.done = False  # whether `mixed` was given
        self._before: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> Substitution:
        # the last hook of the module: what it gives goes on
        self._handle = self.steps[-1].call.module.register_forward_hook(self._replace)
        for module in dict.fromkeys(step.call.module for step in self.steps):
            self._before.append((module, module.__dict__.get("forward")))
            module.forward = self._in_place_of(module, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
        for module, forward in self._before:
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.forward = forward

    def _in_place_of(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def substitute(*inputs: Any, **settings: Any) -> Any:
            if self.position == len(self.steps):
                return forward(*inputs, **settings)
            step = self.steps[self.position]
            if step.call.module is not module:
                raise RuntimeError("the pass calls its modules in another order than before")
            self.position += 1
            return forward(*inputs, **settings) if step.how == "run" else self.given(step)

        return substitute

    def _replace(self, module: nn.Module, inputs: object, output: Any) -> Any:
        if self.done or self.position < len(self.steps):
            return None
        self.done = True
        return (self.mixed, *output[1:]) if isinstance(output, tuple) else self.mixed


class Reads(TorchFunctionMode):
    """In `with Reads() as reads` it is noted which of the tensors given out any function of torch is handed.

    TorchScript's inner operations do not show here; a tensor that only these read is taken for unread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self._given: dict[int, tuple[int, Tensor]] = {}  # kept alive, so that no other tensor takes their place

    def watch(self, number: int, tensor: Tensor) -> Tensor:
        """`tensor`, from now on known by its number."""
        self._given[tensor.untyped_storage().data_ptr()] = (number, tensor)
        return tensor

    def __torch_function__(self, operation: Any, types: Any, inputs: Any = (), settings: Any = None) -> Any:
        for leaf in tree_leaves((inputs, settings)):
            if isinstance(leaf, Tensor) and (entry := self._given.get(leaf.untyped_storage().data_ptr())):
                self.seen.add(entry[0])
        return operation(*inputs, **(settings or {}))
