"""PGD and FGSM as functions, with their batch validated: the library's front door."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor, nn

from nsr.attacks.gradient import AttackLoss, GradientAttack
from nsr.errors import check_batch


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
    mode: str = "eval",
    generator: Generator | None = None,
) -> Tensor:
    """Adversarial images by projected gradient descent (Madry et al. 2018).

    Args:
        net: maps images (batch, channel, height, width) in [0, 1] to logits (batch, class).
        images: floats in [0, 1].
        labels: (batch,) the true classes; the classes to reach where `targeted` is True.
        epsilon, step_size, steps, norm, random_start, loss, targeted, restarts, keep_best, mode: see `GradientAttack`.
        generator: of the random start; the same generator gives the same images.

    Returns:
        Images within epsilon of `images` and within [0, 1] to float rounding, detached, in the dtype of `images`. No
        gradient, hook, mode, requires_grad flag or buffer of `net` is left changed; no parameter gradient is computed.

    Errors:
        InputError: a setting out of range, images outside [0, 1], labels that are no classes of `net`.
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
        mode=mode,
    )
    check_batch(images, labels)
    return attack.run(net, images, labels, generator, check=True)


def fgsm(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | str,
    norm: str = "linf",
    mode: str = "eval",
) -> Tensor:
    """Adversarial images by the fast gradient sign method (Goodfellow et al. 2015): one step of size epsilon.

    Arguments, result and errors as in `pgd`; in L2 the step goes along the gradient, in L1 along its largest entries.
    """
    settings: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "mode": mode}
    return pgd(net, images, labels, **settings, step_size=epsilon, steps=1, random_start=False)
