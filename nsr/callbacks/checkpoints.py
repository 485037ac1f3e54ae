"""best.ckpt and last.ckpt, and the end of a run that a signal interrupts: each where the run can be resumed exactly."""

from __future__ import annotations

import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import distributed
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.serialization import get_unsafe_globals_in_checkpoint

from nsr.callbacks.averages import WeightAverages
from nsr.compat import broadcast_no_signals, restore_loader_state
from nsr.errors import RunStopped, one_line
from nsr.run.directory import changes
from nsr.run.signals import Interrupted, Signals
from nsr.training.optimizers import make_optimizer
from nsr.training.phases import is_training

log = logging.getLogger(__name__)
PLACE = "nsr_place"  # in a checkpoint: {"epochs": finished, "batches": trained on since}
NOT_BEGUN = {"ready": 0, "started": 0, "processed": 0, "completed": 0}


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes straight to the disk; Lightning's own first copies the checkpoint to memory and to the system's /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(exist_ok=True)  # without parents: a deleted run directory stays deleted
        with Path(path).open("w+b") as file:
            try:
                _save(checkpoint, file, "it")
            except RuntimeError as error:  # of torch's archive, which cannot be ended after the error of the disk
                raise next((each for each in _before(error) if isinstance(each, OSError)), error) from None
            file.flush()
            os.fsync(file.fileno())


