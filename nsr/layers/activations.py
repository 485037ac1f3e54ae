"""Activations of a network, modules or functions, found in the autograd graph of one pass."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from nsr.layers.axes import graph_nodes

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Threshold, nn.Tanhshrink, nn.Softshrink),
    *(nn.Hardshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.GLU),
)
# names of autograd's nodes: ReluBackward0, LeakyReluBackward1, PreluKernelBackward0, ...
FUNCTIONS = re.compile(
    "(Rrelu|(Leaky)?Relu|PreluKernel|[SC]?elu|Gelu|Silu|Mish|Softplus|(Log)?Sigmoid|Tanh|Threshold|"
    "(Hard|Soft)shrink|Hardtanh|Hardswish|Hardsigmoid|Glu)(WithNoise)?Backward",
    re.IGNORECASE,
)


def is_activation(node: Any) -> bool:
    """Return whether a node of the autograd graph is an activation function."""
    return FUNCTIONS.match(node.name()) is not None


def activations_in(output: Any) -> set[Any]:
    """Return the activations that a network's output tensors were computed with, as nodes of the autograd graph."""
    return {node for node in graph_nodes([tensor.grad_fn for tensor in output]) if is_activation(node)}


def activations_of(module: nn.Module, inputs: Collection[Tensor], output: Tensor) -> list[Any]:
    """Return the activations that a module's output is the result of; empty for any other module.

    It is that of an activation function, or of a small module of the network's own, such as x * sigmoid(x): one
    without parameters and sub-modules, that keeps the shape.
    """
    if output.grad_fn is None:
        return []
    if is_activation(output.grad_fn):
        return [output.grad_fn]
    is_small = next(module.children(), None) is None and next(module.parameters(), None) is None
    if not is_small or not inputs or any(each is output or each.shape != output.shape for each in inputs):
        return []
    inside = graph_nodes([output.grad_fn], limit=30, stop=[each.grad_fn for each in inputs])
    if output.grad_fn in [each.grad_fn for each in inputs]:  # nn.Identity
        return []
    return [node for node in inside if is_activation(node) or isinstance(node, torch.autograd.function.FunctionCtx)]
