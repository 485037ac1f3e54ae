"""Pairs of clean and adversarial images, in two halves: one to rank neurons on, one to intervene on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from nsr.errors import InputError
from nsr.modes import full_precision, network_mode
from nsr.randomness import draw_seed, frozen_stream

FEWEST = 20  # images: with fewer neither a ranking nor an interval means anything
HALVES, ATTACK = 5, 6  # streams of random numbers


class Pairs(NamedTuple):
    """A batch of images and their adversarial examples."""

    images: Tensor  # (batch, channel, height, width)
    adversarial: Tensor
    labels: Tensor  # (batch,)


def adversarial_pairs(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], attack: Callable[..., Tensor], *, seed: int, half: int
) -> Iterator[Pairs]:
    """Attack the batches of one half in float32 and eval mode; seed, half and batch number decide the random draws."""
    for number, (images, labels) in enumerate(batches):
        generator = Generator(images.device).manual_seed(draw_seed(seed, ATTACK, half, number))
        with full_precision(images.device), network_mode(net, "eval"):
            adversarial = attack(net, images, labels, generator=generator)
        yield Pairs(images, adversarial, labels)


def halves(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split the images by class into those to rank neurons on and those to intervene on.

    Args:
        labels: (image,).

    Returns:
        (image // 2 rounded up,) and (image // 2,) indices, ascending, on the CPU.

    Errors:
        InputError: fewer than 20 images.
    """
    check_image_count(len(labels))
    order = torch.from_numpy(frozen_stream(seed, HALVES).permutation(len(labels)))
    by_class = order[torch.sort(labels.cpu()[order], stable=True).indices]
    return by_class[::2].sort().values, by_class[1::2].sort().values


def check_image_count(images: int) -> None:
    """Raise InputError for fewer than 20 images."""
    if images < FEWEST:
        raise InputError(
            f"the number of images is {images}; interventions need {FEWEST} or more, half to rank neurons on and half "
            "to intervene on; take more images"
        )
