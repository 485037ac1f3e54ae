"""The checks of training, evaluated and recorded each epoch; chosen ones end the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Generator

from nsr.attacks import measuring_pgd
from nsr.callbacks.training_checks import RULES, Epoch, Verdict
from nsr.data.batches import EvaluationBatches, images_and_labels, place_of
from nsr.errors import check_choice, check_finite_logits
from nsr.metrics.epoch import EpochResult
from nsr.modes import full_precision
from nsr.randomness import draw_seed
from nsr.run.checks import Check, stop_where_triggered
from nsr.run.files import write_json
from nsr.training.phases import ends_epoch

if TYPE_CHECKING:
    from nsr.training.module import RobustClassifier

log = logging.getLogger(__name__)
PROBE_STEPS = 10


class TrainingChecks(pl.Callback):
    """Evaluates every rule of `nsr.callbacks.training_checks` after each epoch.

    Where the validation attack has one step, catastrophic overfitting could hide from it: then a PGD-10 probe runs on a
    fixed, even choice of the validation images, no more of them than one evaluation batch.

    Args:
        directory: where checks.json is rewritten each epoch; None: nowhere.
        stop_on: the checks that end the run with RunStopped, after the epoch in which they are triggered.
    """

    def __init__(self, directory: Path | None = None, *, stop_on: Sequence[str] = ("collapsed_network",)):
        self.directory = directory
        self.stop_on = [check_choice("checks.stop_on entry", name, RULES) for name in stop_on]
        self.history: list[Epoch] = []
        self.before: dict[str, float] = {}  # {stabilized layer: mean sensitivity before training}
        self.first: dict[str, tuple[int, str]] = {}  # {check: epoch in which it was first triggered, evidence then}
        self._now: dict[str, Verdict] = {}
        self._probed = torch.zeros(2, dtype=torch.int64)  # images robust to the probe, images
        self._ending: list[Check] = []

    def results(self) -> list[Check]:
        """Return every check; one that was triggered stays so, with the evidence of that epoch."""
        found = []
        for name, rule in RULES.items():
            triggered, evidence = self._now.get(name, (None, "not evaluated: no epoch yet"))
            if name in self.first:
                triggered, evidence = True, f"epoch {self.first[name][0]}: {self.first[name][1]}"
            found.append(Check(name, rule.title, triggered, evidence, rule.meaning))
        return found

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._probed = torch.zeros(2, dtype=torch.int64, device=pl_module.device)

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: pl.Trainer,
        pl_module: RobustClassifier,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        attack = pl_module.validation_attack
        is_needed = getattr(attack, "steps", 0) == 1 and pl_module.attacks and trainer.state.fn == "fit"
        if not is_needed or trainer.sanity_checking or outputs is None:
            return
        number = place_of(trainer.val_dataloaders, batch_idx, rank=trainer.global_rank, size=trainer.world_size)
        images, labels = (part[_evenly(trainer, number)] for part in images_and_labels(batch, pl_module.net))
        if len(labels) == 0:
            return
        probe = measuring_pgd(epsilon=attack.epsilon, norm=attack.norm, steps=PROBE_STEPS)  # type: ignore[union-attr]
        with full_precision(pl_module.device):
            generator = Generator(pl_module.device).manual_seed(draw_seed(pl_module.seed, 2, number or 0))
            logits = pl_module.net(probe(pl_module.net, images, labels, generator=generator))
            check_finite_logits(logits)
        correct = (logits.argmax(1) == labels).sum()
        self._probed = self._probed + torch.stack([correct, torch.full_like(correct, len(labels))])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        if trainer.state.fn != "fit" or pl_module.result is None or not ends_epoch(trainer):
            return
        epoch = self._epoch(trainer, pl_module, pl_module.result)
        self.history.append(epoch)
        self._now = {name: rule.evaluate(self.history, classes=pl_module.classes) for name, rule in RULES.items()}
        triggered = [name for name, (state, _) in self._now.items() if state]
        new = [name for name in triggered if name not in self.first]
        self.first |= {name: (epoch.number, self._now[name][1]) for name in new}
        checks = {check.name: check for check in self.results()}
        if ending := [checks[name] for name in triggered if name in self.stop_on]:
            self._ending, trainer.should_stop = ending, True  # this epoch's checkpoint is still written
        if trainer.is_global_zero:
            for name in new:  # a check that ends the run is reported at its end, in a line of its own
                log.log(logging.INFO if name in self.stop_on else logging.WARNING, checks[name].in_one_line())
            self._record(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_where_triggered(self._ending, self.stop_on)

    def state_dict(self) -> dict[str, Any]:
        return {"history": [epoch._asdict() for epoch in self.history], "before": self.before, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Epoch(**epoch) for epoch in state_dict["history"]]
        self.before, self.first = dict(state_dict["before"]), dict(state_dict["first"])

    def _epoch(self, trainer: pl.Trainer, module: RobustClassifier, result: EpochResult) -> Epoch:
        """Return the metrics of the epoch just validated, the same in every process."""
        images, most = sum(result.labelled), max(range(len(result.predicted)), key=result.predicted.__getitem__)
        clean, robust = (result.validation[f"validation/{kind}_accuracy"] for kind in ("clean", "robust"))
        passed, probed = trainer.strategy.reduce(self._probed, reduce_op="sum").tolist()
        return Epoch(
            number=result.epoch,
            clean=clean,
            robust=robust,
            images=images,
            strong=passed / probed if probed else robust,
            strong_images=probed or images,
            training=result.train["train/robust_accuracy"] if result.epoch and _as_wide(module) else None,
            most_predicted=result.predicted[most] / images,
            expected=result.labelled[most] / images,
            least_sensitive=self._least_sensitive(module, result),
        )

    def _least_sensitive(self, module: RobustClassifier, result: EpochResult) -> tuple[str, float, float] | None:
        if module.stabilizer is None:
            return None
        layers = [layer.name for layer in module.train_extractor.layers]
        now = {layer: float(result.sensitivities[layer].absolute.mean()) for layer in layers}
        if result.epoch == 0:
            self.before = now
        if not self.before:
            return None
        layer = min(layers, key=lambda layer: now[layer] / max(self.before[layer], 1e-30))
        return layer, now[layer], self.before[layer]

    def _record(self, trainer: pl.Trainer) -> None:
        if self.directory is not None:
            rows = [{**check._asdict(), "epoch": self.first.get(check.name, (None,))[0]} for check in self.results()]
            write_json(self.directory / "checks.json", rows)
        flags = {f"checks/{name}": float(state) for name, (state, _) in self._now.items() if state is not None}
        for logger in trainer.loggers:
            logger.log_metrics({**flags, "epoch": self.history[-1].number}, step=trainer.global_step)


def _evenly(trainer: pl.Trainer, number: int | None) -> slice:
    """Return every n-th image of all n batches of validation images: the first ones may be of one class."""
    batches = getattr(trainer.val_dataloaders, "batch_sampler", None)
    if number is None or not isinstance(batches, EvaluationBatches):
        return slice(None)
    count = len(batches.numbers)
    return slice(-number * batches.batch_size % count, None, count)


def _as_wide(module: RobustClassifier) -> bool:
    """Return whether training's ball contains validation's, so that their accuracies can be compared."""
    if "adversarial" not in module.views or getattr(module.train_attack, "scale", 1.0) < 1:
        return False
    training, validation = _ball(module.train_attack), _ball(module.validation_attack)
    return None not in (training, validation) and training[0] == validation[0] and training[1] >= validation[1]


def _ball(attack: Any) -> Any:
    """Return (norm, epsilon) of an attack, or of the one that an ensemble uses; None where it has none."""
    for each in (attack, getattr(attack, "attack", None)):
        ball = getattr(each, "norm", None), getattr(each, "epsilon", None)
        if None not in ball:
            return ball
    return None
