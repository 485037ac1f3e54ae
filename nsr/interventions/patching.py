"""A layer's output replaced in a pass whose part before that layer is not run again.

Of any network, without a graph of it: a trial pass notes which calls of sub-modules are finished when the layer gives
its output. The outermost of these are kept; a later pass gets the kept outputs in their place, repeated so that many
sets of neurons are intervened on at once, and runs what is left: what comes after the layer, and shortcuts around it.
What nothing but skipped modules reads is not kept at all.

Four traps decide how it is written:
* an operation in place may reach a kept tensor: it is cloned when it is kept and copied when it is given out;
* a module may be called several times: calls are told apart by their order in the pass, not by their module;
* a module may give something else than a tensor with the batch first: then it is run, and what is in it is kept;
* the network may do what the trial did not show: a replay that replaces nothing must give the plain logits, else the
  layer's passes are run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.interventions.passes import Call, Reads, Step, Substitution, Trace
from nsr.layers import Layer, is_compiled, name_and_call, named_modules
from nsr.modes import full_precision, network_mode

TRIAL_IMAGES = 3  # a first dimension of 3 that is not the batch is rarer than one of 1, 2 or 4
IMAGES = -1  # the number under which the images themselves are watched


class Recording(NamedTuple):
    """What one pass leaves for the replays of its images."""

    images: Tensor
    logits: Tensor  # (batch, class)
    features: dict[str, Tensor]  # {layer: its output}, (batch, neuron, ...)
    outputs: dict[int, Tensor]  # {number of the call: its output}, the batch first

    def select(self, index: Tensor) -> Recording:
        """The same of some of the images."""
        features = {layer: value[index] for layer, value in self.features.items()}
        outputs = {number: value[index] for number, value in self.outputs.items()}
        return Recording(self.images[index], self.logits[index], features, outputs)


class _Path(NamedTuple):
    steps: list[Step]  # the last is the layer's own
    reads_images: bool


class Replay:
    """Passes of `net` with a layer's output replaced.

    Args:
        net: images (batch, ...) -> logits (batch, class); it is run in eval mode and float32, and left as it was.
        layers: of `find_layers`.
        images: a few, for the trial pass.
        within: the part of `net` that the layers' names refer to (None: `net` itself).

    Errors:
        InputError: a layer whose output cannot be replaced, or a network that depends on chance or on the batch.
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer], images: Tensor, *, within: nn.Module | None = None):
        self.net = net
        self.layers = {layer.name: layer for layer in layers}
        with self._as_evaluated(images.device):
            trial = Trace(net)
            logits = trial.run(images[:TRIAL_IMAGES])
            self._calls = trial.calls
            self._targets = {self._call_of(layer, named_modules(within or net)): layer.name for layer in layers}
            features = {name: trial.features[number] for number, name in self._targets.items()}
            recording = Recording(images[:TRIAL_IMAGES], logits, features, trial.outputs)
            self._paths = {name: self._path(number, recording) for number, name in self._targets.items()}
        self._kept = {step.call.number for path in self._paths.values() for step in path.steps if step.how == "kept"}

    def record(self, images: Tensor) -> Recording:
        """A plain pass, and what its replays need.

        Errors:
            InputError: the pass calls other modules than the trial did.
        """
        trace = Trace(self.net, self._kept, self._targets)
        with self._as_evaluated(images.device):
            logits = trace.run(images)
        if [call.module for call in trace.calls] != [call.module for call in self._calls]:
            raise InputError(
                f"{type(self.net).__name__} calls other modules for some images than for others; interventions "
                "need a network that does the same for each image"
            )
        features = {self._targets[number]: value for number, value in trace.features.items()}
        return Recording(images, logits, features, trace.outputs)

    def logits(self, recording: Recording, layer: str, replacement: Tensor, masks: Tensor) -> Tensor:
        """The logits of the recorded images where the neurons of each set give something else.

        Args:
            recording: of `record`.
            layer: its name.
            replacement: what the neurons give instead, of the shape of the layer's output or broadcast to it.
            masks: (set, neuron) bool, True where a neuron's output is replaced.

        Returns:
            (set, batch, class).
        """
        with self._as_evaluated(masks.device):
            return self._replayed(self._paths[layer], recording, layer, replacement, masks)

    # ---------------------------------------------------------------- the way to a layer

    def _call_of(self, layer: Layer, modules: dict[str, nn.Module]) -> int:
        """The number of the call that gives the layer's output."""
        name, which = name_and_call(layer.name)
        return [call.number for call in self._calls if call.module is modules[name]][(which or 1) - 1]

    def _path(self, target: int, recording: Recording) -> _Path:
        """What is run, kept and left out before a layer's output: the least that gives the plain logits."""
        layer = self._targets[target]
        keeping = _Path(self._steps(target, lambda call: call.batch_first), reads_images=True)
        whole = _Path(self._steps(target, lambda call: False), reads_images=True)
        for candidate in (lambda: self._without_unread(keeping, layer, recording), lambda: keeping, lambda: whole):
            try:
                path = candidate()
                if self._gives_plain_logits(path, layer, recording):
                    return path
            except (RuntimeError, TypeError, ValueError):  # shapes that the repeated outputs do not fit
                continue
        raise InputError(
            f"layer {layer!r}: its output cannot be replaced in a pass of {type(self.net).__name__}, which draws at "
            "random, lets images of a batch influence each other, runs the layer in fused code or gives its output "
            "without a batch; name another layer"
        )

    def _steps(self, target: int, keep: Callable[[Call], bool]) -> list[Step]:
        """The calls until the layer's own, in order, without those inside a kept one."""
        around, call = set(), self._calls[target]
        while call.parent is not None:
            around.add(call.parent)
            call = self._calls[call.parent]
        steps: list[Step] = []
        inside: set[int | None] = set()
        for call in self._calls[:target]:
            if call.parent in inside:
                inside.add(call.number)
            elif call.number not in around and keep(call):
                inside.add(call.number)
                steps.append(Step(call, "kept"))
            else:
                steps.append(Step(call, "run"))
        last = self._calls[target]
        return [*steps, Step(last, "run" if last.shape is None else "blank")]

    def _without_unread(self, path: _Path, layer: str, recording: Recording) -> _Path:
        """The path without those kept outputs that only skipped modules are handed."""
        reads = Reads()
        self._replayed(path, recording, layer, recording.features[layer], self._no_neuron(layer, recording), reads)
        unread = {step.call.number for step in path.steps if step.how == "kept"} - reads.seen
        steps = [Step(step.call, "blank") if step.call.number in unread else step for step in path.steps]
        return _Path(steps, reads_images=IMAGES in reads.seen)

    def _gives_plain_logits(self, path: _Path, layer: str, recording: Recording) -> bool:
        nothing = self._no_neuron(layer, recording).expand(2, -1)
        logits = self._replayed(path, recording, layer, recording.features[layer], nothing)
        tolerance = torch.finfo(logits.dtype).eps ** 0.5 * recording.logits.abs().max()
        return bool(((logits - recording.logits).abs() <= tolerance).all())  # False where one is not a number

    def _no_neuron(self, layer: str, recording: Recording) -> Tensor:
        return torch.zeros(1, self.layers[layer].neurons, dtype=torch.bool, device=recording.images.device)

    # ---------------------------------------------------------------- a replay

    def _replayed(
        self,
        path: _Path,
        recording: Recording,
        layer: str,
        replacement: Tensor,
        masks: Tensor,
        reads: Reads | None = None,
    ) -> Tensor:
        plain, sets = recording.features[layer], len(masks)
        view = [1] * plain.ndim
        view[self.layers[layer].neuron_dim] = -1
        # masks (set, 1, neuron, 1, 1) on (batch, neuron, height, width) -> (set * batch, neuron, height, width)
        mixed = torch.where(masks.view(sets, *view), replacement, plain).flatten(0, 1)

        def repeated(number: int, value: Tensor) -> Tensor:
            copies = torch.cat([value] * sets)  # unlike repeat it keeps the memory format
            return copies if reads is None else reads.watch(number, copies)

        def given(step: Step) -> Tensor:
            number = step.call.number
            return step.call.blank(len(mixed)) if step.how == "blank" else repeated(number, recording.outputs[number])

        if path.reads_images:
            images = repeated(IMAGES, recording.images)
        else:
            images = recording.images[:1].expand(len(mixed), *recording.images.shape[1:])
        with Substitution(path.steps, given, mixed) as substitution, reads or nullcontext():
            logits = self.net(images)
        if not substitution.done:
            raise RuntimeError(f"the output of layer {layer!r} did not come by")
        return logits.unflatten(0, (sets, len(plain)))

    @contextmanager
    def _as_evaluated(self, device: torch.device) -> Iterator[None]:
        # compiled code would not see what is replaced
        stance = torch.compiler.set_stance("force_eager") if is_compiled(self.net) else nullcontext()
        with torch.no_grad(), full_precision(device), network_mode(self.net, "eval"), stance:
            yield
