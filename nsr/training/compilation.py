"""compile=true: the network's passes through torch.compile, from the start of training to its end.

Compiled in place, after the taps were hooked: names of modules and keys of the state_dict stay, and the taps' features
are outputs of the compiled graphs. A run needs a graph for each kind of pass (training's, the stabiliser's, the
attack's, validation's) and each state of autocast, with fixed sizes. So only passes over a full batch are compiled: the
last, smaller batch would take a further graph of every kind. Left to itself torch made 8 graphs of the default run,
where these are 5; at 8 it gives up.

The tests at the end of a run and every evaluation go without: their figures are those that evaluate.py repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from nsr.features import FeatureTaps
from nsr.modes import batch_norm, frozen_parameters, full_precision, network_mode, unchanged_buffers

log = logging.getLogger(__name__)

GRAPHS = 32  # torch gives up compiling after 8, which a few more kinds of passes would reach
SHOWN = 300  # characters of a compiler's complaint
ASIDE = ("torch.utils.cpp_extension", "torch._inductor.utils")  # loggers: CUDA missing on a CPU, folders that are kept


class Compilation(pl.Callback):
    """Compiles the network of a RobustClassifier while it is trained, and tries that out before the first step.

    Without compiler, or with one that breaks, the run goes on as if compile were false, and says so once.

    Args:
        backend: of torch.compile.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor"):
        self.backend = backend
        self._limit = torch._dynamo.config.recompile_limit

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        training = min(data.batch_size, len(data.training_set)) // trainer.world_size
        validation = min(data.evaluation_batch_size, len(data.validation_set))
        shape = (data.channels, data.image_size, data.image_size)
        self._limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(self._limit, GRAPHS)
        for name in ASIDE:
            logging.getLogger(name).setLevel(logging.ERROR)
        start, reason, contexts = perf_counter(), None, trainer.precision_plugin
        try:
            compile_in_place(pl_module.net, sizes=(training, validation), backend=self.backend)
            # autocast as the Trainer has it: a graph is for one state of it
            with contexts.train_step_context():
                try_training(pl_module, _images(training, *shape))
            with contexts.val_step_context():
                try_validation(pl_module, _images(validation, *shape))
        except Exception as error:  # whatever a compiler raises: the run can do without it
            reason = in_one_line(error)
        # all processes or none: they would differ in the last digits, and wait for each other's compilers
        if trainer.strategy.reduce_boolean_decision(reason is None, all=True):
            log.info("compile=true: compiled in %.0f s", perf_counter() - start)
            return
        self._take_away(pl_module)
        log.warning(
            "compile=true: the compiler failed (%s); the run goes on without it", reason or "that of another process"
        )

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._take_away(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._take_away(pl_module)

    def _take_away(self, pl_module: Any) -> None:
        pl_module.net._compiled_call_impl = None
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = self._limit


def compile_in_place(net: nn.Module, *, sizes: Sequence[int], backend: str | Callable[..., Any] = "inductor") -> None:
    """Passes of `net` over so many images are compiled from now on, all others stay as they are.

    Where the compiler breaks later, at a kind of pass that comes up in the middle of a run, `net` goes on without it.
    """
    torch.compiler.reset()  # what an earlier run of this process has compiled
    # random draws (dropout) as without compiler
    options = {"fallback_random": True} if backend == "inductor" else None
    net.compile(backend=backend, dynamic=False, options=options)
    compiled: Any = net._compiled_call_impl

    def call(images: Tensor) -> Any:
        if len(images) not in sizes:
            return net._call_impl(images)
        try:
            return compiled(images)
        except TorchDynamoException as error:
            net._compiled_call_impl = None
            log.warning("compile=true: the compiler failed (%s); the run goes on without it", in_one_line(error))
            return net._call_impl(images)

    net._compiled_call_impl = call


def try_training(module: Any, images: Tensor) -> None:
    """One step of the attack, the passes of training and their gradients; the network is left as it was."""
    with _without_trace(module.net, images) as images:
        _attack_pass(module.net, images)
        _training_pass(module.training_taps, images)
        if module.stabilizer is not None:
            with batch_norm(module.net, module.stabilizer.batch_norm):
                _training_pass(module.training_taps, images)


def try_validation(module: Any, images: Tensor) -> None:
    """One step of the attack and a pass with all taps; the network is left as it was."""
    with _without_trace(module.net, images) as images, full_precision(images.device):
        _attack_pass(module.net, images)
        with torch.no_grad(), network_mode(module.net, "eval"):
            module.taps(images)


@contextmanager
def _without_trace(net: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """The images where the network is, which is in training; buffers, modes and random draws are put back."""
    images = images.to(next(net.parameters()))  # 64-true: in float64
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), unchanged_buffers(net), network_mode(net, "train"):
        yield images


def _attack_pass(net: nn.Module, images: Tensor) -> None:
    images = images.detach().requires_grad_()
    with torch.enable_grad(), network_mode(net, "eval"), frozen_parameters(net):
        torch.autograd.grad(net(images).sum(), images)


def _training_pass(taps: FeatureTaps, images: Tensor) -> None:
    with torch.enable_grad():
        logits, features = taps(images)
        loss = torch.stack([output.float().square().mean() for output in (logits, *features.values())]).sum()
        parameters = [parameter for parameter in taps.net.parameters() if parameter.requires_grad]
        # not loss.backward(): that would leave gradients, and wake DDP
        torch.autograd.grad(loss, parameters, allow_unused=True)


def _images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def in_one_line(error: BaseException) -> str:
    """What a compiler raised, without torch's advice on how to look into it."""
    text = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())
    return f"{type(error).__name__}: {text}"[:SHOWN]
