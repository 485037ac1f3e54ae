"""Temporary changes of a network's state, restored exactly: train and eval, BatchNorm, requires_grad, precision."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nsr.compat import is_batch_norm, is_tracking_norm
from nsr.errors import check_choice

BATCH_NORM = ("batch", "frozen", "update")


@contextmanager
def network_mode(net: nn.Module, mode: str | None = None) -> Iterator[None]:
    """Put all of `net` into 'eval' or 'train' mode (None: leave it), and restore each sub-module's own flag.

    One flag for the whole network would not do: a BatchNorm that was frozen on purpose must come back frozen.
    """
    flags = [(module, module.training) for module in net.modules()]
    try:
        if mode is not None:
            net.train(mode == "train")
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def batch_norm_mode(net: nn.Module, mode: str) -> Iterator[None]:
    """Set how the BatchNorm layers of `net` that are in training treat the passes inside; restore them afterwards.

    Args:
        net: any module. Its layers in eval mode are left as they are.
        mode: 'batch' normalizes with the statistics of the batch and leaves the running ones untouched, 'frozen'
            normalizes with the running ones, 'update' is an ordinary training pass. InstanceNorm layers with running
            statistics are treated alike.

    Errors:
        InputError: an unknown mode.
    """
    check_choice("batch_norm_mode", mode, BATCH_NORM)
    norms: list[Any] = [module for module in net.modules() if is_tracking_norm(module) and module.training]
    before = [(module, module.track_running_stats, module.running_mean, module.running_var) for module in norms]
    try:
        for module in norms if mode != "update" else ():
            if mode == "frozen" and module.running_mean is not None:
                module.training = False
            else:
                # a layer in training that does not track uses the batch's statistics and writes none
                module.track_running_stats = False
                if not is_batch_norm(module):  # InstanceNorm writes wherever it has running statistics
                    module.running_mean = module.running_var = None
        yield
    finally:
        for module, tracks, mean, variance in before:
            module.training, module.track_running_stats = True, tracks
            module.running_mean, module.running_var = mean, variance


@contextmanager
def unchanged_buffers(net: nn.Module) -> Iterator[None]:
    """Undo what passes inside write into buffers: running statistics, the vectors of spectral norm."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.data.copy_(value)  # .data: an autograd graph that saved the buffer stays valid


@contextmanager
def frozen_parameters(net: nn.Module) -> Iterator[None]:
    """Set requires_grad of every parameter of `net` to False inside.

    An attack differentiates with respect to the images alone. With frozen parameters autograd neither computes
    the gradients of the weights (a compiled graph would) nor keeps the activations that only these need.
    """
    with _requires_grad(net, False):
        yield


@contextmanager
def tracked_parameters(net: nn.Module) -> Iterator[None]:
    """Set requires_grad of every floating-point parameter of `net` to True inside."""
    with _requires_grad(net, True):
        yield


@contextmanager
def _requires_grad(net: nn.Module, value: bool) -> Iterator[None]:
    changed = [
        parameter
        for parameter in net.parameters()
        if parameter.requires_grad is not value and parameter.is_floating_point() and not parameter.is_inference()
    ]
    try:
        for parameter in changed:
            parameter.requires_grad_(value)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not value)


@contextmanager
def eager_mode() -> Iterator[None]:
    """Run compiled code as written inside, so that hooks fire; afterwards the compiled code is used again."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the compiler's import would take seconds
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", "torch.compile with fullgraph=True found no compiled frames")
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 as written inside: autocast and TF32 off."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