class Checkpoints(pl.Callback):
    """Writes best.ckpt by validated robust accuracy (the first of equals), last.ckpt of every epoch, previous.ckpt.

    An epoch is saved as the next begins: Lightning's own callback saves in the middle of its bookkeeping, and a run
    resumed from there validates once more or steps its scheduler twice. Files are renamed when they are complete;
    best.ckpt is the same file as last.ckpt. Must come before the callbacks that change the weights at the end.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.best: float | None = None
        self.place = {"epochs": 0, "batches": 0}
        self._is_best = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if is_training(trainer):
            robust = pl_module.result.validation["validation/robust_accuracy"]
            self._is_best = self.best is None or robust > self.best
            self.best = robust if self._is_best else self.best

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch > self.place["epochs"]:
            self.save(trainer, epochs=trainer.current_epoch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates the weights that it ends with, as it does after max_time

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if is_training(trainer) and trainer.should_stop and not trainer.is_last_batch and trainer.is_global_zero:
            text = "epoch %d is incomplete: trainer.max_time or max_steps ended it after step %d of the run"
            log.warning(text, trainer.current_epoch + 1, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save(trainer, epochs=trainer.fit_loop.epoch_progress.current.completed)

    def save(self, trainer: pl.Trainer, *, epochs: int, batches: int = 0) -> None:
        """Write last.ckpt of this place; called in every process."""
        self.place = {"epochs": epochs, "batches": batches}
        partial = self.folder / "last.ckpt.partial"
        try:
            self.folder.mkdir(exist_ok=True)
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                if self._is_best:
                    _rename(partial, self.folder / "best.ckpt", keep=True)
                last = self.folder / "last.ckpt"
                if last.exists():
                    _rename(last, self.folder / "previous.ckpt", keep=True)
                _rename(partial, last)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            is_of_the_disk = isinstance(error, OSError) or "write" in reason or "file" in reason  # torch: RuntimeError
            if not trainer.is_global_zero or not (is_of_the_disk or isinstance(error, RunStopped)):
                raise
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            text = f"no checkpoint can be written to {self.folder}: {reason}; what was written before is kept"
            raise RunStopped(text) from error
        trainer.strategy.barrier()
        self._is_best = False

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[PLACE] = dict(self.place)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.place = dict(checkpoint[PLACE])
        trainer.num_sanity_val_steps = 0  # epoch 0 is recorded already

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        schedules = [each.scheduler for each in trainer.lr_scheduler_configs]  # tried now, not after an epoch
        for part in (*trainer.callbacks, *schedules):  # type: ignore[attr-defined]
            _save(part.state_dict(), io.BytesIO(), f"the state of {type(part).__name__}")
        if self.place["batches"] == 0:
            trainer.fit_loop.restarting = False  # nothing of the epoch is done: it begins as any other
            progress = trainer.fit_loop.epoch_progress
            progress.current.ready = progress.total.ready  # Lightning is one behind, which misleads the next resumption
        else:  # a scheduler that asks for the run's steps makes the loader before Lightning has its state
            restore_loader_state(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class Continuation(pl.Callback):
    """Continues the schedule of a checkpoint, or starts another one where the run is extended or changed.

    Further epochs of a finished run begin with a new schedule where config.yaml says so; a checkpoint counts the
    extensions before it, so that one that was killed in its first epoch still does. Changed settings of optimizer or
    schedule apply as if the schedule had had them from its start: a checkpoint would bring back the earlier ones.

    Args:
        extended: the extensions of the run, as in its config.yaml; those of the first process count.
        settings: the resolved configuration.
    """

    def __init__(self, extended: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]):
        self.extended, self.settings = extended, settings
        self._before = {"epochs": 0, "steps": 0}  # the schedule at hand
        self._done: dict[str, int] | None = None  # of a changed schedule that is to be applied

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["callbacks"].get(self.state_key, {})
        self._before = state.get("before", self._before)
        begins = trainer.strategy.broadcast(self.extended[state.get("extensions", 0) :])
        place = {"epochs": checkpoint[PLACE]["epochs"], "steps": checkpoint["global_step"]}
        if any(entry.get("new_schedule") for entry in begins):
            self._before = place
            checkpoint["lr_schedulers"] = []
            for optimizer in checkpoint["optimizer_states"]:
                for group in optimizer["param_groups"]:
                    group["lr"] = group.get("initial_lr", group["lr"])
        elif not begins and (changed := self._changed(checkpoint["nsr_settings"])):
            self._done = {name: place[name] - self._before[name] for name in place}
            checkpoint["lr_schedulers"] = []
            new = make_optimizer(pl_module.optimizer, pl_module.net).state_dict()
            for optimizer in checkpoint["optimizer_states"]:
                optimizer |= (
                    new
                    if {"optimizer._target_", "optimizer.groups"} & changed
                    else {**new, "state": optimizer["state"]}
                )
        pl_module.steps_before = self._before["steps"]

    def _changed(self, before: Mapping[str, Any]) -> set[str]:
        """Return the settings of optimizer and schedule that are not those of the checkpoint."""
        parts = ({name: each.get(name) for name in ("optimizer", "scheduler")} for each in (before, self.settings))
        return {".".join(name.split(".")[:2]) for name in changes(*parts)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._done is None:
            return
        made = pl_module.configure_optimizers()
        if isinstance(made, dict):
            schedule, interval = made["lr_scheduler"]["scheduler"], made["lr_scheduler"]["interval"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch expects a step of the optimizer before
                for _ in range(0 if isinstance(schedule, ReduceLROnPlateau) else self._done[f"{interval}s"]):
                    schedule.step()
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(schedule.state_dict())
            made = made["optimizer"]
        for group, new in zip(trainer.optimizers[0].param_groups, made.param_groups, strict=True):
            group.update({name: value for name, value in new.items() if name != "params"})

    def state_dict(self) -> dict[str, Any]:
        return {"extensions": len(self.extended), "before": self._before}


class Interruption(pl.Callback):
    """Ends an interrupted run after the current step of the optimizer or batch of validation, with a checkpoint.

    All processes agree by a number that they exchange each step between hosts, without waiting for the devices.
    Lightning's own exchange is switched off: it broadcasts from inside a signal handler, during other exchanges, and
    waits for the device each step. Must come after all other callbacks.
    """

    def __init__(self, signals: Signals, checkpoints: Checkpoints):
        self.signals, self.checkpoints = signals, checkpoints
        self._hosts: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            self._hosts = distributed.new_group(backend="gloo")
            broadcast_no_signals(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.signals.patient = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if number := self._agreed():
            raise Interrupted(number)  # the checkpoint was just written

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a checkpoint does not have the gradients that are accumulated
        if batch_idx + 1 < trainer.num_training_batches and (number := self._agreed()):
            pl_module.check_finite()
            self._leave(trainer, number, batches=batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if is_training(trainer) and (number := self._agreed()):
            self._leave(trainer, number, batches=int(trainer.num_training_batches))

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if is_training(trainer) and (number := self._agreed()):
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, (WeightAveraging, WeightAverages)):  # the averages are in place of the weights
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._leave(trainer, number, batches=int(trainer.num_training_batches))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        number = self._agreed()
        self.signals.patient = False
        if number:
            raise Interrupted(number)

    def _leave(self, trainer: pl.Trainer, number: int, *, batches: int) -> None:
        self.checkpoints.save(trainer, epochs=trainer.current_epoch, batches=batches)
        raise Interrupted(number)

    def _agreed(self) -> int:
        """Return the signal that some process has received, 0 where none has."""
        if self._hosts is None:
            return self.signals.received
        number = torch.tensor(self.signals.received)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX, group=self._hosts)
        return int(number)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.checkpoints.place["batches"] == trainer.num_training_batches:
            # all batches are trained on: the epoch resumes at the beginning of its validation
            begun = {"total": {**NOT_BEGUN, "ready": 1, "started": 1}, "current": NOT_BEGUN, "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = begun


def _save(content: Any, file: IO[bytes], name: str) -> None:
    """Write what `torch.load` can read with `weights_only`; RunStopped where the content holds anything else."""
    allowed = "tensors, numbers, texts, lists and dicts can be saved"
    try:
        torch.save(_plain(content), file)
    except (OSError, RuntimeError):
        raise
    except Exception as error:  # pickle raises nearly anything
        raise RunStopped(f"{name} cannot be saved ({one_line(error)}); {allowed}") from error
    file.seek(0)
    if others := get_unsafe_globals_in_checkpoint(file):
        raise RunStopped(f"{name} holds {', '.join(sorted(others))}; {allowed}")


def _plain(value: Any) -> Any:
    """Return content with NumPy's numbers, such as a learning rate of numpy.interp, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _before(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those in whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__context__


def _rename(path: Path, to: Path, *, keep: bool = False) -> None:
    """Replace the file `to` atomically; with `keep`, `path` stays too, without a copy where possible."""
    if keep:
        further = to.with_name(f"{to.name}.partial")
        further.unlink(missing_ok=True)
        try:
            os.link(path, further)
        except OSError:  # a file system without links
            shutil.copyfile(path, further)
        path = further
    path.replace(to)
