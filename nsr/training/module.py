"""One training step, one validation step, one test step: the page to read first.

A training step: adversarial images from the attack, the passes that the objective and the stabilizer need, their terms,
the sum. Each epoch gives one `EpochResult`, which callbacks and loggers take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from numbers import Number
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Generator, Tensor, distributed, nn
from torchmetrics import Metric

from nsr.attacks import KeptPerturbation
from nsr.attacks.folding import FoldedPair, folded_batch_norm
from nsr.compat import keep_versions, versions_of, with_versions
from nsr.data.batches import Batch, images_and_labels, place_of, places_of, single_precision
from nsr.errors import InputError, RunStopped, check_batch, check_finite_logits, dotted_name
from nsr.features import FeatureExtractor
from nsr.layers import Layer
from nsr.metrics.epoch import EpochResult, TrainingMetrics, ValidationMetrics
from nsr.metrics.sensitivity import network_sums
from nsr.modes import full_precision
from nsr.objectives import Natural, required_inputs, required_views
from nsr.randomness import draw_seed
from nsr.stabilizer import stabilizing_term
from nsr.training.loss import objective_terms, run_passes
from nsr.training.optimizers import make_optimizer
from nsr.training.phases import is_training, validated_epoch
from nsr.training.schedules import make_scheduler

Attack = Callable[..., Tensor]  # attack(net, images, labels, generator=...) -> images
MONITOR = "validation/robust_accuracy"  # what ReduceLROnPlateau follows
STEPS_BETWEEN_CHECKS = 50  # of whether the loss is finite, which waits for the device


class Suite(Protocol):
    """The attacks of a test: emptied, fed with the numbered batches of the test set, combined over processes.

    `nsr.evaluation.suite.AttackSuite` is one.
    """

    result: Any  # of the latest test; its `metrics` are {NAME_accuracy: fraction, ...}

    def start(self, layers: Sequence[Layer], device: torch.device) -> None:
        """Empty the suite."""

    def measure(
        self, net: nn.Module, extractor: FeatureExtractor, batch: Batch, *, number: int, places: Tensor
    ) -> None:
        """Attack the `number`-th batch of the test; `places` (image,) are its images' indices in the test set."""

    def finish(self) -> Any:
        """Combine the batches, over processes too, into `result`, and return it."""


