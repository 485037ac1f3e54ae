"""Interventions as one call on images in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nsr.errors import InputError, check_batch, check_logits, check_number
from nsr.interventions.effects import Effects
from nsr.interventions.experiment import Interventions
from nsr.interventions.pairs import Pairs, adversarial_pairs, halves
from nsr.layers import find_layers
from nsr.modes import network_mode


def intervene(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Tensor | Callable[..., Tensor],
    *,
    settings: Interventions | None = None,
    root: nn.Module | None = None,
    batch_size: int = 250,
) -> Effects:
    """Measure the effects of activation patching and ablation of sets of neurons on the prediction.

    Args:
        net: images in [0, 1] -> logits; any module, left as it was.
        images: (image, channel, height, width), half of which neurons are ranked on, by class.
        labels: (image,).
        attack: attack(net, images, labels, generator=...) -> adversarial images, such as `nsr.attacks.GradientAttack`;
            or the adversarial images themselves, in the order of `images`.
        settings: layers, fractions, kinds, controls and seed; None: the defaults, on all activations.
        root: the module that the layers' names refer to; None: `net`.
        batch_size: images whose features are in memory at the same time.

    Returns:
        Effects: `.rows`, `.frame()` (a pandas DataFrame), `.layers`, `.images`.

    Errors:
        InputError: an unknown layer, too few images for two halves, none that the attack fools.
    """
    settings = settings or Interventions()
    check_number("batch_size", batch_size, lowest=1, whole=True)
    check_batch(images, labels)
    if isinstance(attack, Tensor) and attack.shape != images.shape:
        raise InputError(
            f"attack is a tensor of shape {tuple(attack.shape)}; adversarial images must have the shape of images, "
            f"{tuple(images.shape)}"
        )
    layers = find_layers(net, images[:2], settings.layers, root=root)
    with torch.no_grad(), network_mode(net, "eval"):
        check_logits(net(images[:2]), labels[:2])

    def pairs(half: int, indices: Tensor) -> Iterator[Pairs]:
        parts = indices.to(images.device).split(batch_size)
        if isinstance(attack, Tensor):
            return (Pairs(images[part], attack[part], labels[part]) for part in parts)
        batches = ((images[part], labels[part]) for part in parts)
        return adversarial_pairs(net, batches, attack, seed=settings.seed, half=half)

    ranking, tested = (pairs(half, indices) for half, indices in enumerate(halves(labels, seed=settings.seed)))
    return settings.measure(net, layers, ranking, tested, root=root)
