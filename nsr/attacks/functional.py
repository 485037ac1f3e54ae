"""The gradient attack as functions, with all inputs checked: `pgd` and `fgsm`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nsr.attacks.gradient import AttackLoss, GradientAttack
from nsr.errors import check_batch
from nsr.randomness import Generators


def pgd(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | str,
    step_size: float | str | None = None,
    steps: int,
    norm: str = "linf",
    random_start: bool | str = True,
    loss: str | AttackLoss | None = None,
    targeted: bool | str = False,
    restarts: int = 1,
    keep_best: bool = False,
    batch_norm: str = "eval",
    eot_samples: int = 1,
    generator: Generators = None,
) -> Tensor:
    """Adversarial images by projected gradient descent (Madry et al. 2018).

    Args:
        net: maps images (batch, channel, height, width) in [0, 1] to logits (batch, class).
        images: floats in [0, 1].
        labels: (batch,) the true classes; the classes to reach where `targeted` is True.
        epsilon, step_size, steps, norm, random_start, loss, targeted, restarts, keep_best, batch_norm, eot_samples: see
            `GradientAttack`.
        generator: of the random start, or one for each image; the same generator gives the same images.

    Returns:
        Images within epsilon of `images` and within [0, 1] to float rounding, detached, in the dtype of `images`. No
        gradient, hook, mode or requires_grad flag of `net` is left changed, and with batch_norm='update' alone a
        buffer; no parameter gradient is computed.

    Errors:
        InputError: a setting out of range, images outside [0, 1], labels that are no classes of `net`, logits that
            are not finite.
    """
    attack = GradientAttack(
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        norm=norm,
        random_start=random_start,
        loss=loss,
        targeted=targeted,
        restarts=restarts,
        keep_best=keep_best,
        batch_norm=batch_norm,
        eot_samples=eot_samples,
    )
    check_batch(images, labels)
    return attack(net, images, labels, generator=generator, check=True)


def fgsm(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | str,
    norm: str = "linf",
    batch_norm: str = "eval",
) -> Tensor:
    """Adversarial images by the fast gradient sign method (Goodfellow et al. 2015): one step of size epsilon.

    Arguments, result and errors as in `pgd`; in L2 the step goes along the gradient, in L1 along its largest entries.
    """
    chosen: Any = {"norm": norm, "random_start": False, "batch_norm": batch_norm}
    attack = GradientAttack(epsilon=epsilon, steps=1, step_size=epsilon, **chosen)
    check_batch(images, labels)
    return attack(net, images, labels, check=True)
