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
from torchmetrics import Metric

from nsr.boundary import check_batch
from nsr.errors import InputError, RunStopped
from nsr.evaluation.suite import Attack, Suite
from nsr.features import FeatureTaps
from nsr.layers import Layer
from nsr.metrics import Accuracy, ClassCounts, LayerSensitivity, Mean, NetworkSensitivity, network_sums
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

    # nn.ModuleDict, whose entries mypy does not know
    training_means: Any  # {term: Mean}
    training_accuracies: Any  # {side: Accuracy}

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
            raise InputError("the objective Free replays its batches; nsr.free.FreeClassifier trains with it")
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
        terms = ["loss", *self.objective.terms, *(["stabilizer"] if self.stabilizer else [])]
        self.training_means = nn.ModuleDict({term: Mean() for term in terms})
        self.training_accuracies = nn.ModuleDict({side: Accuracy() for side in self.objective.sides})
        self.measures = ValidationMeasures(layers, classes)
        self.test_sensitivity = NetworkSensitivity(layers)
        self.figures: dict[str, dict[str, float]] = {}  # {stage: {name: figure}} of the latest epoch
        self.sensitivities: dict[str, LayerSensitivity] = {}  # {layer: ...} of the latest evaluation
        self.class_counts = torch.zeros(2, classes, dtype=torch.int64)  # predicted, labelled; of the latest validation
        self.not_finite = torch.tensor(torch.iinfo(torch.int64).max)  # the first step whose loss was not finite
        self.batch_weight = 1.0  # of this process's share of the batch at hand
        self._checked: set[str] = set()

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
        self._record(loss, terms, logits, labels)
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

    def _record(self, loss: Tensor, terms: Mapping[str, Tensor], logits: Mapping[str, Tensor], labels: Tensor) -> None:
        """Adds to the epoch's means, on the device: nothing here waits for it."""
        for term, mean in self.training_means.items():
            value = loss if term == "loss" else terms.get(term, torch.zeros_like(loss))  # a ramp left it out
            mean.update(value, len(labels))
        for side, side_logits in logits.items():
            self.training_accuracies[side].update(side_logits.detach(), labels)
        here = torch.full_like(self.not_finite, self.global_step)  # filled on the device, nothing is copied there
        step = torch.where(loss.detach().isfinite(), self.not_finite, here)
        self.not_finite = torch.minimum(self.not_finite, step)

    def on_train_start(self) -> None:
        self.not_finite = self.not_finite.to(self.device)

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
            metrics = (*self.training_means.values(), *self.training_accuracies.values())
            figures = (float(metric.compute()) for metric in metrics)
            self._publish("train", dict(zip(self.figure_names("train"), figures, strict=True)))
            for metric in metrics:
                metric.reset()

    def running_terms(self) -> dict[str, float]:
        """{term: mean so far} of this process in the running epoch; waits for the device."""
        return {term: float(mean.total / mean.count) for term, mean in self.training_means.items()}

    def check_finite(self) -> None:
        """Stops the run where a loss was not finite; called before a checkpoint could keep the broken weights."""
        step = int(self.not_finite)
        if step < torch.iinfo(torch.int64).max:
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
            self.measures.update("clean", logits, labels)
            self.measures.class_counts.update(logits, labels)
            generator = Generator(self.device).manual_seed(draw_seed(self.seed, 1, place.number))
            logits, adversarial = self.taps(self._validation_images(images, labels, generator))
            self.measures.update("robust", logits, labels)
            self.measures.sensitivity.update(*network_sums(self.taps.layers, clean, adversarial), len(labels))

    def _validation_images(self, images: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        assert self.validation_attack is not None
        return self.validation_attack(self.net, images, labels, generator=generator)

    def on_validation_epoch_end(self) -> None:
        self.sensitivities = self.measures.sensitivity.compute()
        self.class_counts = self.measures.class_counts.compute()
        if self.stabilizer is not None:
            self.stabilizer.remember({layer: figures.absolute for layer, figures in self.sensitivities.items()})
        self._publish("validation", dict(zip(self.figure_names("validation"), self.measures.figures(), strict=True)))
        self.measures.reset()

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
        self._publish("test", {f"{self.test_name}/{name}": value for name, value in self.suite.figures().items()})

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
        if stage == "train":
            accuracies = ["clean_accuracy" if side == "clean" else "robust_accuracy" for side in self.objective.sides]
            return [f"train/{name}" for name in (*self.training_means, *accuracies)]
        return [f"{stage}/{name}_{what}" for what in ("accuracy", "cross_entropy") for name in self.measures.names]

    def _publish(self, stage: str, figures: dict[str, float]) -> None:
        self.figures[stage] = figures
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        if stage != "test":  # Lightning's own count starts at 0, which here is before training
            tensors["epoch"] = torch.tensor(self.current_epoch + 1.0)
        self.log_dict(tensors, on_step=False, on_epoch=True)

    # ---------------------------------------------------------------- the rest

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.stabilizer is not None:  # what its neurons are chosen by
            checkpoint["stabilizer_scores"] = dict(self.stabilizer.scores)
        # an epoch that is not over: its sums so far, of each process; or its figures, where validation alone is left
        sums: Any = self.all_gather(torch.stack([value.double() for _, _, value in self._training_sums()]))
        checkpoint["training_sums"] = sums.reshape(-1, sums.shape[-1]).cpu()
        checkpoint["training_figures"] = self.figures.get("train")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.stabilizer is not None:
            self.stabilizer.scores = dict(checkpoint.get("stabilizer_scores", {}))
        sums = checkpoint.get("training_sums")
        if self._trainer is None or sums is None or len(sums) != self.trainer.world_size:
            return
        for (metric, name, value), saved in zip(self._training_sums(), sums[self.global_rank], strict=True):
            setattr(metric, name, saved.to(value))
        if checkpoint["training_figures"] is not None:
            self.figures["train"] = dict(checkpoint["training_figures"])

    def _training_sums(self) -> list[tuple[Metric, str, Tensor]]:
        """(metric, name of its state, value) of everything that an epoch of training adds up."""
        metrics = (*self.training_means.values(), *self.training_accuracies.values())
        return [(metric, name, value) for metric in metrics for name, value in metric.metric_state.items()]

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


class ValidationMeasures(nn.Module):
    """What validation adds up: accuracy and cross-entropy clean and attacked, sensitivities, classes predicted."""

    accuracies: Any  # {name: Accuracy}
    losses: Any  # {name: Mean}

    def __init__(self, layers: Sequence[Layer], classes: int):
        super().__init__()
        self.names = ["clean", "robust"]
        self.accuracies = nn.ModuleDict({name: Accuracy() for name in self.names})
        self.losses = nn.ModuleDict({name: Mean() for name in self.names})
        self.sensitivity = NetworkSensitivity(layers)
        self.class_counts = ClassCounts(classes)

    def update(self, name: str, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch of logits (batch, class) and labels (batch,)."""
        self.accuracies[name].update(logits, labels)
        self.losses[name].update(nn.functional.cross_entropy(logits, labels), len(labels))

    def figures(self) -> list[float]:
        """Reduced over processes: the accuracies, then the cross-entropies, in the order of `names`."""
        return [float(metric.compute()) for metric in (*self.accuracies.values(), *self.losses.values())]

    def reset(self) -> None:
        """Empties all sums."""
        for metric in (*self.accuracies.values(), *self.losses.values(), self.sensitivity, self.class_counts):
            metric.reset()
