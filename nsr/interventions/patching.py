"""Activation patching: forward passes in which part of one layer's output is replaced.

What precedes the layer is not run again, in any network and without a graph of it. A trial pass records which calls of
sub-modules have finished when the layer returns. The outputs of the outermost ones are kept; a patched pass returns the
kept outputs in their place, repeated so that many neuron sets are patched at once, and runs the rest: what follows the
layer, and the shortcuts around it. Outputs that only skipped modules read are not kept.

Four cases decide the design:
* an operation in place may write into a kept tensor: it is cloned when it is kept and copied when it is reused;
* a module may be called several times: calls are identified by their order in the pass, not by their module;
* a module may return something else than a tensor with the batch first: then it is run, and the calls in it are kept;
* the network may do what the trial did not show: a patched pass that replaces nothing must give the plain logits,
  otherwise the layer's passes are run whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.interventions.passes import ReadTracker, Step, Trace, substitution
from nsr.layers.axes import Layer
from nsr.layers.names import name_and_call
from nsr.layers.passes import named_modules
from nsr.modes import eager_mode, full_precision, network_mode

TRIAL_IMAGES = 3  # a first dimension of 3 that is not the batch is rarer than one of 1, 2 or 4


class Recording(NamedTuple):
    """A plain pass, with what patched passes of its images need."""

    images: Tensor
    logits: Tensor  # (batch, class)
    features: dict[str, Tensor]  # {layer: its output}, (batch, neuron, ...)
    outputs: dict[int, Tensor]  # {number of the call: its output}, the batch first

    def select(self, index: Tensor) -> Recording:
        """The recording of some of the images."""
        features = {layer: value[index] for layer, value in self.features.items()}
        outputs = {number: value[index] for number, value in self.outputs.items()}
        return Recording(self.images[index], self.logits[index], features, outputs)


class Patcher:
    """Plain and patched passes of a network, in eval mode and float32; the network is left as it was.

    Args:
        net: images (batch, ...) -> logits (batch, class).
        layers: of `find_layers`.
        images: a few, for the trial pass.
        root: the module that the layers' names refer to; None: `net`.
        internal_batch_size: sets times images in one patched pass, at least one set; None: all sets.

    Errors:
        InputError: a layer whose output cannot be replaced, or a network that is random or mixes images of a batch.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[Layer],
        images: Tensor,
        *,
        root: nn.Module | None = None,
        internal_batch_size: int | None = None,
    ):
        self.net, self.root, self.internal_batch_size = net, root or net, internal_batch_size
        self.layers = {layer.name: layer for layer in layers}
        images = images[:TRIAL_IMAGES]
        with self._evaluating(images.device):
            trace = Trace(net)
            logits = trace.run(images)
            self._calls = trace.calls
            modules = named_modules(self.root)
            self._targets: dict[int, str] = {}  # {number of the call that returns a layer's output: the layer}
            for layer in self.layers:
                name, which = name_and_call(layer)
                calls = [call.number for call in self._calls if call.module is modules[name]]
                self._targets[calls[(which or 1) - 1]] = layer
            recording = self._recording(images, logits, trace)
            self._plans = {name: self._plan(number, recording) for number, name in self._targets.items()}
        self._kept = {step.call.number for plan in self._plans.values() for step in plan if step.how == "reuse"}

    def record(self, images: Tensor) -> Recording:
        """Run a plain pass.

        Errors:
            InputError: the pass calls other modules than the trial did.
        """
        trace = Trace(self.net, self._kept, self._targets)
        with self._evaluating(images.device):
            logits = trace.run(images)
        if [call.module for call in trace.calls] != [call.module for call in self._calls]:
            raise InputError(
                f"{type(self.net).__name__} calls different modules for different images; interventions need a network "
                "that calls the same ones for each image"
            )
        return self._recording(images, logits, trace)

    def logits(
        self, recording: Recording, layer: str, replacement: Tensor, masks: Tensor, *, differentiable: bool = False
    ) -> Tensor:
        """Run patched passes: the logits of the recorded images where the neurons of each set are replaced.

        Args:
            recording: of `record`.
            layer: its name.
            replacement: the neurons' outputs instead, (batch, neuron, ...) or broadcast to it.
            masks: (set, neuron) bool, True where a neuron's output is replaced.
            differentiable: whether the logits have a gradient in `replacement`.

        Returns:
            (set, batch, class).
        """
        sets = max(1, (self.internal_batch_size or len(masks) * len(recording.images)) // len(recording.images))
        plan, parts = self._plans[layer], masks.to(recording.images.device).split(sets)
        with self._evaluating(recording.images.device), torch.set_grad_enabled(differentiable):
            return torch.cat([self._patched(plan, recording, layer, replacement, part) for part in parts])

    def _recording(self, images: Tensor, logits: Tensor, trace: Trace) -> Recording:
        features = {name: self.layers[name].to_features(trace.features[n]) for n, name in self._targets.items()}
        return Recording(images, logits, features, trace.outputs)

    # ---------------------------------------------------------------- plans

    def _plan(self, target: int, recording: Recording) -> list[Step]:
        """Choose the steps that run least before the layer and still give the plain logits."""
        layer = self._targets[target]
        features = recording.features[layer]
        nothing = torch.zeros(2, self.layers[layer].neurons, dtype=torch.bool, device=features.device)
        for reuses, skips_unread in ((True, True), (True, False), (False, False)):
            plan, reads = self._steps(target, reuses=reuses), ReadTracker()
            try:
                if skips_unread:  # the reused outputs that only skipped modules receive
                    self._patched(plan, recording, layer, features, nothing, reads)
                    unread = {step.call.number for step in plan if step.how == "reuse"} - reads.seen
                    plan = [Step(step.call, "skip") if step.call.number in unread else step for step in plan]
                difference = self._patched(plan, recording, layer, features, nothing) - recording.logits
                tolerance = torch.finfo(difference.dtype).eps ** 0.5 * recording.logits.abs().max()
                if (difference.abs() <= tolerance).all():  # False where one is not a number
                    return plan
            except (RuntimeError, TypeError, ValueError):  # shapes that the repeated outputs do not fit
                continue
        raise InputError(
            f"layer {layer!r}: its output cannot be replaced in a pass of {type(self.net).__name__}, which is random, "
            "mixes the images of a batch, fuses the layer into other code or returns its output without a batch; "
            "name another layer"
        )

    def _steps(self, target: int, *, reuses: bool) -> list[Step]:
        """The calls until the layer's own, in order, without those inside a reused one."""
        last = call = self._calls[target]
        around: set[int] = set()
        while call.parent is not None:
            around.add(call.parent)
            call = self._calls[call.parent]
        steps: list[Step] = []
        inside: set[int | None] = set()
        for call in self._calls[:target]:
            if call.parent in inside:
                inside.add(call.number)
            elif reuses and call.batch_first and call.number not in around:
                inside.add(call.number)
                steps.append(Step(call, "reuse"))
            else:
                steps.append(Step(call, "run"))
        return [*steps, Step(last, "run" if last.blank is None else "skip")]

    # ---------------------------------------------------------------- patched passes

    def _patched(
        self,
        plan: list[Step],
        recording: Recording,
        layer: str,
        replacement: Tensor,
        masks: Tensor,
        reads: ReadTracker | None = None,
    ) -> Tensor:
        plain, sets = recording.features[layer], len(masks)
        # masks (set, 1, neuron, 1, 1) on (batch, neuron, height, width) -> (set * batch, neuron, height, width)
        patched = torch.where(align_neurons(masks, plain.ndim), replacement, plain).flatten(0, 1)

        def repeated(value: Tensor) -> Tensor:
            return torch.cat([value] * sets)  # unlike repeat it keeps the memory format

        def output_of(step: Step) -> Tensor:
            if step.how == "skip":
                assert step.call.blank is not None
                return step.call.blank.expand(len(patched), *step.call.blank.shape[1:])
            output = repeated(recording.outputs[step.call.number])
            return output if reads is None else reads.watch(step.call.number, output)

        images = repeated(recording.images)
        with substitution(plan, output_of, self.layers[layer].to_output(patched)), reads or nullcontext():
            return self.net(images).unflatten(0, (sets, len(plain)))

    @contextmanager
    def _evaluating(self, device: torch.device) -> Iterator[None]:
        with torch.no_grad(), full_precision(device), network_mode(self.net, "eval"), eager_mode():
            yield


def align_neurons(values: Tensor, dimensions: int) -> Tensor:
    """(..., neuron) -> (..., 1, neuron, 1, 1), to broadcast with (batch, neuron, ...) of so many dimensions."""
    return values.view(*values.shape[:-1], 1, -1, *[1] * (dimensions - 2))
