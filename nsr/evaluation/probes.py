"""Probes for the masking checks beside attacks: a flag for each image of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from nsr.attacks import GradientAttack
from nsr.losses import cross_entropy
from nsr.modes import frozen_parameters

Probe = Callable[..., Tensor]  # probe(net, images, labels, generator=...) -> (image,) bool

PASSES = 5  # two may draw the same: a batch resized to one of three sizes
DETERMINISTIC = 1e-3  # of the largest logit: more between two passes is no rounding


def zero_gradient(net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
    """Flag images at which the loss has no gradient at all."""
    with torch.inference_mode(False), torch.enable_grad(), frozen_parameters(net):
        inputs = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(inputs), labels).sum(), inputs)
    return (gradient == 0).flatten(1).all(1)


def nondeterministic(net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
    """Flag images for which some of five passes give other logits than the first."""
    with torch.no_grad():
        first = net(images)
        others = torch.stack([net(images) for _ in range(PASSES - 1)])  # (pass, image, class)
    return (others - first).abs().amax((0, 2)) > DETERMINISTIC * first.abs().amax(1)


def epsilon_one(net: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
    """Flag images classified correctly under PGD-40 with epsilon 1, which can turn any image into any other."""
    adversarial = GradientAttack(epsilon=1, steps=40)(net, images, labels, generator=generator)
    with torch.no_grad():
        return (net(images).argmax(1) == labels) & (net(adversarial).argmax(1) == labels)


PROBES: dict[str, Probe] = {
    "zero_gradient": zero_gradient,
    "nondeterministic": nondeterministic,
    "epsilon_one": epsilon_one,
}
