"""FGSM, BIM and PGD: steepest ascent of a loss inside a ball around each image. One loop serves them all.

x_0 = x, or a random point of the ball; x_{t+1} = project(x_t + step_size * direction(grad_x loss(net(x_t), y))).
Sources: Goodfellow et al. 2015 (FGSM: one step of size epsilon), Kurakin et al. 2017 (BIM: no random start; targets
of least likelihood), Madry et al. 2018 (PGD), Carlini and Wagner 2017 (the margin), Zhang et al. 2019 (KL to the clean
prediction from normal noise), de Jorge et al. 2022 (N-FGSM: one step from wider noise, not projected).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor, nn

from nsr.attacks.balls import BALLS
from nsr.errors import InputError, check_batch, check_choice, check_epsilon, check_logits, check_number, fraction
from nsr.losses import cross_entropy, kl_divergence, margin, precise
from nsr.modes import MODES, batch_norm, frozen_parameters, network_mode, unchanged_buffers

LOSSES = ("cross_entropy", "margin", "kl")
GAUSSIAN_NOISE = 0.001  # the standard deviation of Zhang et al. 2019, in pixels


class GradientAttack:
    """The settings of an attack, checked once; `attack(net, images, labels)` gives adversarial images.

    For a training loop: unlike `pgd` it does not look at the pixel values, which would wait for the device.

    Args:
        epsilon: radius of the ball in pixel units, a number or text such as '8/255'; 0 gives the images back.
        steps: number of gradient steps; 0 with a random start is a random point of the ball.
        step_size: in the units of epsilon; None: 2.5 * epsilon / steps, Madry et al.'s rule.
        norm: 'linf', 'l2' or 'l1'.
        random_start: True: a uniform point of the ball; 'gaussian': normal noise, as in TRADES; False: the image.
        noise: the size of a random start in pixel units, its radius where it is uniform (None: epsilon), its standard
            deviation where it is gaussian (None: 0.001).
        projection: whether each step is put back into the ball; without it (N-FGSM) the pixel range alone bounds it.
        loss: what is ascended: 'cross_entropy', 'margin' (Carlini and Wagner's) or 'kl' (to the clean prediction).
        targeted: True: the labels are the classes to reach; 'least_likely': the class that the network gives the least
            probability on the clean image; the loss then descends. Not with 'kl'.
        restarts: how often to begin anew; above 1 the best iterate is kept.
        keep_best: of each image the best iterate instead of the last, of all restarts: one that fools the network
            before one that does not, then the one of the highest loss. One forward pass more a restart.
        mode: 'eval' or 'train' of the network during the attack; 'train' uses the batch's statistics in BatchNorm.

    Passes: one forward and one backward a step; with 'kl' and 'least_likely' one forward more.

    Errors:
        InputError: a setting out of range; in L2 and L1, on the first call, an epsilon beyond the image's diameter.
    """

    def __init__(
        self,
        *,
        epsilon: float | str,
        steps: int,
        step_size: float | str | None = None,
        norm: str = "linf",
        random_start: bool | str = True,
        noise: float | str | None = None,
        projection: bool = True,
        loss: str = "cross_entropy",
        targeted: bool | str = False,
        restarts: int = 1,
        keep_best: bool = False,
        mode: str = "eval",
    ):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.steps = check_number("steps", steps, lowest=0, whole=True)
        if step_size is None:
            step_size = 2.5 * self.epsilon / max(steps, 1)
        self.step_size = float(check_number("step_size", fraction("step_size", step_size), lowest=0))
        self.random_start = check_choice("random_start", random_start, (True, False, "gaussian"))
        self.projection = check_choice("projection", projection, (True, False))
        if noise is None:
            noise = GAUSSIAN_NOISE if random_start == "gaussian" else self.epsilon
        self.noise = float(check_number("noise", fraction("noise", noise), lowest=0, got=noise))
        if random_start is True and projection and self.noise > self.epsilon:
            raise InputError(f"noise is {noise!r}, beyond the ball of radius {epsilon!r}; it needs projection=false")
        self.loss = check_choice("loss", loss, LOSSES)
        if loss == "kl" and random_start is False:
            raise InputError(
                "loss is 'kl' without random start, where its gradient is zero; random_start must be true or gaussian"
            )
        self.targeted = check_choice("targeted", targeted, (False, True, "least_likely"))
        if loss == "kl" and targeted:
            raise InputError("loss is 'kl', which has no target; targeted needs loss 'cross_entropy' or 'margin'")
        self.restarts = check_number("restarts", restarts, lowest=1, whole=True)
        self.keep_best = check_choice("keep_best", keep_best, (True, False)) or restarts > 1
        self.mode = check_choice("mode", mode, MODES)
        self.share = 1.0  # of epsilon, step size and noise: what a ramp moves

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
        check_epsilon("epsilon", self.epsilon, norm=self.norm, pixels=images[0].numel())

        def logits_of(inputs: Tensor) -> Tensor:
            logits = net(inputs)
            if check:
                check_logits(logits, labels)
            return logits

        epsilon, step_size = self.share * self.epsilon, self.share * self.step_size
        # an evaluation may stand in inference mode, whose tensors cannot be differentiated
        with torch.inference_mode(False), torch.enable_grad():
            images, labels = _ordinary(images), _ordinary(labels).long()
            if epsilon == 0:
                return images.clone()
            ball = BALLS[self.norm](images, epsilon if self.projection else inf)
            best = _Best(images) if self.keep_best else None
            # BatchNorm writes nothing in training either; what else writes into buffers then is undone
            in_training = unchanged_buffers(net) if self.mode == "train" else nullcontext()
            with in_training, network_mode(net, self.mode), batch_norm(net, "batch"), frozen_parameters(net):
                loss_of, fooled_by = self._aims(logits_of, images, labels)
                for _ in range(self.restarts):
                    adversarial = self._start(ball, generator)
                    for _ in range(self.steps):
                        adversarial = adversarial.detach().requires_grad_()
                        logits = logits_of(adversarial)
                        losses = loss_of(logits)
                        # a sum, not a mean: each image's own gradient, which half precision does not lose
                        (gradient,) = torch.autograd.grad(losses.sum(), adversarial)
                        adversarial = adversarial.detach()
                        if best is not None:
                            best.consider(adversarial, losses.detach(), fooled_by(logits))
                        adversarial = ball.step(adversarial, gradient, step_size)
                    if best is not None:
                        with torch.no_grad():
                            logits = logits_of(adversarial)
                            best.consider(adversarial, loss_of(logits), fooled_by(logits))
            return adversarial.detach() if best is None else best.images

    def _start(self, ball: Any, generator: Generator | None) -> Tensor:
        images, noise = ball.images, self.share * self.noise
        if self.random_start is False:
            return images.clone()
        if self.random_start == "gaussian":
            drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
            return ball.moved(noise * drawn)
        return BALLS[self.norm](images, noise).random_point(generator)

    def _aims(
        self, logits_of: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """logits -> what to ascend (batch,), and logits -> whether the attack has reached its aim (batch,)."""

        def misclassified(logits: Tensor) -> Tensor:
            return logits.argmax(1) != labels

        if self.loss == "kl":
            with torch.no_grad():
                clean = logits_of(images)
            return lambda logits: kl_divergence(clean, logits), misclassified
        loss = cross_entropy if self.loss == "cross_entropy" else margin
        if self.targeted is True:
            return lambda logits: -loss(logits, labels), lambda logits: logits.argmax(1) == labels
        if self.targeted == "least_likely":
            with torch.no_grad():
                target = logits_of(images).argmin(1)
            return lambda logits: -loss(logits, target), misclassified
        return lambda logits: loss(logits, labels), misclassified

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "share")
        return f"{type(self).__name__}({settings})"


class _Best:
    """Of each image the best iterate seen; nothing here waits for the device."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.losses = torch.full((len(images),), -inf, dtype=precise(images), device=images.device)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def consider(self, images: Tensor, losses: Tensor, fooled: Tensor) -> None:
        better = torch.where(fooled == self.fooled, losses > self.losses, fooled)
        self.images = torch.where(better.view(-1, *[1] * (images.ndim - 1)), images, self.images)
        self.losses = torch.where(better, losses, self.losses)
        self.fooled = fooled | self.fooled


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
    loss: str = "cross_entropy",
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

    Arguments, result and errors as in `pgd`; in L2 the step goes along the gradient, in L1 along its largest entries.
    """
    settings: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "mode": mode}
    return pgd(net, images, labels, **settings, step_size=epsilon, steps=1, random_start=False)


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()
