"""CutMix and MixUp on the device: every image of a batch is mixed with another one, and so are the labels.

A mixing transform is a callable whose signature names `labels`:
    (images (batch, channel, height, width), labels (batch, class) of class probabilities) -> the same two
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import one_hot

from nsr.errors import InputError, check_number, dotted_name, named_arguments, one_line
from nsr.randomness import seeded

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TRIAL_IMAGES = 8


class MixUp:
    """MixUp: x = lambda * x_i + (1 - lambda) * x_j, and the labels alike.

    lambda of Beta(alpha, alpha) is drawn for every image, and j by a permutation of the batch.
    Source: Zhang, Cisse, Dauphin and Lopez-Paz, ICLR 2018, equation 1; their code draws one lambda for a batch.

    Args:
        alpha: of the Beta distribution; 1 is uniform.
        probability: that an image is mixed, in [0, 1].
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        self.alpha = float(check_number("alpha", alpha, above=0))
        self.probability = check_number("probability", probability, lowest=0, highest=1)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channel, height, width), (batch, class) -> the same."""
        own, other = self._draw(images)
        own = own.to(images.dtype)
        mixed = torch.lerp(images[other], images, own[:, None, None, None])
        return mixed, torch.lerp(labels[other], labels, own[:, None].to(labels.dtype))

    def _draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return lambda (batch,), 1 for an image that is not mixed, and the other image of each (batch,)."""
        size, device = len(images), images.device
        alpha = torch.full((size,), self.alpha, device=device)
        own = Beta(alpha, alpha, validate_args=False).sample()  # a validation would wait for the device
        own = torch.where(torch.rand(size, device=device) < self.probability, own, 1.0)
        return own, torch.randperm(size, device=device)


class CutMix(MixUp):
    """CutMix: a box of x_i is replaced with that of x_j; the labels are mixed by the areas.

    The box has a fraction 1 - lambda of the area and a uniform center; the part of it outside the image is cut off, and
    the labels follow the area that is left. lambda, box and j are drawn for every image, see `MixUp`.
    Source: Yun et al., ICCV 2019, equations 1 and 2 and algorithm A1; their code draws one box for a batch.

    Args:
        alpha, probability: see `MixUp`; their CIFAR runs mix with probability 0.5, all images of a batch or none.
    """

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own, other = self._draw(images)
        inside = []
        for length in images.shape[2:]:
            side = (length * (1 - own).sqrt()).long()  # (batch,)
            center = torch.randint(length, (len(images),), device=images.device)
            place = torch.arange(length, device=images.device)
            first = center - side // 2
            inside.append((place >= first[:, None]) & (place < (first + side)[:, None]))  # (batch, length)
        box = inside[0][:, :, None] & inside[1][:, None, :]  # (batch, height, width)
        own = 1 - box.flatten(1).to(labels.dtype).mean(1)
        return torch.where(box[:, None], images[other], images), torch.lerp(labels[other], labels, own[:, None])


class Mixing:
    """Mixing transforms, one after the other, on class indices; draws as in `Augmentation`.

    Args:
        transforms: the mixing transforms.
    """

    def __init__(self, transforms: Sequence[Mix]) -> None:
        self.transforms = list(transforms)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, *, classes: int) -> tuple[Tensor, Tensor]:
        """(batch, channel, height, width), (batch,) -> images of the same shape, class probabilities (batch, class)."""
        soft = one_hot(labels, classes).to(images.dtype)
        with seeded(int(torch.randint(2**31, ()))):
            for transform in self.transforms:
                images, soft = transform(images, soft)
        return images, soft

    def preflight(self, shape: tuple[int, ...], classes: int) -> None:
        """Try the transforms on images of this shape (channel, height, width); all generators stay as they are.

        Errors:
            InputError: a transform fails, changes a shape or the dtype, leaves [0, 1], draws from an unseeded
                generator, or gives labels that are no probabilities.
        """
        name = f"data.augmentation ({', '.join(map(dotted_name, self.transforms))})"
        images = torch.rand(TRIAL_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(TRIAL_IMAGES) % classes
        try:
            with seeded(0):
                mixed, soft = self(images.clone(), labels, classes=classes)
            with seeded(0):
                again = self(images.clone(), labels, classes=classes)
            shapes = tuple(mixed.shape), tuple(soft.shape)
        except Exception as error:  # whatever a third-party transform raises
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{name} failed in a trial on images of shape {shape}: {reason}") from error
        expected = tuple(images.shape), (TRIAL_IMAGES, classes)
        if shapes != expected:
            raise InputError(f"{name} gives images and labels of shapes {shapes}; they must be {expected}")
        if (dtypes := {mixed.dtype, soft.dtype}) != {images.dtype}:
            got = ", ".join(sorted(map(str, dtypes)))
            raise InputError(
                f"{name} gives {got} for images and labels that are {images.dtype}; it must keep the dtype"
            )
        if not (torch.equal(mixed, again[0]) and torch.equal(soft, again[1])):
            raise InputError(
                f"{name} gives different images with equal seeds; it must draw from torch, numpy.random or random, "
                "which are seeded in each training step"
            )
        if not (mixed.min() >= -1e-5 and mixed.max() <= 1 + 1e-5):  # so that NaN is refused too
            raise InputError(f"{name} gives pixels in [{mixed.min():.3g}, {mixed.max():.3g}]; they must be in [0, 1]")
        if not (soft.min() >= 0 and ((soft.sum(1) - 1).abs() < 1e-4).all()):
            raise InputError(f"{name} gives labels such as {soft[0].tolist()}; they must be probabilities, of sum 1")


def is_mixing(transform: Any) -> bool:
    """Return whether a transform takes the labels too: its signature names `labels`."""
    called = transform.forward if isinstance(transform, torch.nn.Module) else transform
    return callable(called) and "labels" in named_arguments(called)[0]
