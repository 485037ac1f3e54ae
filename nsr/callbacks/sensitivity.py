"""Sensitivities of every tapped layer after each validation, to files and dashboards; epoch 0 is before training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Generator, Tensor

from nsr.callbacks.epochs import finished_epochs
from nsr.callbacks.heat_map import draw_heat_map
from nsr.callbacks.records import write_layers, write_sensitivities
from nsr.errors import InputError, check_number
from nsr.features import FeatureTaps
from nsr.layers import find_layers
from nsr.loggers import log_picture, log_sensitivities
from nsr.metrics.layer_summary import Telemetry
from nsr.metrics.sensitivity import LayerSensitivity, NetworkSensitivity, network_sums
from nsr.modes import full_precision
from nsr.randomness import draw_seed

DRAWING_SHARE = 0.01  # of the time that may go into pictures before the end
FIRST_DRAWING_SECONDS = 1.0  # what the first is taken to cost, matplotlib's import in it


class SensitivityLogger(pl.Callback):
    """Records each layer's sensitivities: sensitivity.csv, layers.csv, a heat map, and whatever dashboards there are.

    On nsr's own module the figures are validation's, reduced over processes: no pass through the network is made for
    them. Any other LightningModule whose `forward(images)` gives logits is measured here, on its first validation
    loader, whose batches begin with images (batch, channel, height, width) in [0, 1] and labels (batch,): a clean pass,
    the attack and an adversarial pass a batch, in float32 and eval mode. Before training it is measured where the
    Trainer has num_sanity_val_steps=-1.

    Args:
        attack: of a module that is not nsr's: attack(net, images, labels, generator=...) -> images.
        layers: names or patterns of its layers; None: the activations.
        top: how many neurons of a layer are named.
        directory: of the files; None: the logger's, or the Trainer's default_root_dir.
        seed: of the attack's draws.

    Errors:
        InputError: a module that is not nsr's without an attack, a pattern that matches no layer.
    """

    def __init__(
        self,
        *,
        attack: Callable[..., Tensor] | None = None,
        layers: str | Sequence[str] | None = None,
        top: int = 10,
        directory: str | Path | None = None,
        seed: int = 0,
    ):
        self.attack, self.layers = attack, layers
        self.top = check_number("top", top, lowest=1, whole=True)
        self.directory = None if directory is None else Path(directory)
        self.seed = check_number("seed", seed, lowest=0, whole=True)
        self.telemetry = Telemetry(top=self.top)
        self._taps: FeatureTaps | None = None  # of a module that is not nsr's
        self._metric: NetworkSensitivity | None = None
        self._drawn, self._drawing_seconds = 0.0, FIRST_DRAWING_SECONDS

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and not _has_own(pl_module) and self.attack is None:
            raise InputError(
                f"SensitivityLogger needs attack=... to measure {type(pl_module).__name__}, which is not nsr's; "
                "nsr.attacks.GradientAttack(epsilon='8/255', steps=10) is one"
            )
        self._where = self.directory or Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._metric is not None:
            self._metric.reset()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if _has_own(pl_module) or dataloader_idx > 0 or not _is_recorded(trainer):
            return
        images, labels = batch[0], batch[1]
        taps, metric = self._measuring(pl_module, images)
        seed = draw_seed(self.seed, 1, batch_idx, trainer.global_rank)
        generator = Generator(images.device).manual_seed(seed)
        assert self.attack is not None
        with full_precision(images.device):
            _, clean = taps(images)
            _, adversarial = taps(self.attack(pl_module, images, labels, generator=generator))
            metric.update(*network_sums(taps.layers, clean, adversarial), len(labels))

    def _measuring(self, pl_module: Any, images: Tensor) -> tuple[FeatureTaps, NetworkSensitivity]:
        """Taps and sums, made at the first batch."""
        if self._taps is None or self._metric is None:
            layers = find_layers(pl_module, images[:2], self.layers)
            self._taps = FeatureTaps(pl_module, layers)
            self._metric = NetworkSensitivity(layers).to(images.device)
        return self._taps, self._metric

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not _is_recorded(trainer):
            return
        own = _has_own(pl_module)
        sensitivities = pl_module.sensitivities if own else self._metric.compute()  # type: ignore[union-attr]
        if trainer.is_global_zero:
            self._record(trainer, pl_module.figures["validation"] if own else {}, sensitivities)

    def _record(
        self, trainer: pl.Trainer, figures: Mapping[str, float], sensitivities: Mapping[str, LayerSensitivity]
    ) -> None:
        epoch = finished_epochs(trainer)
        told = self.telemetry.add(epoch, sensitivities)
        self._where.mkdir(parents=True, exist_ok=True)
        write_sensitivities(self._where / "sensitivity.csv", epoch, sensitivities)
        write_layers(self._where / "layers.csv", epoch, told)
        for logger in trainer.loggers:
            if epoch == 0 and figures:  # Lightning logs nothing of the validation before training
                logger.log_metrics({**figures, "epoch": 0}, step=0)
            log_sensitivities(logger, sensitivities, told, step=trainer.global_step, epoch=epoch)
        now = time.perf_counter()
        if self._drawn == 0.0:
            self._drawn = now  # the clock starts
        elif self._drawing_seconds <= DRAWING_SHARE * (now - self._drawn):
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        started = time.perf_counter()
        draw_heat_map(self._where / "sensitivity", self.telemetry.history)
        for logger in trainer.loggers:
            log_picture(logger, "sensitivity/heat_map", self._where / "sensitivity.png", step=trainer.global_step)
        self._drawn = time.perf_counter()
        self._drawing_seconds = self._drawn - started

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and self.telemetry.history:
            self._draw(trainer)
        if self._taps is not None:
            self._taps.remove()
            self._taps = self._metric = None

    def state_dict(self) -> dict[str, Any]:
        return self.telemetry.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.telemetry.load(state_dict)


def _has_own(pl_module: Any) -> bool:
    """Whether the module measures sensitivities itself, as nsr's does."""
    return hasattr(pl_module, "sensitivities")


def _is_recorded(trainer: pl.Trainer) -> bool:
    """Of a training run, and of all validation images."""
    whole = not trainer.sanity_checking or trainer.num_sanity_val_steps == float("inf")
    return trainer.state.fn == "fit" and whole
