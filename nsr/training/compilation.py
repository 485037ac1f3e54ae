"""compile=true: the network's passes through torch.compile, from the start of training to its end.

Compiled in place, after the layers were hooked: names of modules and keys of the state_dict stay, and the features are
outputs of the compiled graphs. A run needs a graph for each kind of pass (training's, the stabilizer's, the attack's,
validation's) and each state of autocast, with fixed sizes. So only passes over a full batch are compiled: the last,
smaller batch would take a further graph of every kind. A compiler that is missing or fails ends the run in one line.

The tests at the end of a run and every evaluation run as written: evaluate.py gives the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from nsr.compat import compile_call, compiler_error, drop_compiled_call, set_recompile_limit
from nsr.errors import RunStopped

GRAPHS = 32  # torch gives up compiling after 8, which a few more kinds of passes would reach
QUIET = ("torch.utils.cpp_extension", "torch._inductor.utils")  # loggers: CUDA missing on a CPU, folders that are kept
SHOWN = 300  # characters of a compiler's message


class Compilation(pl.Callback):
    """Compiles the network of a RobustClassifier while it is trained.

    Args:
        backend: of torch.compile.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor"):
        self.backend = backend
        self._limit: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._limit = set_recompile_limit(GRAPHS)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        training = min(data.batch_size, len(data.training_set)) // trainer.world_size
        validation = min(data.evaluation_batch_size, len(data.validation_set))
        compile_in_place(pl_module.net, sizes=(training, validation), backend=self.backend)  # type: ignore[arg-type]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._undo(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._undo(pl_module)

    def _undo(self, pl_module: Any) -> None:
        drop_compiled_call(pl_module.net)
        if self._limit is not None:
            set_recompile_limit(self._limit)
            self._limit = None
            torch.compiler.reset()  # the next job of a sweep compiles its own graphs


def compile_in_place(net: nn.Module, *, sizes: Collection[int], backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the passes of `net` over so many images; all others stay as written.

    Args:
        net: with its layers hooked already; names and state_dict stay.
        sizes: numbers of images.
        backend: of torch.compile.

    Errors:
        RunStopped: in a pass, where the compiler is missing or fails.
    """

    def on_full_batches(compiled: Callable[..., Any], as_written: Callable[..., Any]) -> Callable[..., Any]:
        def call(images: Tensor) -> Any:
            if len(images) not in sizes:
                return as_written(images)
            try:
                return compiled(images)
            except compiler_error() as error:
                raise RunStopped(f"compile is true; the compiler failed: {in_one_line(error)}") from error

        return call

    # random draws (dropout) as without compiler
    options = {"fallback_random": True} if backend == "inductor" else None
    try:
        compile_call(net, on_full_batches, backend=backend, dynamic=False, options=options)
    except compiler_error() as error:
        raise RunStopped(f"compile is true; the compiler failed: {in_one_line(error)}") from error


def in_one_line(error: BaseException) -> str:
    """Return a compiler's message without torch's advice on how to debug it."""
    text = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())
    return f"{type(error).__name__}: {text}"[:SHOWN]
