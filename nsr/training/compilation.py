"""compile=true: the network's passes through torch.compile while it is trained.

Compiled in place, after the layers were hooked: names of modules and keys of the state_dict stay, and the features are
outputs of the compiled graphs. A run needs a graph for each kind of pass (training's, the stabilizer's, the attack's,
validation's) and each state of autocast, with fixed sizes. So only passes over a full batch are compiled: the last,
smaller batch would take a further graph of every kind. The attack's have BatchNorm folded, where the module has pairs.

The tests at the end of a run and every evaluation run as written: evaluate.py gives the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from nsr.attacks.folding import FoldedPair
from nsr.compat import compile_call, compiler_error, drop_compiled_call, set_recompile_limit
from nsr.errors import RunStopped

GRAPHS = 32  # torch gives up compiling after 8, which a few more kinds of passes would reach
QUIET = ("torch.utils.cpp_extension", "torch._inductor.utils")  # loggers: CUDA missing on a CPU, folders that are kept
SHOWN = 300  # characters of a compiler's message


class Compilation(pl.Callback):
    """Compiles the network of a RobustClassifier while it is trained, with this `backend` of torch.compile."""

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
        module: Any = pl_module
        compile_in_place(module.net, sizes=(training, validation), backend=self.backend, pairs=module.folded_pairs)

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


def compile_in_place(
    net: nn.Module,
    *,
    sizes: Collection[int],
    backend: str | Callable[..., Any] = "inductor",
    pairs: Sequence[FoldedPair] = (),
) -> None:
    """Compile the passes of `net`, whose layers are hooked already, over `sizes` images; all others stay as written.

    Passes inside `folded_batch_norm(pairs)` are compiled with BatchNorm folded.

    Errors:
        RunStopped: here or in a pass, where the compiler is missing or fails.
    """

    def on_full_batches(compiled: Callable[..., Any], as_written: Callable[..., Any]) -> Callable[..., Any]:
        def call(images: Tensor) -> Any:
            if len(images) not in sizes:
                return as_written(images)
            for pair in pairs:
                pair.prepare()
            with _stopped_in_one_line():
                return compiled(images)

        return call

    options = {"fallback_random": True} if backend == "inductor" else None  # random draws as without compiler
    with _stopped_in_one_line():
        compile_call(net, on_full_batches, backend=backend, dynamic=False, options=options)


@contextmanager
def _stopped_in_one_line() -> Iterator[None]:
    """Turn a compiler's error into RunStopped, without torch's advice on how to debug it."""
    try:
        yield
    except compiler_error() as error:
        text = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())
        shown = f"{type(error).__name__}: {text}"[:SHOWN]
        raise RunStopped(f"compile is true; the compiler failed: {shown}") from error
