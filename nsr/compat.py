"""Private attributes of other libraries, each with the version it was checked with; no other file touches one.

tests/test_compat.py fails by name when one is gone.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor, nn

# ---------------------------------------------------------------- Hydra 1.3.8


def hydra_argument_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's command line."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


# ---------------------------------------------------------------- pytorch-lightning 2.6.6


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep Lightning from registering signal handlers: nsr.run.signals has its own."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def start_processes_with(
    command: Callable[[int], tuple[list[str], str]], observe: Callable[[Sequence[Any]], None]
) -> None:
    """Set the command (and its working directory) of a further DDP process, and the observer of these processes.

    Lightning repeats the command line of the first process, which in a sweep is the whole sweep (Lightning #18175).
    """
    from pytorch_lightning.strategies.launchers import subprocess_script

    subprocess_script._hydra_subprocess_cmd = command  # type: ignore[assignment]
    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]


def restore_loader_state(trainer: pl.Trainer) -> None:
    """Restore the state of a training loader that a scheduler had made before the state was loaded."""
    trainer.fit_loop._load_combined_loader_states()


def broadcast_no_signals(trainer: pl.Trainer) -> None:
    """Switch off Lightning's exchange of SIGTERM at each step."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def keep_versions(trainer: pl.Trainer) -> None:
    """Give WeightAveraging's copy of the network the versions of modules, which Lightning drops from its state."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (average := getattr(callback, "_average_model", None)) is not None:
            average.load_state_dict = partial(_load_with_versions, average)


def _load_with_versions(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    type(net).load_state_dict(net, with_versions(state, versions_of(net.state_dict())))


# ---------------------------------------------------------------- torch 2.11 to 2.14


def versions_of(state: Any) -> Mapping[str, Any]:
    """Return {module: {"version": number}} of a state_dict; empty where it has none."""
    versions = getattr(state, "_metadata", None)
    return versions if isinstance(versions, Mapping) else {}


def with_versions(state: Mapping[str, Tensor], versions: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a copy of a state_dict with the versions, by which modules decide how to load older states."""
    copy = OrderedDict(state)
    copy._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return copy


def compile_call(net: nn.Module, call: Callable[[Callable[..., Any], Callable[..., Any]], Any], **options: Any) -> None:
    """Compile `net` in place with options of torch.compile; `call(compiled, as_written)` returns the forward to use."""
    net.compile(**options)
    net._compiled_call_impl = call(net._compiled_call_impl, net._call_impl)  # type: ignore[arg-type]


def drop_compiled_call(net: nn.Module) -> None:
    """Undo `compile_call`."""
    net._compiled_call_impl = None


def set_recompile_limit(limit: int) -> int:
    """Set how many graphs torch.compile makes of one function before it gives up; return the limit before."""
    import torch

    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = limit
    return before


def compiler_error() -> type[Exception]:
    """Return the class of everything that torch.compile raises."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def tensor_version(tensor: Tensor) -> int | None:
    """Count the in-place writes to the tensor's memory; None for inference tensors, which do not count. torch 2.12."""
    return None if tensor.is_inference() else tensor._version


def without_compilation(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile(module)` wraps; any other module unchanged. torch 2.12."""
    return getattr(module, "_orig_mod", module)


def without_compilation_prefix(name: str) -> str:
    """Remove what `torch.compile` adds to the names of sub-modules. torch 2.12."""
    return f"{name}.".replace("_orig_mod.", "").removesuffix(".")


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether the module is a BatchNorm of any kind, SyncBatchNorm included. torch 2.12."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


def is_tracking_norm(module: nn.Module) -> bool:
    """Return whether the module is a BatchNorm or InstanceNorm, which may have running statistics. torch 2.12."""
    from torch.nn.modules.batchnorm import _NormBase

    return isinstance(module, _NormBase)


def is_compiled(module: nn.Module) -> bool:
    """Return whether torch.compile was applied to the module itself. torch 2.12."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def is_hooked(module: nn.Module) -> bool:
    """Return whether the module has a hook of its forward or backward pass. torch 2.12."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def wandb_flush_settings(seconds: float) -> dict[str, Any]:
    """The setting of W&B that bounds what a killed process loses, {} where W&B no longer has it; wandb 0.31.0."""
    import wandb

    name = "x_transaction_log_flush_interval"
    return {name: seconds} if name in wandb.Settings.model_fields else {}
