"""Minimum-norm attacks, foolbox's: they search the nearest adversarial image, at any distance.

Any attack may offer `nearest(net, images, labels, *, generator=None) -> images`: for each image the nearest adversarial
image it found, and the image itself where it found none. A misclassified image is its own nearest one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nsr.attacks.balls import distance, per_image
from nsr.attacks.third_party import NORMS, ThirdParty, load_foolbox, undisturbed
from nsr.errors import check_batch, check_number
from nsr.randomness import Generators

OVERSHOOT = 0.02  # of the radius, as in DeepFool; the distances found do not depend on it


class _MinimumNorm(ThirdParty):
    """An attack that searches the nearest adversarial image; as an attack it keeps those within epsilon."""

    steps: int

    def nearest(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None) -> Tensor:
        """Return the nearest adversarial images found, whatever epsilon is; the image itself where none was found.

        Args:
            images: (batch, channel, height, width) in [0, 1].
            labels: (batch,).
            generator: seeds the draws; of a sequence the first.
        """
        check_batch(images, labels)
        with undisturbed(net, images, generator) as in_float32:
            return self._nearest(in_float32, images.float(), labels).to(images.dtype)

    def _run(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return within(self._nearest(net, images, labels), images, self.norm, self.epsilon)

    def _nearest(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        foolbox = load_foolbox()
        bounded = foolbox.PyTorchModel(net, bounds=(0, 1), device=images.device)
        found = self._original(foolbox).run(bounded, images, foolbox.Misclassification(labels))
        return fooling(net, found.detach().clamp(0, 1), images, labels)

    def _original(self, foolbox: Any) -> Any:
        raise NotImplementedError


class FMN(_MinimumNorm):
    """The fast minimum-norm attack (Pintor et al. 2021).

    Args:
        epsilon: radius in pixel units within which an image counts as fooled.
        norm: 'linf', 'l2' or 'l1'.
        steps: gradient steps.

    Errors:
        InputError: a setting out of range.
    """

    def __init__(self, *, epsilon: float | str, norm: str = "linf", steps: int = 100):
        super().__init__(epsilon, norm, NORMS)
        self.steps = check_number("steps", steps, lowest=1, whole=True)
        self.title = f"FMN-{steps}"

    def _original(self, foolbox: Any) -> Any:
        return _crossing(foolbox, self.norm)(steps=self.steps)


class DDN(_MinimumNorm):
    """The decoupled direction and norm attack in L2 (Rony et al. 2019).

    Args:
        epsilon: radius in pixel units within which an image counts as fooled.
        norm: 'l2'.
        steps: gradient steps.

    Errors:
        InputError: a setting out of range.
    """

    def __init__(self, *, epsilon: float | str, norm: str = "l2", steps: int = 100):
        super().__init__(epsilon, norm, ("l2",))
        self.steps = check_number("steps", steps, lowest=1, whole=True)
        self.title = f"DDN-{steps}"

    def _original(self, foolbox: Any) -> Any:
        return foolbox.attacks.DDNAttack(steps=self.steps)


def _crossing(foolbox: Any, norm: str) -> Any:
    """Return foolbox's FMN for a norm, with two changes to its projection.

    Its radius overshoots by `OVERSHOOT`: where the loss is piecewise linear, the radius is the distance of the
    boundary, which many images else approach and never cross (docs/attacks.md). And in L2 it projects:
    foolbox 3.3.4 divides the length by itself there.
    """
    base: Any = getattr(foolbox.attacks, {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"}[norm])

    class Crossing(base):
        def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
            epsilon = epsilon * (1 + OVERSHOOT)
            if norm != "l2":
                return super().project(x, x0, epsilon)
            length = foolbox.devutils.flatten(x - x0).norms.l2(axis=-1).maximum(1e-12)
            return x0 + (x - x0) * foolbox.devutils.atleast_kd((epsilon / length).minimum(1), x.ndim)

    return Crossing


def fooling(net: nn.Module, candidates: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Return the candidates that the network misclassifies, and the image in the place of any other."""
    with torch.no_grad():
        fooled = net(candidates).argmax(1) != labels
    return torch.where(per_image(fooled, images), candidates, images)


def within(candidates: Tensor, images: Tensor, norm: str, epsilon: float) -> Tensor:
    """Return the candidates within epsilon of their images, and the image in the place of any other."""
    return torch.where(per_image(distance(images, candidates, norm) <= epsilon, images), candidates, images)
