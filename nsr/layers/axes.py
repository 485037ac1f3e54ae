"""Axes of a layer's output: which one is the batch, which one the neurons.

The batch is the axis that follows the number of images. Neurons are what separate weights compute: the outputs of two
neurons depend on different entries of the nearest parameter below them, a bias or the rows of a matrix; the outputs at
two positions depend on the same entries. An axis that follows the size of the images holds no neurons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NODES = 100  # of the autograd graph that are searched for parameters
PARAMETERS = 6  # compared at most
COMPARED = 3  # neurons or positions of an axis, those of the largest outputs


@dataclass(frozen=True)
class Layer:
    """One output of a network, with its axes; everywhere else features are (batch, neuron, ...)."""

    name: str  # the module's name, with #2 for its second call in a pass
    neurons: int
    neuron_dim: int = 1  # -1 for the last one, as in (batch, token, dim) or (batch, height, width, channel)
    copied: bool = False  # a later in-place operation overwrites it
    batch_dim: int = 0  # 1 for (token, batch, dim)

    def to_features(self, output: Tensor) -> Tensor:
        """Return a view of the module's output as (batch, neuron, ...), the output itself where it is that."""
        if (self.batch_dim, self.neuron_dim) == (0, 1):
            return output
        return output.movedim((self.batch_dim, self.neuron_dim), (0, 1))

    def to_output(self, features: Tensor) -> Tensor:
        """Return (batch, neuron, ...) in the order of axes of the module's output."""
        if (self.batch_dim, self.neuron_dim) == (0, 1):
            return features
        return features.movedim((0, 1), (self.batch_dim, self.neuron_dim))


def batch_axis(output: Tensor, images: int, other: Tensor | None, other_images: int) -> int | None:
    """Return the axis that is as long as the batch in passes of two batch sizes; None where there is no such axis.

    Args:
        output: of a pass with so many images.
        other: of the pass with `other_images`; None where the network takes one batch size alone.
    """
    if other is None:
        return next((axis for axis, size in enumerate(output.shape) if size == images), None)
    if output.ndim != other.ndim:
        return None
    sizes = enumerate(zip(output.shape, other.shape, strict=True))
    changed = {axis: pair for axis, pair in sizes if pair[0] != pair[1]}
    return next(iter(changed)) if list(changed.values()) == [(images, other_images)] else None


def neuron_axis(module: nn.Module, output: Tensor, batch_dim: int, smaller: Tensor | None) -> tuple[int, bool]:
    """Infer the axis of the neurons, and whether it is known or only the usual one.

    Args:
        module: the layer.
        output: with its autograd graph, whose parameters require gradients.
        batch_dim: the axis of the batch.
        smaller: the output for smaller images; None where the network takes one size alone.
    """
    axes = [axis for axis in range(output.ndim) if axis != batch_dim]
    if isinstance(module, nn.RNNBase):  # each unit depends on all others of the step before
        return axes[-1], True
    if smaller is not None and smaller.ndim == output.ndim:
        axes = [axis for axis in axes if smaller.shape[axis] == output.shape[axis]] or axes
    for parameter in _nearest_parameters(output):
        if len(axes) == 1:
            break
        separate = {axis: _is_separate(output, axis, parameter) for axis in axes}
        open_axes = [axis for axis, known in separate.items() if known is None]
        # one channel, or one that is not silent, is what is left when all others are positions
        axes = [axis for axis, known in separate.items() if known] or (open_axes if len(open_axes) == 1 else axes)
    if len(axes) > 1:  # (batch, channel, 1, 1) of a gate
        axes = [axis for axis in axes if output.shape[axis] > 1] or axes
    return axes[-1] if output.ndim == 3 else axes[0], len(axes) == 1


def _nearest_parameters(output: Tensor) -> Iterator[Tensor]:
    """Yield the parameters that `output` was computed with, the nearest in the autograd graph first."""
    found = 0
    for node in list(graph_nodes([output.grad_fn], limit=NODES)):
        parameter = getattr(node, "variable", None)
        if parameter is not None and parameter.numel() > 1 and found < PARAMETERS:
            found += 1
            yield parameter


def graph_nodes(starts: Sequence[Any], *, limit: int | None = None, stop: Sequence[Any] = ()) -> Iterator[Any]:
    """Yield the nodes of an autograd graph breadth first, at most so many, without `stop` and what lies behind it."""
    queue, seen = deque(node for node in starts if node is not None), {None, *starts, *stop}
    while queue and limit != 0:
        node = queue.popleft()
        limit = None if limit is None else limit - 1
        yield node
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                queue.append(following)


def _is_separate(output: Tensor, axis: int, parameter: Tensor) -> bool | None:
    """Return whether different places along the axis depend on different entries of the parameter; None: unknown."""
    strength = output.detach().abs().movedim(axis, 0).flatten(1).sum(1)
    places = strength.topk(min(COMPARED, len(strength))).indices.tolist()
    uses, active = torch.zeros_like(parameter, dtype=torch.int64), 0
    try:
        for place in places:
            values = output.select(axis, place)
            weights = torch.linspace(1, 2, values.numel(), dtype=values.dtype, device=values.device).view(values.shape)
            (gradient,) = torch.autograd.grad((values * weights).sum(), [parameter], retain_graph=True)
            used = gradient.abs() > 1e-6 * gradient.abs().max()
            uses += used
            active += bool(used.any())  # a silent neuron shows nothing
    except RuntimeError:  # an operation in place has overwritten what the gradient needs
        return None
    return None if active < 2 else int(uses.max()) == 1
