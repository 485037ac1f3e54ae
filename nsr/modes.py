"""Train and eval flags, requires_grad, BatchNorm's statistics, precision: changed for a moment, put back exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from nsr.errors import check_choice

MODES = ("eval", "train")
BATCH_NORM = ("batch", "frozen", "update")


@contextmanager
def network_mode(net: nn.Module, mode: str | None = None) -> Iterator[None]:
    """Puts all of `net` into 'eval' or 'train'; afterwards each sub-module has its own flag back.

    One flag for the whole network would not do: a BatchNorm that its owner froze must come back frozen.
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
def batch_norm(net: nn.Module, handling: str) -> Iterator[None]:
    """How the BatchNorm layers of `net` treat the passes inside.

    'batch' normalises with the batch's own statistics and leaves the running ones untouched, 'frozen' normalises
    with the running ones, 'update' is an ordinary training pass. Layers in eval mode stay as they are.
    """
    check_choice("batch_norm", handling, BATCH_NORM)
    norms = [module for module in net.modules() if isinstance(module, _NormBase) and module.training]
    before = [(module, module.track_running_stats, module.running_mean, module.running_var) for module in norms]
    try:
        for module in norms if handling != "update" else ():
            if handling == "frozen" and module.running_mean is not None:
                module.training = False
            else:
                # a layer in training that does not track takes the batch's statistics and writes none
                module.track_running_stats = False
                if not isinstance(module, _BatchNorm):  # InstanceNorm writes wherever it has some
                    module.running_mean = module.running_var = None
        yield
    finally:
        for module, tracks, mean, variance in before:
            module.training, module.track_running_stats = True, tracks
            module.running_mean, module.running_var = mean, variance


@contextmanager
def unchanged_buffers(net: nn.Module) -> Iterator[None]:
    """Whatever passes inside write into buffers (running statistics, spectral norm's vectors) is undone."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.data.copy_(value)  # .data: a graph of the caller's that needs the buffer is not told of a change


@contextmanager
def frozen_parameters(net: nn.Module) -> Iterator[None]:
    """No parameter of `net` asks for a gradient inside.

    An attack differentiates with respect to the images alone. With frozen parameters autograd neither computes
    the gradients of the weights (a compiled graph would) nor keeps the activations that only these need.
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 arithmetic as written: autocast and TF32 off."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
