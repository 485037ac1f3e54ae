"""Training against the union of balls of several norms: MAX, AVG and MSD (Tramer and Boneh 2019; Maini et al. 2020)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nsr.attacks.balls import BALLS
from nsr.errors import InputError, check_choice, check_epsilon, check_number, fraction
from nsr.losses import cross_entropy
from nsr.modes import frozen_parameters, network_mode


class Worst:
    """MAX: each image's attack of the highest loss.

    Args:
        attacks: of nsr, one for each norm.
    """

    restores_network = True  # each of the attacks does

    def __init__(self, attacks: Sequence[Any]):
        self.attacks = _checked(attacks)

    def __call__(self, net, images: Tensor, labels: Tensor, *, generator=None) -> Tensor:
        found = torch.stack([attack(net, images, labels, generator=generator) for attack in self.attacks])
        with torch.no_grad(), network_mode(net, "eval"):
            losses = torch.stack([cross_entropy(net(adversarial), labels) for adversarial in found])
        return found[losses.argmax(0), torch.arange(len(images), device=images.device)]


class Average:
    """AVG: the mean over norms of the cross-entropy on the images of each norm's attack.

    Args:
        attacks: of nsr, one for each norm.
    """

    def __init__(self, attacks: Sequence[Any]):
        self.attacks = _checked(attacks)

    def __call__(self, net, clean_images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {
            f"{attack.norm}_cross_entropy": F.cross_entropy(net(attack(net, clean_images, labels)), labels)
            / len(self.attacks)
            for attack in self.attacks
        }


class MultiSteepestDescent:
    """MSD: of the steepest steps of all norms, each projected onto its own ball, take the one of the highest loss.

        d_p = project_p(d + step_size_p * steepest_p(grad L(x + d)))    for each norm p
        d <- the d_p of largest L(x + d_p)

    Source: Maini et al. 2020, algorithm 1, from d = 0. As in their code each image's best iterate is returned. The
    steepest step in L1 changes nsr's fixed fraction of the pixels, theirs from 5 to 20 at random.

    Args:
        epsilons: {norm: radius}, pixels in [0, 1].
        step_sizes: {norm: step}; None: 2.5 * epsilon / steps of each norm.
        steps: number of gradient steps; each makes a forward and backward pass, and a forward pass for each norm.
    """

    restores_network = True

    def __init__(self, *, epsilons: Mapping[str, Any], step_sizes: Mapping[str, Any] | None = None, steps: int = 50):
        self.steps = check_number("train_attack.steps", steps, lowest=1, whole=True)
        self.epsilons, self.step_sizes = {}, {}
        for norm, radius in epsilons.items():
            check_choice("train_attack.epsilons", norm, BALLS)
            self.epsilons[norm] = check_epsilon(f"train_attack.epsilons.{norm}", radius, norm=norm)
            size = 2.5 * self.epsilons[norm] / steps if step_sizes is None else fraction(norm, step_sizes.get(norm))
            self.step_sizes[norm] = check_number(f"train_attack.step_sizes.{norm}", size, above=0)

    def __call__(self, net, images: Tensor, labels: Tensor, *, generator=None) -> Tensor:
        images, balls = images.detach(), [BALLS[norm](images.detach(), each) for norm, each in self.epsilons.items()]
        places = torch.arange(len(images), device=images.device)
        adversarial, best, highest = images, images, torch.full((len(images),), -torch.inf, device=images.device)
        with torch.enable_grad(), network_mode(net, "eval"), frozen_parameters(net):
            for _ in range(self.steps):
                point = adversarial.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(net(point), labels).sum(), point)
                with torch.no_grad():
                    steps = zip(balls, self.step_sizes.values(), strict=True)
                    found = torch.stack([ball.step(adversarial, gradient, size) for ball, size in steps])
                    losses = torch.stack([cross_entropy(net(each), labels) for each in found])
                    loss, chosen = losses.max(0)
                    adversarial = found[chosen, places]
                    best = torch.where((loss > highest)[:, None, None, None], adversarial, best)
                    highest = torch.maximum(loss, highest)
        return best


def _checked(attacks: Sequence[Any]) -> Sequence[Any]:
    if not attacks or not all(getattr(attack, "restores_network", False) for attack in attacks):
        raise InputError(f"attacks is {attacks!r:.80}; it must be a list of attacks of nsr, one for each norm")
    return attacks
