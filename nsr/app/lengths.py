"""How many batches and steps a run has, checked before its directory is made: none is no run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nsr.app.build import max_epochs
from nsr.app.instantiation import Settings, trial
from nsr.app.machine import processes
from nsr.data import ImageData
from nsr.errors import InputError
from nsr.training.free import n_replays
from nsr.training.module import RobustClassifier
from nsr.training.optimizers import make_optimizer
from nsr.training.schedules import make_scheduler


def check_lengths(settings: Settings, data: ImageData, module: RobustClassifier, splits: Sequence[str]) -> None:
    """Raise InputError where a limit leaves no batch, or the schedule cannot have so few steps.

    Args:
        data: after its preflight.
        splits: 'train' and 'test', or one of them.
    """
    trainer = settings["trainer"]
    overfit = trainer.get("overfit_batches") or 0
    loaders: dict[str, Callable[[], Any]] = {}
    if "train" in splits:
        loaders = {"train": data.train_dataloader, "val": data.val_dataloader}
    if "test" in splits:
        loaders["test"] = data.test_dataloader
    left = {}
    for name, loader in loaders.items():
        setting = "overfit_batches" if overfit and name != "test" else f"limit_{name}_batches"
        left[name] = _batches(setting, trainer.get(setting, 1.0), -(-len(loader()) // processes(settings)))
    if "train" in splits and module.scheduler is not None and module.scheduler_interval == "step":
        steps = n_replays(module.objective) * -(-left["train"] // int(trainer.get("accumulate_grad_batches", 1)))
        total, limit = steps * max_epochs(settings), int(trainer.get("max_steps") or -1)
        lengths = {"total_steps": min(total, limit) if limit > 0 else total, "steps_per_epoch": steps}
        with trial("scheduler", "the schedule"):
            make_scheduler(module.scheduler, make_optimizer(module.optimizer, module.net), lengths)  # type: ignore[arg-type]


def _batches(setting: str, limit: Any, there_are: int) -> int:
    """Return the batches that a limit leaves: an int is a count, a float a fraction."""
    if limit is None or isinstance(limit, int):
        return there_are if limit is None else min(int(limit), there_are)
    if not int(limit * there_are):
        batches = "1 batch" if there_are == 1 else f"{there_are} batches"
        raise InputError(
            f"trainer.{setting} is {limit}, which leaves none of {batches}; an int is a count, a float a fraction: "
            f"give 1, or at least {1 / there_are:.3g}"
        )
    return int(limit * there_are)
