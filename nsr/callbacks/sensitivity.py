"""Sensitivities of every hooked layer after each validation, in files and loggers; epoch 0 is before training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Generator, Tensor, nn

from nsr.data.batches import images_and_labels
from nsr.errors import InputError, check_batch, check_choice, check_finite_logits, check_number
from nsr.features import FeatureExtractor
from nsr.layers import find_layers
from nsr.loggers import log_picture, log_sensitivities
from nsr.metrics.layer_summary import LayerSummaries
from nsr.metrics.sensitivity import LayerSensitivity, NetworkSensitivity, network_sums
from nsr.models import select_output
from nsr.modes import full_precision
from nsr.plots import save, sensitivity_heat_map
from nsr.randomness import draw_seed
from nsr.run.files import COMPRESSED, COMPRESSED_FROM, sensitivity_file, write_layers, write_sensitivities
from nsr.training.module import RobustClassifier
from nsr.training.phases import ends_epoch, validated_epoch

log = logging.getLogger(__name__)
KINDS = ("absolute", "relative")
DRAWING_FRACTION = 0.01  # of the time, for heat maps before the end
FIRST_DRAWING_SECONDS = 1.0  # assumed for the first one, which imports matplotlib


class SensitivityLogger(Callback):
    """Writes sensitivity.csv, layers.csv and a heat map, and logs sensitivities to the Trainer's loggers.

    From a million rows on, over all epochs, the first is sensitivity.csv.gz, to which each epoch adds a gzip member.

    A `RobustClassifier` measures them itself in its validation. Any other LightningModule whose `forward(images)`
    returns logits is measured here, on its first validation loader, in float32 and eval mode: a clean pass, the attack
    and an adversarial pass per batch. Batches are (images, labels, ...) or mappings, see `images_and_labels`; images
    are (batch, channel, height, width) in [0, 1]. For epoch 0 the Trainer needs num_sanity_val_steps=-1.

    Args:
        attack: of another module: attack(net, images, labels, generator=...) -> images.
        layers: names or patterns of its layers; None: the activations.
        output: index or key of the logits in its output; None: the tensor, the first entry of a tuple, 'logits' of a
            mapping or dataclass.
        list_top: number of most sensitive neurons listed per layer.
        per_layer: log each layer's metrics and histogram too, beside their means over layers and one table.
        directory: of the files; None: the logger's, or the Trainer's default_root_dir.
        seed: of the attack's draws.

    Errors:
        InputError: another module without an attack, a pattern that matches no layer, images outside [0, 1], a batch
            without images and labels, an output without logits, a directory with the files of another training.
    """

    def __init__(
        self,
        *,
        attack: Callable[..., Tensor] | None = None,
        layers: str | Sequence[str] | None = None,
        output: int | str | None = None,
        list_top: int = 10,
        per_layer: bool = False,
        directory: str | Path | None = None,
        seed: int = 0,
    ):
        self.attack, self.layers, self.output = attack, layers, output
        self.list_top = check_number("list_top", list_top, lowest=1, whole=True)
        self.per_layer = check_choice("per_layer", per_layer, (True, False))
        self.directory = None if directory is None else Path(directory)
        self.seed = check_number("seed", seed, lowest=0, whole=True)
        self.summaries = LayerSummaries(list_top=self.list_top)
        self._is_new = True
        self._extractor: FeatureExtractor | None = None  # of a module that does not measure itself
        self._metric: NetworkSensitivity | None = None
        self._drawn, self._drawing_seconds = 0.0, FIRST_DRAWING_SECONDS

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(pl_module, RobustClassifier) and self.attack is None:
            raise InputError(
                f"SensitivityLogger has no attack to measure {type(pl_module).__name__} with; give attack=..., such as "
                "nsr.attacks.GradientAttack(epsilon='8/255', steps=10)"
            )
        self._where = self.directory or Path(trainer.log_dir or trainer.default_root_dir)
        self._is_new = trainer.current_epoch == 0  # until a state is loaded, for some strategies after `on_fit_start`

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        """Forget an earlier training of this object; refuse to add a new one to the files of another."""
        if not self._is_new:
            return
        self._is_new = False
        self.summaries = LayerSummaries(list_top=self.list_top)
        if trainer.is_global_zero and (path := sensitivity_file(self._where)).exists():
            raise InputError(
                f"{path} is of another training, to which this one would be added; give SensitivityLogger a directory "
                "of its own, or move the file"
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._metric is not None:
            self._metric.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, RobustClassifier) or dataloader_idx > 0 or not _is_recorded(trainer):
            return
        images, labels = images_and_labels(batch, pl_module)
        check_batch(images, labels)
        extractor, metric = self._measurement(pl_module, images)
        generator = Generator(images.device).manual_seed(draw_seed(self.seed, 1, batch_idx, trainer.global_rank))
        assert self.attack is not None
        with full_precision(images.device):
            clean_logits, clean = extractor(images)
            logits, adversarial = extractor(self.attack(extractor.net, images, labels, generator=generator))
            check_finite_logits(torch.cat([clean_logits, logits], 1))
            metric.update(*network_sums(extractor.layers, clean, adversarial), len(labels))

    def _measurement(self, pl_module: LightningModule, images: Tensor) -> tuple[FeatureExtractor, NetworkSensitivity]:
        """Return the extractor and the metric, built at the first batch."""
        if self._extractor is None or self._metric is None:
            net = _Logits(pl_module, self.output)
            layers = find_layers(net, images[[0, -1]], self.layers, root=pl_module)  # two, for BatchNorm
            self._extractor = FeatureExtractor(net, layers, root=pl_module)
            self._metric = NetworkSensitivity(layers).to(images.device)
        return self._extractor, self._metric

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _is_recorded(trainer):
            return
        if isinstance(pl_module, RobustClassifier):
            assert pl_module.result is not None
            sensitivities, validation = pl_module.result.sensitivities, pl_module.result.validation
        else:
            assert self._metric is not None
            sensitivities, validation = self._metric.compute(), {}
        if trainer.is_global_zero:
            self._record(trainer, validation, sensitivities)

    def _record(
        self, trainer: Trainer, validation: Mapping[str, float], sensitivities: Mapping[str, LayerSensitivity]
    ) -> None:
        epoch = validated_epoch(trainer)
        summaries = self.summaries.add(epoch, sensitivities)
        self._where.mkdir(parents=True, exist_ok=True)
        write_sensitivities(self._file(trainer, sensitivities), epoch, sensitivities)
        write_layers(self._where / "layers.csv", epoch, summaries)
        if epoch == 0 and validation:  # Lightning logs nothing of the validation before training
            for logger in trainer.loggers:
                logger.log_metrics({**validation, "epoch": 0}, step=0)
        step, per_layer = trainer.global_step, self.per_layer
        log_sensitivities(trainer.loggers, sensitivities, summaries, step=step, epoch=epoch, per_layer=per_layer)
        now = time.perf_counter()
        if self._drawn == 0.0:
            self._drawn = now  # the clock starts
        elif self._drawing_seconds <= DRAWING_FRACTION * (now - self._drawn):
            self._draw(trainer)

    def _file(self, trainer: Trainer, sensitivities: Mapping[str, LayerSensitivity]) -> Path:
        """Return the file of sensitivities, compressed where all epochs have many rows; resumption keeps its kind."""
        rows = sum(len(each.absolute) for each in sensitivities.values()) * (1 + max(0, trainer.max_epochs or 0))
        path = sensitivity_file(self._where, rows)
        if path.name == COMPRESSED and not path.exists():
            line = f"sensitivities are written to {COMPRESSED}: {rows:,} rows, compressed from {COMPRESSED_FROM:,} on"
            log.info(line)
            print(line, flush=True)
        return path

    def _draw(self, trainer: Trainer) -> None:
        started, path = time.perf_counter(), self._where / "sensitivity"
        draw_heat_map(path, self.summaries.history)
        log_picture(trainer.loggers, "sensitivity/heat_map", path.with_suffix(".png"), step=trainer.global_step)
        self._drawn = time.perf_counter()
        self._drawing_seconds = self._drawn - started

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.summaries.history:
            self._draw(trainer)
        if self._extractor is not None:
            self._extractor.remove()
            self._extractor = self._metric = None

    def state_dict(self) -> dict[str, Any]:
        return self.summaries.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.summaries.load_state_dict(state_dict)
        self._is_new = False


class _Logits(nn.Module):
    """A module whose logits are its only output."""

    def __init__(self, net: nn.Module, output: int | str | None):
        super().__init__()
        self.net, self.output = net, output

    def forward(self, images: Tensor) -> Tensor:
        result, output = self.net(images), self.output
        if output is None:
            output = 0 if isinstance(result, (tuple, list)) else "logits"
        return select_output(result, output)


def _is_recorded(trainer: Trainer) -> bool:
    """Return whether the validation is part of training, and that of an epoch."""
    return trainer.state.fn == "fit" and ends_epoch(trainer)


def draw_heat_map(path: Path, history: Sequence[tuple[int, dict[str, list[float]]]]) -> None:
    """Draw PATH.png and PATH.pdf: one row per layer, the first on top, and one column per epoch.

    Args:
        path: without its suffix.
        history: (epoch, {layer: [absolute, relative]}), by epoch.
    """
    import pandas

    rows = [(epoch, layer, *each[:2]) for epoch, means in history for layer, each in means.items()]
    frame = pandas.DataFrame(rows, columns=["epoch", "layer", *KINDS])
    save(sensitivity_heat_map(frame, measures=KINDS), path)
