"""Auto-PGD of pyautoattack, and the choice of the PGD that measures: APGD in L1, where nsr's own is weaker."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from nsr.attacks.balls import per_image
from nsr.attacks.gradient import GradientAttack
from nsr.attacks.third_party import NORMS, ThirdParty
from nsr.errors import InputError, check_choice, check_number
from nsr.losses import margin

LOSSES = {"cross_entropy": "", "dlr": " on DLR", "margin": " on the margin"}  # {loss: its place in a title}
_QUIET = logging.getLogger(f"{__name__}.original")
_QUIET.setLevel(logging.ERROR)  # it warns of zero gradients in every batch; the check zero_gradients does for a network


class APGD(ThirdParty):
    """pyautoattack's Auto-PGD (Croce and Hein 2020; in L1 2021), with an adversarial candidate for every image.

    An image that was fooled gets an iterate that fools the network, any other its iterate of the highest loss. In L1
    the radius shrinks from 3 epsilon by 2 epsilon to epsilon, as in AutoAttack's standard version.

    Args:
        epsilon: radius in pixel units.
        norm: 'linf', 'l2' or 'l1'.
        steps: gradient steps of a run.
        restarts: number of runs; further ones attack the images that none has fooled.
        loss: 'cross_entropy', 'dlr' (for 2 classes the margin) or 'margin' (Carlini and Wagner).
        eot_samples: gradients to average in each step, for networks that draw.

    Passes: steps + 1 forward and backward (in L1 + 3) of a run, times eot_samples, and one forward.

    Errors:
        InputError: a setting out of range.
    """

    def __init__(
        self,
        *,
        epsilon: float | str,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
        loss: str = "cross_entropy",
        eot_samples: int = 1,
    ):
        super().__init__(epsilon, norm, NORMS)
        self.steps = check_number("steps", steps, lowest=1, whole=True)
        self.restarts = check_number("restarts", restarts, lowest=1, whole=True)
        self.loss = check_choice("loss", loss, LOSSES)
        self.eot_samples = check_number("eot_samples", eot_samples, lowest=1, whole=True)

    @property
    def title(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        eot = f", EoT-{self.eot_samples}" if self.eot_samples > 1 else ""
        return f"APGD-{NORMS[self.norm]}, {self.steps} steps{LOSSES[self.loss]}{restarts}{eot}"

    def _run(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        original = self._original(net, images)
        adversarial, losses = images.clone(), torch.full((len(images),), -math.inf, device=images.device)
        left = torch.arange(len(images), device=images.device)
        for _ in range(self.restarts):
            highest, is_robust, loss, fooling = self._once(original, images[left], labels[left])
            found = torch.where(per_image(is_robust, highest), highest, fooling)
            better = ~is_robust | (loss > losses[left])
            adversarial[left[better]], losses[left[better]] = found[better], loss[better].to(losses.dtype)
            left = left[is_robust]
            if len(left) == 0:
                break
        return adversarial.clamp(0, 1)

    def _original(self, net: nn.Module, images: Tensor) -> Any:
        from pyautoattack.autopgd_base import APGDAttack

        settings: Any = {"n_iter": self.steps, "norm": NORMS[self.norm], "eps": self.epsilon}
        settings["eot_iter"] = self.eot_samples
        loss = "ce" if self.loss == "cross_entropy" else "dlr"
        original = APGDAttack(net, loss=loss, device=images.device, logger=_QUIET, **settings)
        original.init_hyperparam(images)
        with torch.no_grad():
            if self.loss == "margin" or net(images[:1]).shape[1] < 3:
                original.dlr_loss = margin
        return original

    def _once(self, original: Any, images: Tensor, labels: Tensor) -> Any:
        """(iterates of the highest loss, whether no iterate fools, highest losses, iterates that fool)."""
        wide = math.ceil(0.3 * self.steps)  # steps at 3 epsilon, and at 2
        if self.norm != "l1" or self.steps <= 2 * wide:
            return original.attack_single_run(images, labels)
        radii = [scale * self.epsilon for scale in (3.0, 2.0, 1.0)]
        return original.decr_eps_pgd(images, labels, radii, [wide, wide, self.steps - 2 * wide])


def measuring_pgd(*, norm: str = "linf", **settings: Any) -> GradientAttack | APGD:
    """Return the PGD that measures: `GradientAttack` in Linf and L2, `APGD` of as many steps in L1.

    Args:
        norm: 'linf', 'l2' or 'l1'.
        settings: of `GradientAttack`. In L1 epsilon, steps, restarts, eot_samples and a loss None, 'cross_entropy' or
            'margin' are passed to APGD, which always keeps the best iterate and has none of the others.

    Errors:
        InputError: a setting out of range; in L1 one that APGD does not have, unless it has GradientAttack's default.
    """
    if norm != "l1":
        return GradientAttack(norm=norm, **settings)
    defaults = {name: each.default for name, each in inspect.signature(GradientAttack).parameters.items()}
    defaults["keep_best"] = settings.get("keep_best")  # APGD always keeps it
    changed = {name: value for name, value in settings.items() if value != defaults.get(name, inspect.Parameter.empty)}
    for name, value in changed.items():
        if name in defaults and name not in ("epsilon", "steps", "restarts", "loss", "eot_samples"):
            raise InputError(
                f"{name} is {value!r}; for norm=l1 it must be {defaults[name]!r}, since APGD, which has no {name}, "
                "measures there; nsr's own PGD: _target_=nsr.attacks.GradientAttack"
            )
    return APGD(norm=norm, **changed)
