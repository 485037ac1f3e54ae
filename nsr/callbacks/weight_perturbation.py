"""Adversarial weight perturbation (AWP): each step's gradient is taken where the weights are worst nearby.

    v_l = gamma * || w_l || * g_l / || g_l ||,  g = grad L(w; x', y);  w <- w - step along grad L(w + v)

Source: Wu, Xia and Wang 2020, equations 8 to 10, with one step of ascent as in their code; l goes over the weights of
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
from nsr.modes import batch_norm


class AdversarialWeightPerturbation(pl.Callback):
    """Moves the weights before a step's passes and puts them back, bit by bit, after its backward pass.

    The ascent is of the objective alone; a stabilising term is measured at the moved weights and not ascended. Its
    gradient is averaged over processes, its passes leave BatchNorm's running statistics untouched. The optimiser, and
    so weight decay, sees the weights without perturbation (the authors' code decays the perturbed ones).

    Args:
        gamma: size of the perturbation relative to each weight's norm.
        warmup: epochs without perturbation at the start.

    Errors:
        InputError: a setting out of range; a training step that steps its optimiser by itself (Free).
    """

    def __init__(self, *, gamma: float = 0.005, warmup: int = 0):
        self.gamma = check_number("callbacks.awp.gamma", gamma, lowest=0)
        self.warmup = check_number("callbacks.awp.warmup", warmup, lowest=0, whole=True)
        self._unmoved: list[tuple[nn.Parameter, Tensor]] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise InputError("callbacks has awp, which has no meaning with objective=free: leave one of them out")
        pl_module.before_passes = lambda inputs, labels: self.perturb(pl_module, inputs, labels)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.before_passes = None  # the module's next run may be one without

    def perturb(self, pl_module: Any, inputs: Mapping[str, Tensor], labels: Tensor) -> None:
        """Moves the weights of `pl_module.net` to where the objective on this batch is larger."""
        if pl_module.current_epoch < self.warmup:
            return
        net, objective = pl_module.net, pl_module.objective
        weights = [weight for name, weight in net.named_parameters() if weight.ndim > 1 and "weight" in name]
        weights = [weight for weight in weights if weight.requires_grad]
        with batch_norm(net, "batch"):
            terms = objective({side: net(inputs[side]) for side in objective.sides}, labels)
        loss = pl_module.batch_weight * torch.stack(list(terms.values())).sum()
        # a weight that the loss does not use, such as another head's, stays where it is
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        self._unmoved = [(weight, weight.detach().clone()) for weight in weights]
        with torch.no_grad():
            for weight, gradient in zip(weights, _averaged(gradients), strict=True):
                weight.add_(self.gamma * torch.linalg.vector_norm(weight) * unit(gradient[None])[0])

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.restore()  # so that no checkpoint of a run that ends in the middle of a step holds moved weights

    def restore(self) -> None:
        """Puts the weights back."""
        with torch.no_grad():
            for weight, value in self._unmoved:
                weight.copy_(value)
        self._unmoved = []


def _averaged(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The mean over processes, exchanged as one flat tensor."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = (flat / distributed.get_world_size()).split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
