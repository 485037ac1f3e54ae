"""Free adversarial training's step (Shafahi et al. 2019, algorithm 1): one backward pass for network and perturbation.

The one file that treats free training: an objective with `replays` and a KeptPerturbation. The perturbation ascends the
loss that the network descends, stabilizer's term included, by the gradient of the same backward pass; no pass is made
for the attack alone. Since one batch takes several optimizer steps, they are made here and not by the Trainer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nsr.attacks import KeptPerturbation
from nsr.errors import InputError
from nsr.training.module import MONITOR, Batch, RobustClassifier


def n_replays(objective: Any) -> int:
    """Return how often the objective replays each batch; a run has that much fewer epochs, rounded up."""
    return int(getattr(objective, "replays", 1))


def classifier_type(objective: Any, train_attack: Any) -> type[RobustClassifier]:
    """Return the LightningModule that trains with them; InputError where only one of them is free training's."""
    is_free = hasattr(objective, "replays")
    if is_free != isinstance(train_attack, KeptPerturbation):
        fix = "remove train_attack" if is_free else "remove train_attack, or set another"
        raise InputError(f"objective=free and train_attack=kept belong together; {fix}")
    return FreeClassifier if is_free else RobustClassifier


class FreeClassifier(RobustClassifier):
    """RobustClassifier for free training; InputError without `replays` of the objective or a KeptPerturbation."""

    replays_batches = True

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        classifier_type(self.objective, self.train_attack)  # both are free training's, or none
        if not isinstance(self.train_attack, KeptPerturbation):
            raise InputError("FreeClassifier needs objective=free and train_attack=kept; RobustClassifier takes others")
        self.automatic_optimization = False
        self.replays, self.kept = n_replays(self.objective), self.train_attack

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = self._begin(batch, batch_idx)
        optimizer: Any = self.optimizers()
        for _ in range(self.replays):
            adversarial = self.kept.perturbed(images).requires_grad_()
            loss = self._loss({"clean": images, "adversarial": adversarial}, labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            assert adversarial.grad is not None
            self.kept.ascend(adversarial.grad)
            optimizer.step()
            self._step_scheduler("step")

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self._step_scheduler("epoch")

    def _step_scheduler(self, interval: str) -> None:
        if self.scheduler is not None and self.scheduler_interval == interval:
            scheduler: Any = self.lr_schedulers()
            metric = self.trainer.callback_metrics.get(MONITOR) if isinstance(scheduler, ReduceLROnPlateau) else None
            if metric is None and isinstance(scheduler, ReduceLROnPlateau):
                raise InputError(f"ReduceLROnPlateau has no {MONITOR} to follow; give the Trainer a validation loader")
            self.lr_scheduler_step(scheduler, metric)

    @property
    def optimizer_steps(self) -> int:
        # the Trainer's estimate has one step a batch; max_steps and steps_before count every replay
        steps, most = self.replays * int(self.trainer.estimated_stepping_batches), self.trainer.max_steps
        return (steps if most == -1 else min(steps, most)) - self.steps_before

    @property
    def steps_per_epoch(self) -> int:
        return self.replays * super().steps_per_epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.kept.perturbation is not None:  # called in every process: (process, place, channel, height, width)
            gathered: Any = self.all_gather(self.kept.perturbation)
            checkpoint["perturbations"] = gathered.reshape(-1, *self.kept.perturbation.shape)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        perturbations, trainer = checkpoint.get("perturbations"), self.attached_trainer  # no Trainer: for evaluation
        if trainer is not None and perturbations is not None and len(perturbations) == trainer.world_size:
            self.kept.perturbation = torch.clone(perturbations[self.global_rank])
