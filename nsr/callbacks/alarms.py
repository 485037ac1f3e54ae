"""Alarms of training: signs that it goes wrong, told when they appear, recorded each epoch; chosen ones end the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Generator

from nsr.attacks import GradientAttack
from nsr.callbacks.epochs import finished_epochs
from nsr.callbacks.training_checks import RULES, Epoch, Judgement
from nsr.errors import RunStopped, check_choice
from nsr.evaluation.masking_checks import Alarm, in_one_line
from nsr.metrics.sensitivity import LayerSensitivity
from nsr.modes import full_precision
from nsr.randomness import draw_seed
from nsr.run.files import write_json

log = logging.getLogger(__name__)

PROBE_STEPS = 10


class TrainingAlarms(pl.Callback):
    """Judges every sign of `nsr.callbacks.training_checks` after each validation, from figures that are there anyway.

    Where the validation attack has one step, catastrophic overfitting could hide from it: then a PGD-10 probe is made
    on a fixed, even choice of the validation images, no more of them than one evaluation batch.

    Args:
        directory: where alarms.json is rewritten each epoch; None: nowhere.
        stop_on: the alarms that end the run, after the epoch in which they are raised, with RunStopped.
    """

    def __init__(self, directory: Path | None = None, *, stop_on: Sequence[str] = ("constant",)):
        self.directory = directory
        self.stop_on = [check_choice("alarms.stop_on entry", name, RULES) for name in stop_on]
        self.history: list[Epoch] = []
        self.before: dict[str, float] = {}  # {stabilised layer: mean sensitivity before training}
        self.first: dict[str, tuple[int, str]] = {}  # {alarm: epoch in which it was first raised, evidence then}
        self._now: dict[str, Judgement] = {}
        self._probed = torch.zeros(2, dtype=torch.int64)  # images that withstood the probe, images
        self._stopped = ""

    def judged(self) -> list[Alarm]:
        """Every alarm; one that was raised stays so, with its evidence of then."""
        alarms = []
        for name, rule in RULES.items():
            raised, evidence = self._now.get(name, (None, "not judged: no epoch yet"))
            if name in self.first:
                raised, evidence = True, f"epoch {self.first[name][0]}: {self.first[name][1]}"
            alarms.append(Alarm(name, rule.title, raised, evidence, rule.meaning))
        return alarms

    # ---------------------------------------------------------------- the run

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._probed = torch.zeros(2, dtype=torch.int64, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        attack, batches = pl_module.validation_attack, trainer.val_dataloaders.batch_sampler  # type: ignore[union-attr]
        is_needed = getattr(attack, "steps", 0) == 1 and _attacked(pl_module) and trainer.state.fn == "fit"
        if not is_needed or trainer.sanity_checking or batches.repeated(batch_idx):
            return
        number = batches.number(batch_idx)
        # every so many-th image of all: the first ones may be of one class
        chosen = slice(-number * batches.batch_size % batches.batches, None, batches.batches)
        images, labels = (part[chosen] for part in batch)
        if len(labels) == 0:
            return
        probe = GradientAttack(epsilon=attack.epsilon, norm=attack.norm, steps=PROBE_STEPS)
        with full_precision(pl_module.device):
            generator = Generator(pl_module.device).manual_seed(draw_seed(pl_module.seed, 2, number))
            logits = pl_module.net(probe(pl_module.net, images, labels, generator=generator))
        right = (logits.argmax(1) == labels).sum()
        self._probed = self._probed + torch.stack([right, torch.full_like(right, len(labels))])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        epoch = self._epoch(trainer, pl_module)
        self.history.append(epoch)
        self._now = {name: rule.judge(self.history, classes=pl_module.classes) for name, rule in RULES.items()}
        new = [name for name, (raised, _) in self._now.items() if raised and name not in self.first]
        self.first |= {name: (epoch.number, self._now[name][1]) for name in new}
        alarms = {alarm.name: in_one_line(alarm) for alarm in self.judged()}
        ending = [name for name, (raised, _) in self._now.items() if raised and name in self.stop_on]
        if ending:
            self._stopped = f"alarms.stop_on: {' | '.join(alarms[name] for name in ending)}"
            trainer.should_stop = True  # this epoch's checkpoint is still written
        if trainer.is_global_zero:
            for name in new:  # what ends the run is told then, in one line of its own
                log.log(logging.INFO if name in ending else logging.WARNING, alarms[name])
            self._record(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._stopped:
            raise RunStopped(self._stopped)

    def state_dict(self) -> dict[str, Any]:
        return {"history": [epoch._asdict() for epoch in self.history], "before": self.before, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Epoch(**epoch) for epoch in state_dict["history"]]
        self.before, self.first = dict(state_dict["before"]), dict(state_dict["first"])

    # ---------------------------------------------------------------- figures

    def _epoch(self, trainer: pl.Trainer, module: Any) -> Epoch:
        """The figures of the epoch just validated, the same in every process."""
        number, figures = finished_epochs(trainer), module.figures["validation"]
        predicted, labelled = module.class_counts.tolist()
        images, most = sum(labelled), max(range(len(predicted)), key=predicted.__getitem__)
        clean, robust = figures["validation/clean_accuracy"], figures["validation/robust_accuracy"]
        withstood, probed = trainer.strategy.reduce(self._probed, reduce_op="sum").tolist()
        return Epoch(
            number=number,
            clean=clean,
            robust=robust,
            images=images,
            strong=withstood / probed if probed else robust,
            strong_images=probed or images,
            training=module.figures["train"]["train/robust_accuracy"] if number and _as_wide(module) else None,
            most_predicted=predicted[most] / images,
            expected=labelled[most] / images,
            stillest=self._stillest(module, number),
        )

    def _stillest(self, module: Any, number: int) -> tuple[str, float, float] | None:
        if module.stabilizer is None:
            return None
        layers = module.stabilizer.stabilized(list(module.sensitivities))
        now = _means(module.sensitivities, layers)
        if number == 0:
            self.before = now
        if not self.before:
            return None
        layer = min(layers, key=lambda layer: now[layer] / max(self.before[layer], 1e-30))
        return layer, now[layer], self.before[layer]

    def _record(self, trainer: pl.Trainer) -> None:
        if self.directory is not None:
            rows = [{**alarm._asdict(), "epoch": self.first.get(alarm.name, (None,))[0]} for alarm in self.judged()]
            write_json(self.directory / "alarms.json", rows)
        flags = {f"alarms/{name}": float(raised) for name, (raised, _) in self._now.items() if raised is not None}
        for logger in trainer.loggers:
            logger.log_metrics({**flags, "epoch": self.history[-1].number}, step=trainer.global_step)


def _means(sensitivities: Mapping[str, LayerSensitivity], layers: Sequence[str]) -> dict[str, float]:
    return {layer: float(sensitivities[layer].absolute.mean()) for layer in layers}


def _attacked(module: Any) -> bool:
    """Whether there is a training accuracy under an attack at all."""
    return "adversarial" in module.objective.sides


def _as_wide(module: Any) -> bool:
    """Whether the training attack may do at least what validation's may, so that their accuracies can be compared."""
    if not _attacked(module) or getattr(module.attack, "share", 1.0) < 1:
        return False
    training, validation = _ball(module.attack), _ball(module.validation_attack)
    return None not in (training, validation) and training[0] == validation[0] and training[1] >= validation[1]


def _ball(attack: Any) -> Any:
    """(norm, epsilon) of an attack or of the one that an ensemble makes its images with; None where it has none."""
    attack = getattr(attack, "attack", attack)
    return (attack.norm, attack.epsilon) if hasattr(attack, "norm") and hasattr(attack, "epsilon") else None
