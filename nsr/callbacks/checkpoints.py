"""best.ckpt and last.ckpt, and the end of a run that a signal asks to end: exactly where a run can go on."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import distributed

from nsr.compat import broadcast_no_signals, restore_loader_state
from nsr.errors import RunStopped
from nsr.run.signals import Interrupted, Signals

PLACE = "nsr_place"  # in a checkpoint: {"epochs": finished, "batches": trained on since}
NOT_BEGUN = {"ready": 0, "started": 0, "processed": 0, "completed": 0}


class PlainCheckpointIO(TorchCheckpointIO):
    """Straight into the file and onto the disk; Lightning's own holds it in memory and in the system's /tmp before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class Checkpoints(pl.Callback):
    """best.ckpt by validated robust accuracy, the earlier of equals; last.ckpt of every epoch, previous.ckpt before it.

    Written where an epoch has wholly ended, as the next begins: Lightning's own callback does it in the middle of its
    bookkeeping, from where a run validates once more or steps its scheduler twice. Under another name first, and
    renamed when it is whole; best.ckpt is the same file. To stand before the callbacks that change the weights at
    the end of training.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.best: float | None = None
        self.place = {"epochs": 0, "batches": 0}
        self._is_best = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        robust = pl_module.result.validation["validation/robust_accuracy"]
        self._is_best = self.best is None or robust > self.best
        if self._is_best:
            self.best = robust

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch > self.place["epochs"]:
            self.save(trainer, epochs=trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save(trainer, epochs=trainer.fit_loop.epoch_progress.current.completed)

    def save(self, trainer: pl.Trainer, *, epochs: int, batches: int = 0) -> None:
        """Writes last.ckpt of this place; called in every process."""
        self.place = {"epochs": epochs, "batches": batches}
        partial = self.folder / "last.ckpt.partial"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                if self._is_best:
                    _rename(partial, self.folder / "best.ckpt", keep=True)
                last = self.folder / "last.ckpt"
                if last.exists():
                    _rename(last, self.folder / "previous.ckpt", keep=True)
                _rename(partial, last)
        except (OSError, RuntimeError) as error:
            if not trainer.is_global_zero or not _is_of_the_disk(error):
                raise
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RunStopped(
                f"no checkpoint can be written to {self.folder}: {' '.join(str(error).split())}; the one before is kept"
            ) from error
        trainer.strategy.barrier()
        self._is_best = False

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[PLACE] = dict(self.place)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.place = dict(checkpoint[PLACE])
        trainer.num_sanity_val_steps = 0  # what there was before training is recorded

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.place["batches"] == 0:
            trainer.fit_loop.restarting = False  # nothing of the epoch is done: it begins as any other
            progress = trainer.fit_loop.epoch_progress
            progress.current.ready = progress.total.ready  # Lightning is one behind, and another resumption misled
        else:  # a scheduler that asks for the run's steps has the loader made before Lightning has its state
            restore_loader_state(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class Extension(pl.Callback):
    """Begins a new schedule with the further epochs of a finished run, where they get one of their own.

    Args:
        new_schedule: whether they do; else the run's schedule continues.
    """

    def __init__(self, new_schedule: bool):
        self.new_schedule = new_schedule

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if not self.new_schedule:
            return
        checkpoint["lr_schedulers"] = []
        pl_module.steps_before = checkpoint["global_step"]
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group["lr"] = group.get("initial_lr", group["lr"])


class Interruption(pl.Callback):
    """Ends the run where a signal asks for it, after the step or the batch of validation at hand, with a checkpoint.

    All processes of a run agree, by a number that each step exchanges among their hosts: the devices are not waited
    for. Lightning's own way broadcasts from inside a signal handler, in the midst of other exchanges, and reads a
    number off the device each step; it is switched off. To stand after all other callbacks.
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
        if batch_idx + 1 < trainer.num_training_batches and (number := self._agreed()):
            pl_module.check_finite()
            self._leave(trainer, number, batches=batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if _is_training(trainer) and (number := self._agreed()):
            self._leave(trainer, number, batches=int(trainer.num_training_batches))

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if _is_training(trainer) and (number := self._agreed()):
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # it has put the averages in the weights' place
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
        """The signal that some process has received, 0 where none has."""
        if self._hosts is None:
            return self.signals.received
        number = torch.tensor(self.signals.received)
        distributed.all_reduce(number, op=distributed.ReduceOp.MAX, group=self._hosts)
        return int(number)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.checkpoints.place["batches"] == trainer.num_training_batches:
            # all batches are trained on: the epoch goes on with its validation, from the beginning
            begun = {"total": {**NOT_BEGUN, "ready": 1, "started": 1}, "current": NOT_BEGUN, "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = begun


def _is_training(trainer: pl.Trainer) -> bool:
    return bool(trainer.state.fn == "fit" and not trainer.sanity_checking)


def _rename(path: Path, to: Path, *, keep: bool = False) -> None:
    """Puts a file in another's place, at once; with `keep` it stays where it is too, without a copy where possible."""
    if keep:
        further = to.with_name(f"{to.name}.partial")
        further.unlink(missing_ok=True)
        try:
            os.link(path, further)
        except OSError:  # a file system without links
            shutil.copyfile(path, further)
        path = further
    path.replace(to)


def _is_of_the_disk(error: BaseException) -> bool:
    """torch tells a full disk as a RuntimeError of its own."""
    return isinstance(error, OSError) or "write" in str(error) or "file" in str(error)
