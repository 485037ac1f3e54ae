"""FGSM, BIM and PGD: steepest ascent of the loss inside a ball around each image. One loop serves them all.

x_0 = x, or a random point of the ball; x_{t+1} = project(x_t + step_size * direction(grad_x loss(net(x_t), y))).
Sources: Goodfellow et al. 2015 (FGSM: one step of size epsilon), Kurakin et al. 2017 (BIM: no random start),
Madry et al. 2018 (PGD).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from nsr.attacks.balls import BALLS, precise
from nsr.boundary import check_batch, check_logits
from nsr.errors import check_choice, check_epsilon, check_number, fraction
from nsr.modes import MODES, batch_norm, frozen_parameters, network_mode, unchanged_buffers


class GradientAttack:
    """The settings of an attack, checked once; `attack(net, images, labels)` gives adversarial images.

    For a training loop: unlike `pgd` it does not look at the pixel values, which would wait for the device.

    Args:
        epsilon: radius of the ball in pixel units, a number or text such as '8/255'; 0 gives the images back.
        steps: number of gradient steps; 0 with a random start is a random point of the ball.
        step_size: in the units of epsilon; None: 2.5 * epsilon / steps, Madry et al.'s rule.
        norm: 'linf' or 'l2'.
        random_start: begin at a uniform point of the ball.
        mode: 'eval' or 'train' of the network during the attack; 'train' uses the batch's statistics in BatchNorm.

    Errors:
        InputError: a setting out of range; in L2, on the first call, an epsilon beyond the image's diameter.
    """

    def __init__(
        self,
        *,
        epsilon: float | str,
        steps: int,
        step_size: float | str | None = None,
        norm: str = "linf",
        random_start: bool = True,
        mode: str = "eval",
    ):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.steps = check_number("steps", steps, lowest=0, whole=True)
        if step_size is None:
            step_size = 2.5 * self.epsilon / max(steps, 1)
        self.step_size = float(check_number("step_size", fraction("step_size", step_size), lowest=0))
        self.random_start = check_choice("random_start", random_start, (True, False))
        self.mode = check_choice("mode", mode, MODES)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Adversarial images, detached, shaped as `images`; the network is left exactly as it was.

        Args:
            images: (batch, channel, height, width) in [0, 1].
            labels: (batch,).
            generator: of the random start, on the device of the images; None: torch's own.
        """
        return self._ascend(net, images, labels, generator)

    def _ascend(
        self, net: nn.Module, images: Tensor, labels: Tensor, generator: Generator | None, *, check: bool = False
    ) -> Tensor:
        check_epsilon("epsilon", self.epsilon, norm=self.norm, diameter=images[0].numel() ** 0.5)
        # an evaluation may stand in inference mode, whose tensors cannot be differentiated
        with torch.inference_mode(False), torch.enable_grad():
            images, labels = _ordinary(images), _ordinary(labels).long()
            ball = BALLS[self.norm](images, self.epsilon)
            adversarial = ball.random_point(generator) if self.random_start else images.clone()
            # BatchNorm writes nothing in training either; what else writes into buffers then is undone
            in_training = unchanged_buffers(net) if self.mode == "train" else nullcontext()
            with in_training, network_mode(net, self.mode), batch_norm(net, "batch"), frozen_parameters(net):
                for _ in range(self.steps if self.epsilon > 0 else 0):
                    adversarial = adversarial.detach().requires_grad_()
                    logits = net(adversarial)
                    if check:
                        check_logits(logits, labels)
                    # a sum, not a mean: each image's own gradient, which half precision does not lose
                    loss = F.cross_entropy(logits.to(precise(logits)), labels, reduction="sum")
                    (gradient,) = torch.autograd.grad(loss, adversarial)
                    adversarial = ball.step(adversarial.detach(), gradient, self.step_size)
            return adversarial.detach()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def pgd(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | str,
    step_size: float | str | None = None,
    steps: int,
    norm: str = "linf",
    random_start: bool = True,
    mode: str = "eval",
    generator: Generator | None = None,
) -> Tensor:
    """Adversarial images by projected gradient descent (Madry et al. 2018) on the cross-entropy.

    Args:
        net: maps images (batch, channel, height, width) in [0, 1] to logits (batch, class).
        images: floats in [0, 1].
        labels: (batch,) the true classes.
        epsilon, step_size, steps, norm, random_start, mode: see `GradientAttack`.
        generator: of the random start; the same generator gives the same images.

    Returns:
        Images within epsilon of `images` and within [0, 1] to float rounding, detached, in the dtype of `images`. No
        gradient, hook, mode, requires_grad flag or buffer of `net` is left changed; no parameter gradient is computed.

    Errors:
        InputError: a setting out of range, images outside [0, 1], labels that are no classes of `net`.
    """
    attack = GradientAttack(
        epsilon=epsilon, steps=steps, step_size=step_size, norm=norm, random_start=random_start, mode=mode
    )
    check_batch(images, labels)
    return attack._ascend(net, images, labels, generator, check=True)


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

    Arguments, result and errors as in `pgd`; in L2 the step goes along the gradient.
    """
    settings: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "mode": mode}
    return pgd(net, images, labels, **settings, step_size=epsilon, steps=1, random_start=False)


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()