class RobustClassifier(pl.LightningModule):
    """A classifier trained on an objective and a stabilizer, and measured under attacks.

    Works with any DataLoader whose batches are (images, labels, ...) or a dict with these, and a bare `pl.Trainer` with
    inference_mode=False.

    Args:
        net: images in [0, 1] -> logits (batch, class), the normalization its first layer.
        layers: the hooked layers of `root` (None: of `net`), from `nsr.find_layers`.
        classes: number of classes.
        objective: what is minimized, see nsr.objectives; None: natural training.
        train_attack: makes the adversarial images of training. A copy is used where it is the validation attack too, or
            gets the objective's `attack_loss`: ramps and the objective change training's alone.
        validation_attack: makes those of validation; None: clean images serve in their place.
        stabilizer: (clean features, adversarial features) -> scalar; None or weight 0: none.
        optimizer: parameters -> optimizer; a callable whose first parameter is called `net` gets the network.
        scheduler: optimizer -> scheduler.
        scheduler_interval: 'epoch' or 'step', when it is stepped; with 'step' it also gets total_steps=, and
            steps_per_epoch= where its signature names it.
        augment: images -> images on the device, in training alone.
        mix: after it, (images, labels, classes=) -> images, class probabilities (batch, class), see nsr.data.mixing.
        suite: the attacks of the test.
        metrics: {name: torchmetrics Metric of (logits, labels)} on clean and on adversarial validation images.
        terms: names of the objective's terms, where they are known before the first step.
        seed: of every random draw, together with the place of the step in the run.
    """

    replays_batches = False  # free training's class does, see nsr.training.free

    def __init__(
        self,
        net: nn.Module,
        *,
        layers: Sequence[Layer],
        classes: int,
        root: nn.Module | None = None,
        objective: Callable[..., Any] | None = None,
        train_attack: Attack | None = None,
        validation_attack: Attack | None = None,
        stabilizer: Callable[..., Tensor] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        scheduler_interval: str = "epoch",
        augment: Callable[[Tensor], Tensor] | None = None,
        mix: Callable[..., Batch] | None = None,
        suite: Suite | None = None,
        metrics: Mapping[str, Metric] | None = None,
        terms: Sequence[str] = (),
        seed: int = 0,
    ):
        super().__init__()
        self.net, self.classes = net, classes
        self.extractor = FeatureExtractor(net, layers, root=root)
        self.objective: Any = objective if objective is not None else Natural()
        self.train_attack, self.validation_attack, self.suite = train_attack, validation_attack, suite
        self.stabilizer: Any = None if _is_zero(getattr(stabilizer, "weight", 1)) else stabilizer
        self.optimizer, self.scheduler, self.scheduler_interval = optimizer, scheduler, scheduler_interval
        self.augment, self.mix, self.seed = augment, mix, seed
        self.folded_pairs: list[FoldedPair] = []  # in training's attack; of performance=auto
        self.performance_note: str | None = None
        self.before_passes: list[Callable[[Mapping[str, Tensor], Tensor], None]] = []  # where AWP moves the weights
        self.inputs, self.views = required_inputs(self.objective), required_views(self.objective)
        attack_loss = getattr(self.objective, "attack_loss", None)
        takes_loss = attack_loss is not None and getattr(train_attack, "loss", "its own") is None
        if takes_loss or train_attack is validation_attack:
            self.train_attack = copy(train_attack)
        if takes_loss:
            self.train_attack.loss = attack_loss  # type: ignore[union-attr]
        self.train_extractor = FeatureExtractor(net, self._layers_of_training(layers), root=root)
        if self.train_attack is None and (self.attacks or self.stabilizer is not None):
            raise InputError(
                "train_attack is None, but the objective or the stabilizer takes adversarial images; give one, on the "
                "command line +train_attack=pgd"
            )
        is_free = hasattr(self.objective, "replays") or isinstance(train_attack, KeptPerturbation)
        if is_free and not self.replays_batches:
            raise InputError(
                f"{type(self).__name__} does not replay batches, so objective=free and train_attack=kept would not "
                "train on adversarial images; it must be nsr.training.free.FreeClassifier or a subclass of it"
            )
        if mix is not None:
            self._check_soft_labels()
        names = [*terms, "stabilizer"] if terms and self.stabilizer is not None else terms
        self.train_metrics = TrainingMetrics(names, self.views)
        self.validation_metrics = ValidationMetrics(layers, classes, metrics)
        self.result: EpochResult | None = None  # of the latest validation
        self.batch_weight = 1.0  # of this process's part of the batch at hand
        self.steps_before = 0  # optimizer steps before the schedule at hand began
        self.further_metrics: dict[str, float] = {}  # of callbacks, {'validation/NAME': value} beside the epoch's own
        self.test_name = "test"  # prefix of the metrics of a test: test, test_last
        self._checked: set[str] = set()

    def _check_soft_labels(self) -> None:
        """Raise InputError where the objective, or the attack that it needs, takes class indices alone."""
        attack = self.train_attack if self.attacks or self.stabilizer is not None else None
        for place, part in {"objective": self.objective, "train_attack": attack}.items():
            if not getattr(part, "soft_labels", True):
                raise InputError(
                    f"{place} takes class indices alone ({dotted_name(part)} has no form for soft labels), but "
                    "data.augmentation mixes labels; "
                    f"leave cutmix and mixup out, or choose another {place}"
                )

    def _layers_of_training(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the hooked layers whose features the objective or the stabilizer takes."""
        if any(name.endswith("_features") for name in self.inputs):
            return list(layers)
        if self.stabilizer is None:
            return []
        chosen = getattr(self.stabilizer, "stabilized", list)([layer.name for layer in layers])
        return [layer for layer in layers if layer.name in set(chosen)]

    @property
    def attacks(self) -> bool:
        """Whether the objective takes adversarial images, or logits or features of them."""
        return any(name.startswith("adversarial_") for name in self.inputs)

    @property
    def stabilizes(self) -> bool:
        """Whether this step has the stabilizing term: a ramp may still hold it at 0."""
        return self.stabilizer is not None and not _is_zero(getattr(self.stabilizer, "scale", 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def _checked_batch(self, stage: str, batch: Any) -> Batch:
        """Return images and labels; the first batch of a stage is checked, later ones would make the device wait."""
        images, labels = images_and_labels(batch, self.net)
        if stage not in self._checked:
            check_batch(images, labels, classes=self.classes)
            self._checked.add(stage)
        return images, labels

    # ---------------------------------------------------------------- training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        images, labels = self._begin(batch, batch_idx)
        views = {"clean": images}
        if self.attacks or self.stabilizes:
            assert self.train_attack is not None
            with folded_batch_norm(self.folded_pairs):
                views["adversarial"] = self.train_attack(self.net, images, labels)
        for prepare in self.before_passes:
            prepare(views, labels)
        return self._loss(views, labels)

    def _begin(self, batch: Any, batch_idx: int) -> Batch:
        """Validate, augment and mix the batch; seed every later draw of the step.

        Returns:
            images, and labels (batch,), or (batch, class) where they are mixed.
        """
        images, labels = self._checked_batch("train", batch)
        loader = getattr(self.attached_trainer, "train_dataloader", None)
        weight = getattr(getattr(loader, "batch_sampler", None), "weight", None)
        self.batch_weight = 1.0 if weight is None else weight(batch_idx)
        torch.manual_seed(draw_seed(self.seed, 0, self.current_epoch, batch_idx, self.global_rank))
        images = images if self.augment is None else self.augment(images)
        return (images, labels) if self.mix is None else self.mix(images, labels, classes=self.classes)

    def _loss(self, views: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Sum the terms of objective and stabilizer, and record them; weighted for the mean over processes."""
        stabilizer = self.stabilizer if self.stabilizes else None
        passes = run_passes(self.train_extractor, views, self.views, stabilizer)
        terms = objective_terms(self.objective, self.net, views, labels, passes)
        if stabilizer is not None:
            terms["stabilizer"] = stabilizing_term(
                stabilizer,
                passes.features["clean"],
                passes.features["adversarial"],
                adversarial_logits=passes.logits["adversarial"],
                labels=labels,
            )
        loss = torch.stack(list(terms.values())).sum()
        self.train_metrics.update(loss, terms, passes.logits, labels, step=self.global_step)
        return loss if self.batch_weight == 1.0 else loss * self.batch_weight

    def compute_objective(self, views: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Compute the objective alone, a scalar, of {view: images (batch, channel, height, width)} and their labels.

        It leaves no trace in the metrics.
        """
        passes = run_passes(self.train_extractor, views, self.views)
        terms = objective_terms(self.objective, self.net, views, labels, passes)
        return self.batch_weight * torch.stack(list(terms.values())).sum()

    def on_train_start(self) -> None:
        self.train_metrics.not_finite = self.train_metrics.not_finite.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Give every process the first one's buffers: DDP does so at each step but the first after validation."""
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                distributed.broadcast(buffer, src=0)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % STEPS_BETWEEN_CHECKS == 0 or batch_idx + 1 == self.trainer.num_training_batches:
            self.check_finite()

    def on_train_epoch_end(self) -> None:
        """Log an epoch's training metrics where no validation did, as without a validation loader."""
        if not self.train_metrics.is_empty:
            self._log(self.train_metrics.compute(), epoch=self.current_epoch + 1)
            self.train_metrics.reset()

    def check_finite(self) -> None:
        """Raise RunStopped, in every process, where a loss was not finite: before a checkpoint keeps broken weights."""
        step = self.train_metrics.first_not_finite()
        if step is not None:
            raise RunStopped(
                f"the loss is not finite at step {step} (epoch {self.current_epoch + 1}); the checkpoints of the "
                "epochs before are kept; a smaller optimizer.lr or stabilizer.weight is the usual way out"
            )

    # ---------------------------------------------------------------- validation

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor] | None:
        """Run a clean pass, the attack and an adversarial pass, in float32 and eval mode.

        Returns:
            {'loss': robust cross-entropy, 'clean_logits', 'adversarial_logits', 'labels', 'adversarial_images'}; None
            for a batch that only keeps step with other processes.
        """
        place = place_of(self.trainer.val_dataloaders, batch_idx, rank=self.global_rank, size=self.trainer.world_size)
        if place is None:
            return None
        images, labels = self._checked_batch("validation", batch)
        with full_precision(self.device):
            clean_logits, clean = self.extractor(images)
            self.validation_metrics.update("clean", clean_logits, labels)
            adversarial_images = images
            if self.validation_attack is not None:
                generator = Generator(self.device).manual_seed(draw_seed(self.seed, 1, place))
                adversarial_images = self.validation_attack(self.net, images, labels, generator=generator)
            logits, adversarial = self.extractor(adversarial_images)
            self._check_logits(torch.cat([clean_logits, logits], 1), place)
            loss = self.validation_metrics.update("robust", logits, labels)
            sums = network_sums(self.extractor.layers, clean, adversarial)
            self.validation_metrics.sensitivity.update(*sums, len(labels))
        outputs = {"clean_logits": clean_logits, "adversarial_logits": logits, "labels": labels}
        return {"loss": loss, **outputs, "adversarial_images": adversarial_images}

    def _check_logits(self, logits: Tensor, place: int) -> None:
        """Raise RunStopped where logits (batch, ...) of the `place`-th validation batch are not finite."""
        try:
            check_finite_logits(logits, places=places_of(self.trainer.val_dataloaders, place, len(logits)))
        except InputError as error:
            raise RunStopped(f"validation, epoch {self.current_epoch + 1}: {error}") from error

    def on_validation_epoch_end(self) -> None:
        trained = is_training(self.trainer)
        if trained:
            self.check_finite()
        counts = self.validation_metrics.class_counts.compute().tolist()
        self.result = EpochResult(
            epoch=validated_epoch(self.trainer),
            train=self.train_metrics.compute() if trained else {},
            validation={**self.validation_metrics.compute(), **self.further_metrics},
            sensitivities=self.validation_metrics.sensitivity.compute(),
            predicted=tuple(counts[0]),
            labelled=tuple(counts[1]),
        )
        if hasattr(self.stabilizer, "remember"):
            self.stabilizer.remember({layer: each.absolute for layer, each in self.result.sensitivities.items()})
        if trained:
            self.train_metrics.reset()
        self.validation_metrics.reset()
        self._log({**self.result.train, **self.result.validation}, epoch=self.result.epoch)

    # ---------------------------------------------------------------- test, prediction

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the logits (batch, class) of images, or of the images of a batch as in training."""
        if isinstance(batch, Tensor):
            return self(single_precision(batch, self.net))
        return self(images_and_labels(batch, self.net)[0])

    def on_test_epoch_start(self) -> None:
        if self.suite is None:
            raise InputError("suite is None; a test measures the attacks of a nsr.evaluation.suite.AttackSuite")
        self.suite.start(self.extractor.layers, self.device)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        assert self.suite is not None
        place = place_of(self.trainer.test_dataloaders, batch_idx, rank=self.global_rank, size=self.trainer.world_size)
        if place is None:
            return
        checked = self._checked_batch("test", batch)
        places = places_of(self.trainer.test_dataloaders, place, len(checked[1]))
        with full_precision(self.device):
            self.suite.measure(self.net, self.extractor, checked, number=place, places=places)

    def on_test_epoch_end(self) -> None:
        assert self.suite is not None
        result = self.suite.finish()
        self._log({f"{self.test_name}/{name}": value for name, value in result.metrics.items()})

    def _log(self, values: Mapping[str, float], *, epoch: int | None = None) -> None:
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        if epoch is not None:  # Lightning's own count starts at 0, which here is before training
            tensors["epoch"] = torch.tensor(float(epoch))
        self.log_dict(tensors, on_step=False, on_epoch=True)

    @property
    def attached_trainer(self) -> pl.Trainer | None:
        """The Trainer; None where the module is used without one."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums: Any = self.all_gather(self.train_metrics.sums())  # so far in this epoch, of each process
        checkpoint["training_sums"] = sums.reshape(-1, sums.shape[-1]).cpu()
        # Lightning's averaged weights come without the versions of modules
        checkpoint["state_dict"] = with_versions(checkpoint["state_dict"], versions_of(self.state_dict()))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # a run can resume with another stabilizer, or without one
        own = {name: value for name, value in self.state_dict().items() if name.startswith("stabilizer.")}
        for part in {"state_dict", "current_model_state"} & checkpoint.keys():
            kept = {k: value for k, value in checkpoint[part].items() if not k.startswith("stabilizer.") or k in own}
            checkpoint[part] = with_versions({**own, **kept}, versions_of(self.state_dict()))
        sums, trainer = checkpoint.get("training_sums"), self.attached_trainer
        if trainer is None or sums is None:
            return
        keep_versions(trainer)
        if len(sums) != trainer.world_size:  # of more or fewer processes: all of it to the first
            sums = torch.cat([sums.sum(0, keepdim=True), torch.zeros_like(sums[:1]).repeat(trainer.world_size, 1)])
        self.train_metrics.load_sums(sums[self.global_rank])

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise InputError("optimizer is None; it must be one such as functools.partial(torch.optim.SGD, lr=0.1)")
        optimizer = make_optimizer(self.optimizer, self.net)
        if self.scheduler is None:
            return optimizer
        lengths = {}
        if self.scheduler_interval == "step":
            lengths = {"total_steps": self.optimizer_steps, "steps_per_epoch": self.steps_per_epoch}
        made = make_scheduler(self.scheduler, optimizer, lengths)
        scheduler = {"scheduler": made, "interval": self.scheduler_interval}
        if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau) and self.automatic_optimization:
            scheduler["monitor"] = MONITOR
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps from the beginning of the schedule to the end of the run."""
        return int(self.trainer.estimated_stepping_batches) - self.steps_before

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training data; known once `optimizer_steps` was asked for."""
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)


def _is_zero(factor: Any) -> bool:
    """Whether a stabilizer's weight or scale is the number 0; one of another kind may be {layer: weight}."""
    return isinstance(factor, Number) and factor == 0
