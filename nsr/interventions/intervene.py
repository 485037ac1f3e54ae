"""`intervene`: the analysis as one call on images in memory and anybody's network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

from nsr.errors import InputError, check_batch, check_logits, check_number
from nsr.interventions.effects import Effects
from nsr.interventions.experiment import Interventions
from nsr.interventions.ranking import Pairs
from nsr.layers import find_layers
from nsr.modes import full_precision, network_mode
from nsr.randomness import draw_seed, frozen_stream

FEWEST = 10  # images of a half: with fewer neither a ranking nor an interval says anything
HALVES, ATTACK = 5, 6  # streams of random numbers


def intervene(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Callable[..., Tensor] | None = None,
    adversarial: Tensor | None = None,
    layers: str | Sequence[str] | None = None,
    within: nn.Module | None = None,
    shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
    kinds: Sequence[str] = ("restore", "corrupt"),
    rankings: Sequence[str] = ("activation",),
    draws: int = 20,
    replicates: int = 2000,
    images_at_once: int = 256,
    batch_size: int = 250,
    seed: int = 0,
) -> Effects:
    """What replacing the outputs of sets of neurons does to the prediction, clean and under attack.

    Args:
        net: images in [0, 1] -> logits; any module, left as it was.
        images: (image, channel, height, width), half of which neurons are ranked on, by class.
        labels: (image,).
        attack: attack(net, images, labels, generator=...) -> adversarial images, such as `nsr.attacks.GradientAttack`.
        adversarial: the adversarial images instead, in the order of `images`.
        layers: names or patterns; None: the activations.
        within: the part of `net` that the names refer to.
        batch_size: images whose features are held at the same time.
        seed: of the halves, the attack, the random sets and the bootstrap.
        shares, kinds, rankings, draws, replicates, images_at_once: see `Interventions`.

    Returns:
        Effects: `.rows`, `.frame()` (a pandas DataFrame), `.layers`, `.images`.

    Errors:
        InputError: a setting out of range, a layer that is not there, too few images for two halves, none that the
            attack fools.
    """
    analysis = Interventions(
        shares=shares,
        kinds=kinds,
        rankings=rankings,
        draws=draws,
        replicates=replicates,
        images_at_once=images_at_once,
        seed=seed,
    )
    check_number("batch_size", batch_size, lowest=1, whole=True)
    check_batch(images, labels)
    if (attack is None) == (adversarial is None):
        raise InputError("give one of attack and adversarial: what makes the adversarial images, or these themselves")
    if adversarial is not None and adversarial.shape != images.shape:
        raise InputError(
            f"adversarial has shape {tuple(adversarial.shape)}; it must be that of images, {tuple(images.shape)}"
        )
    found = find_layers(net, images[:2], layers, within=within)
    with torch.no_grad(), network_mode(net, "eval"):
        check_logits(net(images[:2]), labels[:2])

    def pairs(half: int, indices: Tensor) -> Iterator[Pairs]:
        for number, index in enumerate(indices.to(images.device).split(batch_size)):
            part, true = images[index], labels[index]
            if adversarial is not None:
                yield Pairs(part, adversarial[index], true)
            elif attack is not None:
                yield Pairs(part, attacked(net, part, true, attack, place=(seed, half, number)), true)

    ranking, tested = (pairs(half, indices) for half, indices in enumerate(halves(labels, seed=seed)))
    return analysis.measure(net, found, ranking, tested, within=within)


def attacked(
    net: nn.Module, images: Tensor, labels: Tensor, attack: Callable[..., Tensor], *, place: tuple[int, int, int]
) -> Tensor:
    """A batch's adversarial images, in float32 and eval mode; its place is (seed, half, number of the batch)."""
    generator = Generator(images.device).manual_seed(draw_seed(place[0], ATTACK, *place[1:]))
    with full_precision(images.device), network_mode(net, "eval"):
        return attack(net, images, labels, generator=generator)


def halves(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """The images to rank on and those to intervene on, in ascending order: of every class half, dealt out by `seed`.

    Args:
        labels: (image,).

    Returns:
        (image // 2 rounded up,) and (image // 2,) indices, on the CPU.

    Errors:
        InputError: fewer than 20 images.
    """
    check_halves(len(labels))
    order = torch.from_numpy(frozen_stream(seed, HALVES).permutation(len(labels)))
    by_class = order[torch.sort(labels.cpu()[order], stable=True).indices]
    return by_class[::2].sort().values, by_class[1::2].sort().values


def check_halves(images: int) -> None:
    """InputError where there are fewer than 20."""
    if images < 2 * FEWEST:
        raise InputError(
            f"{images} images are too few for two halves, one to rank neurons on and one to intervene on; "
            f"interventions need {2 * FEWEST} or more"
        )
