"""One step of training, one of evaluation: the page to read first.

A training step goes down `training_step` once: adversarial images from the attack, the passes that the objective and
the stabiliser need, their terms, the sum. Validation and test share `_measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Generator, Tensor, distributed, nn

from nsr.errors import InputError, RunStopped, check_batch
from nsr.evaluation.suite import Attack, Suite
from nsr.features import FeatureTaps
from nsr.layers import Layer
from nsr.metrics.epoch import TrainingMeasures, ValidationMeasures
from nsr.metrics.sensitivity import LayerSensitivity, NetworkSensitivity, network_sums
from nsr.modes import batch_norm, full_precision
from nsr.objectives import Free, Natural, Objective
from nsr.randomness import draw_seed
from nsr.stabilizer import SensitivityStabilizer

Batch = tuple[Tensor, Tensor]  # images (batch, channel, height, width) in [0, 1], labels (batch,)


STEPS_BETWEEN_LOOKS = 50  # at whether the loss is finite, for which the device is waited for


class RobustClassifier(pl.LightningModule):
    """A classifier that is trained on an objective and a stabiliser, and measured under attacks.

    Args:
        net: images in [0, 1] -> logits (batch, class), the normalisation its first layer.
        layers: the tapped layers of `within` (None: of `net`), from `find_layers`.
        classes: how many there are.
        suite: the attacks of the test. An evaluation needs no more.
        objective: what is minimised, see nsr.objectives.
        attack: makes the adversarial images of training.
        validation_attack: makes those of validation.
        stabilizer: None, or weight 0: none.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> scheduler.
        scheduler_interval: 'epoch' or 'step', when it is stepped; by 'step' it is also given total_steps=.
        augment: images -> images on the device, in training alone.
        seed: of every random draw, together with the place of the step in the run.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        layers: Sequence[Layer],
        within: nn.Module | None = None,
        classes: int,
        suite: Suite,
        objective: Objective | None = None,
        attack: Attack | None = None,
        validation_attack: Attack | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        stabilizer: SensitivityStabilizer | None = None,
        scheduler: Callable[..., Any] | None = None,
        scheduler_interval: str = "epoch",
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.net = net
        self.taps = FeatureTaps(net, layers, within=within)
        self.classes = classes
        self.objective = objective if objective is not None else Natural()
        if isinstance(self.objective, Free) and type(self) is RobustClassifier:
            raise InputError("the objective Free replays its batches; nsr.training.free.FreeClassifier trains with it")
        self.attack = attack
        self.validation_attack, self.suite = validation_attack, suite
        self.stabilizer = stabilizer if stabilizer is not None and stabilizer.weight > 0 else None
        self.optimizer, self.scheduler, self.scheduler_interval = optimizer, scheduler, scheduler_interval
        self.before_passes: Callable[[Mapping[str, Tensor], Tensor], None] | None = None  # where AWP moves the weights
        self.augment = augment
        self.seed = seed
        self.test_name = "test"  # what the figures of a test are called: test, test_last
        stabilized = set(self.stabilizer.stabilized([layer.name for layer in layers])) if self.stabilizer else set()
        self.training_taps = FeatureTaps(net, [layer for layer in layers if layer.name in stabilized], within=within)
        terms = [*self.objective.terms, *(["stabilizer"] if self.stabilizer else [])]
        self.training_measures = TrainingMeasures(terms, self.objective.sides)
        self.validation_measures = ValidationMeasures(layers, classes)
        self.test_sensitivity = NetworkSensitivity(layers)
        self.figures: dict[str, dict[str, float]] = {}  # {stage: {name: figure}} of the latest epoch
        self.sensitivities: dict[str, LayerSensitivity] = {}  # {layer: ...} of the latest evaluation
        self.class_counts = torch.zeros(2, classes, dtype=torch.int64)  # predicted, labelled; of the latest validation
        self.batch_weight = 1.0  # of this process's share of the batch at hand
        self._checked: set[str] = set()
        self._told_epoch = -1  # the latest whose figures of training were published here

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    # ---------------------------------------------------------------- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        images, labels = self._begin(batch, batch_idx)
        inputs = {"clean": images}
        if "adversarial" in self.objective.sides or self._stabilizes:
            assert self.attack is not None
            inputs["adversarial"] = self.attack(self.net, images, labels)
        if self.before_passes is not None:
            self.before_passes(inputs, labels)
        return self._weighted(self._loss(inputs, labels))

    def _begin(self, batch: Batch, batch_idx: int) -> Batch:
        """The batch looked at and augmented, every later draw of the step seeded."""
        images, labels = batch
        self._check_once("train", images, labels)
        loader = None if self._trainer is None else self._trainer.train_dataloader
        weight = getattr(getattr(loader, "batch_sampler", None), "weight", None)
        self.batch_weight = 1.0 if weight is None else weight(batch_idx)
        torch.manual_seed(draw_seed(self.seed, 0, self.current_epoch, batch_idx, self.global_rank))
        return (images if self.augment is None else self.augment(images)), labels

    def _weighted(self, loss: Tensor) -> Tensor:
        """A mean over this process's share of the batch, such that the mean over processes is that of the batch."""
        return loss if self.batch_weight == 1.0 else loss * self.batch_weight

    def _loss(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Objective and stabiliser on {side: images}, recorded."""
        logits, features = self._passes(inputs)
        terms = self.objective(logits, labels)
        if self._stabilizes:
            terms["stabilizer"] = self.stabilizer(features["clean"], features["adversarial"])  # type: ignore[misc]
        loss = torch.stack(list(terms.values())).sum()
        self.training_measures.update(loss, terms, logits, labels, step=self.global_step)
        return loss

    @property
    def _stabilizes(self) -> bool:
        """Whether this step has the stabilising term: a ramp may still hold it at nothing."""
        return self.stabilizer is not None and self.stabilizer.share > 0

    def _passes(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """{side: logits} as the objective asks, {side: {layer: features}} as the stabiliser does; one pass a side."""
        logits: dict[str, Tensor] = {}
        features: dict[str, dict[str, Tensor]] = {}
        for side in self.objective.sides:
            logits[side], features[side] = self.training_taps(inputs[side])
        if self.stabilizer is not None and self._stabilizes:
            # last, so that its random draws disturb no other, and without a trace in BatchNorm
            for side in ("clean", "adversarial"):
                if side not in features:
                    needs_gradient = side == "adversarial" or self.stabilizer.gradient_through_clean
                    with batch_norm(self.net, self.stabilizer.batch_norm), torch.set_grad_enabled(needs_gradient):
                        _, features[side] = self.training_taps(inputs[side])
        return logits, features

    def on_train_start(self) -> None:
        self.training_measures.not_finite = self.training_measures.not_finite.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Every process has the first one's buffers: DDP sees to it at each step but the first after validation."""
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                distributed.broadcast(buffer, src=0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        is_last = batch_idx + 1 == self.trainer.num_training_batches
        if is_last or (batch_idx + 1) % STEPS_BETWEEN_LOOKS == 0:
            self.check_finite()
        if is_last:  # before validation, whose end writes the epoch's records
            self._publish("train", self.training_measures.figures())
            self._told_epoch = self.current_epoch
            self.training_measures.reset()

    def check_finite(self) -> None:
        """Stops the run where a loss was not finite; called before a checkpoint could keep the broken weights.

        All processes stop at the same look, or the others would wait for ever for the one that has left.
        """
        step = self.training_measures.first_not_finite()
        if step is not None:
            raise RunStopped(
                f"the loss is not finite at step {step} (epoch {self.current_epoch + 1}); the checkpoints of the "
                "epochs before are kept; a smaller optimizer.lr or stabilizer.weight is the usual way out"
            )

    # ---------------------------------------------------------------- validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """A clean pass, the attack and an adversarial pass, in float32 and eval mode whatever trained the network."""
        place = self._place("validation", batch, batch_idx)
        if place is None:
            return
        images, labels = batch
        with full_precision(self.device):
            logits, clean = self.taps(images)
            self.validation_measures.update("clean", logits, labels)
            self.validation_measures.class_counts.update(logits, labels)
            generator = Generator(self.device).manual_seed(draw_seed(self.seed, 1, place.number))
            logits, adversarial = self.taps(self._validation_images(images, labels, generator))
            self.validation_measures.update("robust", logits, labels)
            sums = network_sums(self.taps.layers, clean, adversarial)
            self.validation_measures.sensitivity.update(*sums, len(labels))

    def _validation_images(self, images: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        assert self.validation_attack is not None
        return self.validation_attack(self.net, images, labels, generator=generator)

    def on_validation_epoch_end(self) -> None:
        self.sensitivities = self.validation_measures.sensitivity.compute()
        self.class_counts = self.validation_measures.class_counts.compute()
        if self.stabilizer is not None:
            self.stabilizer.remember({layer: figures.absolute for layer, figures in self.sensitivities.items()})
        if self.trainer.state.fn == "fit" and self._told_epoch != self.current_epoch and "train" in self.figures:
            self._log("train")  # of an epoch whose training an interrupted run has done: no dashboard has them yet
        self._publish("validation", self.validation_measures.figures())
        self.validation_measures.reset()

    def on_test_epoch_start(self) -> None:
        self.suite.start(self._batches("test").size, self.device)
        self.test_sensitivity.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """A chunk of the suite, and its sensitivities where the suite has an attack for them."""
        place = self._place("test", batch, batch_idx)
        if place is None:
            return
        images, labels = batch
        with full_precision(self.device):
            self.suite.measure(self.net, images, labels, number=place.number, first=place.first)
            if self.suite.sensitivity_attack is not None:
                sums = self.suite.sensitivity(self.net, self.taps, images, labels, number=place.number)
                self.test_sensitivity.update(*sums)

    def on_test_epoch_end(self) -> None:
        if self.trainer.world_size > 1:  # each process has its own images, the others' are 0
            self.suite.outcomes = self._over_processes(self.suite.outcomes)
            if self.suite.probes:
                self.suite.probed = self._over_processes(self.suite.probed)
        self.sensitivities = {} if self.suite.sensitivity_attack is None else self.test_sensitivity.compute()
        self.figures["test"] = {f"{self.test_name}/{name}": value for name, value in self.suite.figures().items()}
        self._log("test")

    def _over_processes(self, outcomes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        together = self.trainer.strategy.reduce(torch.stack(list(outcomes.values())), reduce_op="sum")
        return dict(zip(outcomes, together, strict=True))

    def _batches(self, stage: str) -> Any:
        loader: Any = self.trainer.val_dataloaders if stage == "validation" else self.trainer.test_dataloaders
        return loader.batch_sampler

    def _place(self, stage: str, batch: Batch, batch_idx: int) -> Place | None:
        """Where the batch stands among all; None for one that only keeps step with other processes."""
        batches = self._batches(stage)
        if batches.repeated(batch_idx):
            return None
        self._check_once(stage, *batch)
        number = batches.number(batch_idx)
        return Place(number, number * batches.batch_size)

    def figure_names(self, stage: str) -> list[str]:
        """The names of the figures of 'train' or 'validation', in the order they are written in."""
        measures = self.training_measures if stage == "train" else self.validation_measures
        return [f"{stage}/{name}" for name in measures.names]

    def _publish(self, stage: str, figures: Sequence[float]) -> None:
        self.figures[stage] = dict(zip(self.figure_names(stage), figures, strict=True))
        self._log(stage)

    def _log(self, stage: str) -> None:
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.figures[stage].items()}
        if stage != "test":  # Lightning's own count starts at 0, which here is before training
            tensors["epoch"] = torch.tensor(self.current_epoch + 1.0)
        self.log_dict(tensors, on_step=False, on_epoch=True)

    # ---------------------------------------------------------------- the rest

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.stabilizer is not None:  # what its neurons are chosen by
            checkpoint["stabilizer_scores"] = dict(self.stabilizer.scores)
        # an epoch that is not over: its sums so far, of each process; or its figures, where validation alone is left
        sums: Any = self.all_gather(self.training_measures.sums())
        checkpoint["training_sums"] = sums.reshape(-1, sums.shape[-1]).cpu()
        checkpoint["training_figures"] = self.figures.get("train")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.stabilizer is not None:
            self.stabilizer.scores = dict(checkpoint.get("stabilizer_scores", {}))
        sums = checkpoint.get("training_sums")
        if self._trainer is None or sums is None:
            return
        if checkpoint["training_figures"] is not None:
            self.figures["train"] = dict(checkpoint["training_figures"])
        if len(sums) != self.trainer.world_size:  # of more or fewer processes: all of it to the first
            sums = torch.cat([sums.sum(0, keepdim=True), torch.zeros_like(sums[:1]).repeat(self.trainer.world_size, 1)])
        self.training_measures.take_up(sums[self.global_rank])

    def _check_once(self, stage: str, images: Tensor, labels: Tensor) -> None:
        """The first batch of a stage is looked at; later ones would only make the device wait."""
        if stage not in self._checked:
            check_batch(images, labels, classes=self.classes)
            self._checked.add(stage)

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None, "a module without optimizer can be tested, not trained"
        optimizer = self.optimizer(self.net.parameters())
        if self.scheduler is None:
            return optimizer
        by_step = {"total_steps": self.optimizer_steps} if self.scheduler_interval == "step" else {}
        scheduler = {"scheduler": self.scheduler(optimizer, **by_step), "interval": self.scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @property
    def optimizer_steps(self) -> int:
        """Of the whole run."""
        return int(self.trainer.estimated_stepping_batches)


class Place(NamedTuple):
    """Of an evaluation's batch among all."""

    number: int
    first: int  # its first image
