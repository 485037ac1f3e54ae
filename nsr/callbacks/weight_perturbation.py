"""Adversarial weight perturbation (AWP): each step's gradient is taken at the worst weights nearby.

    v_l = gamma * || w_l || * g_l / || g_l ||,  g = grad L(w; x', y);  w <- w - step along grad L(w + v)

Source: Wu, Xia and Wang 2020, equations 8 to 10, with one step of ascent as in their code; l runs over the weights of
more than one dimension. gamma is 0.005 for TRADES and 0.01 for PGD training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn

from nsr.attacks.balls import unit
from nsr.errors import InputError, check_number
from nsr.modes import batch_norm_mode


def weight_perturbation(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """Return gamma * || w || * g / || g ||, shaped as `weight`; zero where the gradient is zero."""
    return gamma * torch.linalg.vector_norm(weight) * unit(gradient[None])[0]


class AdversarialWeightPerturbation(pl.Callback):
    """Perturbs the weights before a step's passes and restores them exactly after its backward pass.

    The objective alone is ascended; a stabilizer's term is computed at the perturbed weights. The ascent's gradient is
    averaged over processes, its passes leave BatchNorm's running statistics untouched. The optimizer, and so weight
    decay, takes the weights without perturbation (the authors' code decays the perturbed ones).

    Args:
        gamma: size of the perturbation relative to each weight's norm.
        warmup: epochs without perturbation at the start.

    Errors:
        InputError: a setting out of range; a module that steps its optimizer by itself, as free training does.
    """

    def __init__(self, *, gamma: float = 0.005, warmup: int = 0):
        self.gamma = check_number("callbacks.awp.gamma", gamma, lowest=0)
        self.warmup = check_number("callbacks.awp.warmup", warmup, lowest=0, whole=True)
        self._module: Any = None
        self._unperturbed: list[tuple[nn.Parameter, Tensor]] = []

    def check(self, module: pl.LightningModule, epochs: int) -> None:
        """Raise InputError where the module steps its optimizer itself."""
        if not module.automatic_optimization:
            raise InputError("callbacks has awp, which has no meaning with objective=free; remove one of them")

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.check(pl_module, 1)
            self._module = pl_module
            pl_module.before_passes.append(self.perturb)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self.perturb in pl_module.before_passes:
            pl_module.before_passes.remove(self.perturb)
        self._module = None

    def perturb(self, views: Mapping[str, Tensor], labels: Tensor) -> None:
        """Perturb the network's weights to where the objective on {view: images} is larger."""
        module = self._module
        if module.current_epoch < self.warmup:
            return
        named = [(name, weight) for name, weight in module.net.named_parameters() if weight.requires_grad]
        weights = [weight for name, weight in named if weight.ndim > 1 and "weight" in name]
        with batch_norm_mode(module.net, "batch"):
            loss = module.compute_objective(views, labels)
        # a weight that the loss does not use, such as another head's, stays as it is
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        self._unperturbed = [(weight, weight.detach().clone()) for weight in weights]
        with torch.no_grad():
            for weight, gradient in zip(weights, _averaged(gradients), strict=True):
                weight.add_(weight_perturbation(weight, gradient, self.gamma))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.restore()  # so that no checkpoint of a run that ends in the middle of a step holds perturbed weights

    def restore(self) -> None:
        """Undo the perturbation exactly."""
        with torch.no_grad():
            for weight, value in self._unperturbed:
                weight.copy_(value)
        self._unperturbed = []


def _averaged(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Average over processes, exchanged as one flat tensor."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = (flat / distributed.get_world_size()).split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
