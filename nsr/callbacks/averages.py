"""Several averages of the weights at once, exponential and equal; the best on the validation images is kept.

    EMA:  a <- decay * a + (1 - decay) * w    after each optimizer step, from the weights after the first one on
    SWA:  a <- a + (w - a) / (n + 1)          at the end of each epoch after the first `swa_start`, n of them before

SWA: Izmailov et al. 2018, algorithm 1, with a cycle of one epoch. BatchNorm's running statistics are averaged like the
weights, as Lightning's WeightAveraging does and unlike the paper, which re-estimates them; counters are copied. With
several processes the first one's statistics count: DDP sends its buffers before each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from nsr.errors import InputError, check_number
from nsr.training.schedules import n_steps

Tensors = dict[str, Tensor]
KEY = "weight_averages"  # in a checkpoint: {"averages", "counts", "chosen", "step"}
ACCURACIES = ("clean_accuracy", "robust_accuracy")


class WeightAverages(pl.Callback):
    """Validates every average each epoch and puts the one of highest robust accuracy in place of the weights.

    The epoch's row, sensitivities, checks and checkpoint are those of the chosen average (the first of equals); the
    accuracies of each are validation/ema_DECAY_robust_accuracy, validation/swa_clean_accuracy and so on. k averages
    cost k validations more; a single one none. The checkpoint names the chosen one under 'weight_averages'; the
    weights themselves, for resuming, are in it under 'current_model_state'. An average without an update yet is the
    weights themselves.

    Args:
        decays: of the exponential averages, each in [0, 1].
        swa_start: epochs before the equal average, a count (int) or a fraction of the run (float); None: without it.

    Errors:
        InputError: a setting out of range, no average at all, the same one twice.
    """

    def __init__(self, *, decays: Sequence[float] = (), swa_start: float | None = None):
        if not isinstance(decays, (list, tuple)) or (not decays and swa_start is None):
            raise InputError(f"decays is {decays!r}; it must be a list such as [0.99, 0.999], or swa_start a number")
        self.update: dict[str, Callable[..., None]] = {}
        for decay in decays:
            self.update[f"ema_{decay}"] = get_ema_multi_avg_fn(check_number("decays entry", decay, lowest=0, highest=1))
        if len(self.update) < len(decays):
            raise InputError(f"decays is {list(decays)!r}; it must be different numbers")
        if swa_start is not None:
            self.update["swa"] = get_swa_multi_avg_fn()
        self.swa_start, self.swa_epoch = swa_start, 0
        self.averages: dict[str, Tensors] = {}
        self.counts = dict.fromkeys(self.update, 0)  # updates of each
        self.chosen = next(iter(self.update))
        self._step = 0  # optimizer step of the latest update
        self._weights: Tensors | None = None  # while an average is in their place

    @property
    def names(self) -> list[str]:
        """Names of the accuracies that it adds to an epoch's metrics, where there are several averages."""
        several = self.update if len(self.update) > 1 else ()
        return [f"validation/{name}_{key}" for name in several for key in ACCURACIES]

    def check(self, module: pl.LightningModule, epochs: int) -> None:
        """Raise InputError where the equal average starts after the run of so many epochs."""
        if self.swa_start is not None:
            self.swa_epoch = n_steps("swa_start", self.swa_start, total_steps=epochs, steps_per_epoch=1)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check(pl_module, trainer.max_epochs or 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.averages = move_data_to_device(self.averages, pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:  # gradients are accumulated
            return
        self._step = trainer.global_step
        is_end = batch_idx + 1 == trainer.num_training_batches
        current = _tensors(pl_module)
        for name in self.update:
            if name != "swa" or (is_end and (self.counts[name] or trainer.current_epoch >= self.swa_epoch)):
                self._add(name, current)

    def _add(self, name: str, current: Tensors) -> None:
        average = self.averages.setdefault(name, {key: value.clone() for key, value in current.items()})
        floats = [key for key, value in current.items() if value.is_floating_point()]
        if self.counts[name]:
            lists = ([tensors[key] for key in floats] for tensors in (average, current))
            self.update[name](*lists, self.counts[name])
            for key in current.keys() - floats:
                average[key].copy_(current[key])
        self.counts[name] += 1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        self._weights = {key: value.clone() for key, value in _tensors(pl_module).items()}
        if len(self.update) > 1:
            found: dict[str, dict[str, float]] = {}
            for name in self.update:
                same = next((other for other in found if not self.counts[name] and not self.counts[other]), None)
                found[name] = found[same] if same else self._validated(name, trainer, pl_module)
            pl_module.further_metrics = {
                f"validation/{name}_{key}": found[name][f"validation/{key}"] for name in found for key in ACCURACIES
            }
            self.chosen = max(found, key=lambda name: found[name]["validation/robust_accuracy"])
        self._load(self.chosen, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._weights is not None:
            _copy(self._weights, pl_module)
            self._weights = None

    def _load(self, name: str, module: nn.Module) -> None:
        assert self._weights is not None
        _copy(self.averages.get(name, self._weights), module)

    def _validated(self, name: str, trainer: pl.Trainer, module: Any) -> dict[str, float]:
        """Validate an average; {'validation/NAME': value} over all processes."""
        self._load(name, module)
        (limit,) = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        for number, batch in enumerate(trainer.val_dataloaders):  # type: ignore[arg-type]
            if number >= limit:
                break
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
            trainer.strategy.validation_step(batch, number)
        values: dict[str, float] = module.validation_metrics.compute()
        module.validation_metrics.reset()
        return values

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.chosen in self.averages:
            _copy(self.averages[self.chosen], pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        average = self.averages.get(self.chosen, {})
        checkpoint["state_dict"] = {key: average.get(key, value) for key, value in checkpoint["state_dict"].items()}
        own = {"averages": self.averages, "counts": self.counts, "chosen": self.chosen, "step": self._step}
        checkpoint[KEY] = own

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        own = checkpoint.get(KEY)
        if own is None:  # the run had none before
            return
        pl_module.load_state_dict(checkpoint["current_model_state"])
        self.averages = {name: average for name, average in own["averages"].items() if name in self.update}
        self.counts |= {name: own["counts"][name] for name in self.averages}
        self.chosen = own["chosen"] if own["chosen"] in self.update else self.chosen
        self._step = own["step"]


def _tensors(module: nn.Module) -> Tensors:
    """Parameters and buffers by name, tied ones under each of their names."""
    parts = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {key: value.detach() for key, value in chain(*parts)}


def _copy(tensors: Tensors, module: nn.Module) -> None:
    with torch.no_grad():
        for key, value in _tensors(module).items():
            value.copy_(tensors[key])
