"""FGSM, BIM and PGD: steepest ascent of a loss inside a ball around each image, in one loop.

x_0 = x, or a random point of the ball; x_{t+1} = project(x_t + step_size * direction(grad_x loss(net(x_t), y))).
Sources: Goodfellow et al. 2015 (FGSM: one step of size epsilon), Kurakin et al. 2017 (BIM: no random start; targets
of least likelihood), Madry et al. 2018 (PGD), Carlini and Wagner 2017 (the margin), Zhang et al. 2019 (KL to the clean
prediction from normal noise), de Jorge et al. 2022 (N-FGSM: one step from wider noise, not projected), Athalye
et al. 2018 (EoT: the mean gradient of several passes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from nsr.attacks.balls import BALLS, Ball
from nsr.attacks.best import ALL, BestIterates, Places
from nsr.errors import (
    InputError,
    callable_name,
    check_choice,
    check_epsilon,
    check_finite_logits,
    check_length,
    check_logits,
    check_number,
)
from nsr.losses import cross_entropy, kl_from_clean, margin
from nsr.modes import batch_norm_mode, frozen_parameters, network_mode, unchanged_buffers
from nsr.randomness import Generators, draw

LOSSES = {None: "", "cross_entropy": "", "margin": " on the margin", "kl": " on KL"}  # {loss: its place in a title}
AIMS = {False: "", True: ", targeted", "least_likely": ", least likely"}  # {targeted: its place in a title}
BATCH_NORM = ("eval", "batch", "update")
GAUSSIAN_NOISE = 0.001  # the standard deviation of Zhang et al. 2019, in pixels

AttackLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, clean_logits, labels) -> (batch,)
OfLogits = Callable[[Tensor], Tensor]  # (batch, class) -> (batch,)
OfImages = Callable[[Tensor, Places], Tensor]  # logits (part of the batch, class), its places -> (part of the batch,)
Goal = tuple[OfImages, OfImages]  # the loss to ascend, the test of success


class GradientAttack:
    """An attack by gradient steps: `attack(net, images, labels)` returns adversarial images.

    For a training loop: unlike `pgd` it does not check the pixel values, which would wait for the device, and the
    logits only of a network in eval mode, once per call.

    Args:
        epsilon: radius of the ball in pixel units, a number or text such as '8/255'; 0 returns the images.
        steps: number of gradient steps; 0 with a random start is a random point of the ball.
        step_size: in the units of epsilon; None: 2.5 * epsilon / steps, Madry et al.'s rule.
        norm: 'linf', 'l2' or 'l1'.
        random_start: True: a uniform point of the ball; 'gaussian': normal noise, as in TRADES; False: the image.
        noise: the size of a random start in pixel units, its radius where it is uniform (None: epsilon), its standard
            deviation where it is gaussian (None: 0.001).
        projection: whether each step is projected onto the ball; without it (N-FGSM) only the pixel range bounds it.
        loss: the loss to ascend: 'cross_entropy', 'margin' (Carlini and Wagner), 'kl' (to the clean prediction), a
            callable (logits, clean_logits, labels) -> (batch,), or None: cross-entropy, in training the objective's
            `attack_loss` where it has one.
        targeted: True: the labels are the classes to reach; 'least_likely': the other class of least probability on
            the clean image; the loss then descends. With 'cross_entropy' and 'margin' only.
        restarts: number of runs from the start; above 1 the best iterate is kept.
        keep_best: return each image's best iterate of all restarts instead of the last: one that fools the network
            before one that does not, then the one of the highest loss. One more forward pass per restart.
        stop_early: drop each image from the batch at its first iterate that fools the network, in all further steps and
            restarts: no other image is fooled than with keep_best, which it implies. Waits for the device.
        batch_norm: 'eval': the network is attacked in eval mode. 'batch': in train mode; BatchNorm uses the batch's
            statistics, no buffer is left changed. 'update': in the mode that each module has, and passes in train mode
            update the running statistics, as in published code that attacks the network while it is trained.
        eot_samples: passes that each gradient, loss and success (of most passes) is taken over, for a network that
            draws: expectation over transformation.

    Passes: `eot_samples` forward and backward per step; with 'kl', a callable and 'least_likely' as many more forward.

    Errors:
        InputError: a setting out of range; in L2 and L1, on the first call, an epsilon beyond the image's diameter;
            of a network in eval mode, logits that are not finite in any of the passes.
    """

    restores_network = True
    draws_per_image = True

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
        loss: str | AttackLoss | None = None,
        targeted: bool | str = False,
        restarts: int = 1,
        keep_best: bool = False,
        stop_early: bool = False,
        batch_norm: str = "eval",
        eot_samples: int = 1,
    ):
        self.norm = check_choice("norm", norm, BALLS)
        self.epsilon = check_epsilon("epsilon", epsilon, norm=norm)
        self.steps = check_number("steps", steps, lowest=0, whole=True)
        self.step_size = step_size
        if self.step_size == 0 < self.epsilon and self.steps > 0:
            raise InputError(f"step_size is {step_size!r}; it must be above 0, or null: 2.5 * epsilon / steps")
        self.random_start = check_choice("random_start", random_start, (True, False, "gaussian"))
        self.projection = check_choice("projection", projection, (True, False))
        if noise is None:
            noise = GAUSSIAN_NOISE if random_start == "gaussian" else self.epsilon
        self.noise = check_length("noise", noise, norm=norm, epsilon=self.epsilon)
        if random_start is True and projection and self.noise > self.epsilon:
            raise InputError(f"noise is {noise!r}, beyond the ball of radius {epsilon!r}; it needs projection=false")
        self.targeted = check_choice("targeted", targeted, AIMS)
        self.loss = loss
        self.restarts = check_number("restarts", restarts, lowest=1, whole=True)
        self.stop_early = check_choice("stop_early", stop_early, (True, False))
        self.keep_best = check_choice("keep_best", keep_best, (True, False)) or restarts > 1 or self.stop_early
        # a batch without its fooled images has other statistics
        self.batch_norm = check_choice("batch_norm", batch_norm, BATCH_NORM[:1] if self.stop_early else BATCH_NORM)
        self.eot_samples = check_number("eot_samples", eot_samples, lowest=1, whole=True)
        self.scale = 1.0  # of epsilon, step size and noise: the value that a ramp changes

    @property
    def step_size(self) -> float:
        """In the units of epsilon; by Madry et al.'s rule for the steps at hand where it was set to None."""
        return 2.5 * self.epsilon / max(self.steps, 1) if self._step_size is None else self._step_size

    @step_size.setter
    def step_size(self, step_size: float | str | None) -> None:
        if step_size is not None:
            step_size = check_length("step_size", step_size, norm=self.norm, epsilon=self.epsilon)
        self._step_size = step_size

    @property
    def loss(self) -> str | AttackLoss | None:
        return self._loss

    @loss.setter
    def loss(self, loss: str | AttackLoss | None) -> None:
        loss = "kl" if loss is kl_from_clean else loss
        if not callable(loss):
            check_choice("loss", loss, LOSSES)
        if loss == "kl" and self.random_start is False:
            raise InputError(
                "loss is 'kl' without random start, where its gradient is zero; random_start must be true or gaussian"
            )
        if self.targeted and (callable(loss) or loss == "kl"):
            name = callable_name(loss) if callable(loss) else loss
            raise InputError(f"loss is {name!r}, which has no target; targeted needs loss 'cross_entropy' or 'margin'")
        self._loss = loss

    @property
    def soft_labels(self) -> bool:
        """Whether labels may be class probabilities (batch, class)."""
        return self.loss != "margin"

    @property
    def title(self) -> str:
        """A short name for tables: FGSM, PGD-40, PGD-40 on the margin, least likely, 5 restarts, EoT-20."""
        eot = f", EoT-{self.eot_samples}" if self.eot_samples > 1 else ""
        aim = AIMS[self.targeted]
        if self.steps == 1 and self.random_start is False:
            return f"FGSM{aim}{eot}"
        loss = f" on {callable_name(self.loss)}" if callable(self.loss) else LOSSES[self.loss]
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"PGD-{self.steps}{loss}{aim}{restarts}{eot}"

    def __call__(
        self, net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generators = None, check: bool = False
    ) -> Tensor:
        """Adversarial images, detached, shaped as `images`; the network is left as it was, but for 'update'.

        Args:
            images: (batch, channel, height, width) in [0, 1].
            labels: (batch,) classes, or (batch, class) probabilities where `soft_labels`.
            generator: of the random start, on the device of the images; None: torch's own; a sequence: one for each
                image, whose result then does not depend on the other images of the batch.
            check: validate the network's output in train mode too, and its shape, which waits for the device.
        """
        check_epsilon("epsilon", self.epsilon, norm=self.norm, pixels=images[0].numel())
        seen: Tensor | None = None
        watched = check or not net.training

        def forward(inputs: Tensor) -> Tensor:
            nonlocal seen
            logits = net(inputs)
            if check:
                check_logits(logits, labels)
            if watched and self.stop_early:  # it waits after each pass anyway
                check_finite_logits(logits.detach())
            elif watched:  # folded without waiting for the device: an entry that was not finite once stays so
                new = logits.detach()
                seen = new.clone() if seen is None else torch.where(seen.isfinite(), new, seen)
            return logits

        # an evaluation may run in inference mode, whose tensors cannot be differentiated
        with torch.inference_mode(False), torch.enable_grad():
            images, labels = _ordinary(images), _ordinary(labels)
            labels = labels if labels.is_floating_point() else labels.long()
            if self.scale * self.epsilon == 0:
                return images.clone()
            ball = BALLS[self.norm](images, self.scale * self.epsilon if self.projection else inf)
            best = BestIterates(images) if self.keep_best else None
            with self._mode(net), frozen_parameters(net):
                goal = self._goal(forward, images, labels)
                for _ in range(self.restarts):
                    adversarial = self._ascend(forward, ball, self._start(ball, generator), goal, best)
            if seen is not None:
                check_finite_logits(seen)
            return adversarial if best is None else best.images

    @contextmanager
    def _mode(self, net: nn.Module) -> Iterator[None]:
        if self.batch_norm == "update":
            yield
            return
        # BatchNorm writes nothing in train mode either; other writes into buffers are undone
        buffers = unchanged_buffers(net) if self.batch_norm == "batch" else nullcontext()
        mode = "train" if self.batch_norm == "batch" else "eval"
        with buffers, network_mode(net, mode), batch_norm_mode(net, "batch"):
            yield

    def _ascend(
        self, forward: OfLogits, ball: Ball, adversarial: Tensor, goal: Goal, best: BestIterates | None
    ) -> Tensor:
        """The last iterate, detached; every one is handed to `best`."""
        loss_of, success_of = goal
        places: Places = ALL

        def measure() -> list[Tensor]:
            logits = forward(adversarial)
            losses = loss_of(logits, places)
            # a sum, not a mean: each image's own gradient, which half precision does not lose
            gradients = torch.autograd.grad(losses.sum(), adversarial) if adversarial.requires_grad else ()
            return [*gradients, *([losses.detach(), success_of(logits, places)] if best is not None else [])]

        for _ in range(self.steps):
            if best is not None and self.stop_early:
                left = ~best.fooled[places]
                if not left.all():  # the others go on in a smaller batch
                    places = torch.arange(len(best.fooled), device=left.device)[places][left]
                    adversarial, ball = adversarial[left], BALLS[self.norm](ball.images[left], ball.epsilon)
                if not len(adversarial):
                    return adversarial
            adversarial = adversarial.detach().requires_grad_()
            gradient, *measured = self._mean(measure)
            adversarial = adversarial.detach()
            if best is not None:
                best.consider(adversarial, *measured, places=places)
            adversarial = ball.step(adversarial, gradient, self.scale * self.step_size)
        if best is not None:
            with torch.no_grad():
                best.consider(adversarial, *self._mean(measure), places=places)
        return adversarial.detach()

    def _mean(self, measure: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The mean over `eot_samples` measurements, each of them of its own passes."""
        means = measure()
        if self.eot_samples > 1:
            means = [value / self.eot_samples for value in means]
            for _ in range(self.eot_samples - 1):
                means = [mean + value / self.eot_samples for mean, value in zip(means, measure(), strict=True)]
        return means

    def _start(self, ball: Ball, generator: Generators) -> Tensor:
        images, noise = ball.images, self.scale * self.noise
        if self.random_start is False:
            return images.clone()
        if self.random_start == "gaussian":
            settings: Any = {"generator": generator, "dtype": images.dtype, "device": images.device}
            return ball.perturbed(noise * draw(torch.randn, *images.shape, **settings))
        return BALLS[self.norm](images, noise).random_point(generator)

    def _goal(self, forward: OfLogits, images: Tensor, labels: Tensor) -> Goal:
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        loss: Any = kl_from_clean if self.loss == "kl" else self.loss

        def misclassified(logits: Tensor, places: Places) -> Tensor:
            return logits.argmax(1) != classes[places]

        if callable(loss):
            with torch.no_grad():
                (clean,) = self._mean(lambda: [forward(images)])
            return lambda logits, places: loss(logits, clean[places], labels[places]), misclassified
        loss = margin if loss == "margin" else cross_entropy
        if self.targeted is True:
            return lambda logits, places: -loss(logits, labels[places]), lambda *call: ~misclassified(*call)
        if self.targeted == "least_likely":
            with torch.no_grad():
                (clean,) = self._mean(lambda: [forward(images)])
            # never the label itself, which the attack would restore: half the classes, where there are two
            target = clean.scatter(1, classes[:, None], inf).argmin(1)
            return lambda logits, places: -loss(logits, target[places]), misclassified
        return lambda logits, places: loss(logits, labels[places]), misclassified

    def __repr__(self) -> str:
        values = {name.removeprefix("_"): value for name, value in vars(self).items() if name != "scale"}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()
