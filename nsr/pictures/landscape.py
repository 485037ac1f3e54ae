"""Loss landscapes around images: the adversarial direction, and a random one of the same length."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from nsr.attacks.balls import distance, per_image
from nsr.losses import cross_entropy
from nsr.pictures.subject import Subject, parts
from nsr.randomness import draw_seed

STEPS = 9  # of each direction, from -1 to 1
STREAM = 21  # of random numbers


def random_direction(subject: Subject, positions: list[int], difference: Tensor, norm: str) -> Tensor:
    """Return directions as long as the adversarial differences (image, ...): signs in L-infinity, else normal ones."""
    drawn = []
    for place in subject.places[torch.as_tensor(positions)].tolist():
        generator = Generator().manual_seed(draw_seed(subject.seed, STREAM, place))
        drawn.append(torch.randn(difference.shape[1:], generator=generator))
    direction = torch.stack(drawn)
    direction = direction.sign() if norm == "linf" else direction
    nothing = torch.zeros_like(direction)
    lengths = [distance(nothing, each, norm) for each in (difference, direction)]
    return direction * per_image(lengths[0] / lengths[1], direction)


def grid(subject: Subject, image: Tensor, first: Tensor, second: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and correctness at image + a * first + b * second, clipped to [0, 1].

    Args:
        image, first, second: (channel, height, width).

    Returns:
        (b, a) each, a and b from -1 to 1 in 9 steps.
    """
    scales = torch.linspace(-1, 1, STEPS)
    points = [(b, a) for b in scales.tolist() for a in scales.tolist()]
    losses, correct = [], []
    for own in parts(range(len(points)), subject.batch):
        moved = torch.stack([image + points[n][1] * first + points[n][0] * second for n in own]).clamp(0, 1)
        with torch.no_grad():
            logits = subject.net(moved.to(subject.device))
        labels = torch.full((len(own),), label, device=logits.device)
        losses.append(cross_entropy(logits, labels).cpu())
        correct.append((logits.argmax(1) == labels).cpu())
    return torch.cat(losses).view(STEPS, STEPS), torch.cat(correct).view(STEPS, STEPS)
