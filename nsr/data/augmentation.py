"""Augmentation on the device, drawn for every image independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nsr.errors import InputError, check_choice, check_number, dotted_name, one_line
from nsr.randomness import seeded

Transform = Callable[[Tensor], Tensor]
Applier = Callable[[Transform, Tensor], Tensor]
TRIAL_SEEDS, TRIAL_IMAGES, TRIAL_PIXELS = 16, 8, 4_096
# the variance within a batch of equal images, as a fraction of that over all draws: 1 where each image has its own
# draw, 0 where all images of a batch have the same
INDEPENDENT = 0.75


class CropFlip:
    """Random crop after zero padding, and a horizontal flip with probability 1/2.

    Draws from torch's default generator of the images' device, which the training step seeds. torchvision's batched
    RandomCrop gives every image of a batch the same draw (pytorch/vision#2929); this one draws for each image.

    Args:
        padding: zero pixels added on every side before the crop.
    """

    def __init__(self, padding: int = 4) -> None:
        self.padding = check_number("padding", padding, lowest=0, whole=True)

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> the same."""
        batch, channels, height, width = images.shape
        device = images.device
        top = torch.randint(2 * self.padding + 1, (batch, 1), device=device)
        left = torch.randint(2 * self.padding + 1, (batch, 1), device=device)
        flip = torch.randint(2, (batch, 1), device=device, dtype=torch.bool)
        columns = torch.arange(width, device=device)
        rows = top + torch.arange(height, device=device)  # (batch, height), in the padded image
        columns = left + torch.where(flip, columns.flip(0), columns)  # (batch, width)
        # integer indices only: a boolean mask would make the GPU wait for the host
        image = torch.arange(batch, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return pad(images, [self.padding] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Augmentation:
    """Third-party transforms, one after the other, each drawn per image and reproducibly.

    A trial decides how each transform is applied: to the whole batch where every image gets a draw of its own, as in
    kornia, else image by image, as for torchvision's. Draws come from the generators of Python, numpy and torch,
    seeded from torch's default generator, which the training step seeds.

    Args:
        transforms: each takes an image or a batch of images; the last returns floats in [0, 1] of the input's shape.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)
        self.appliers: list[Applier] = []

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> the same."""
        if not self.appliers:
            self.preflight(tuple(images.shape[1:]))
        for transform in self.transforms:
            if isinstance(transform, nn.Module):
                transform.to(images.device)
        with seeded(int(torch.randint(2**31, ()))):
            return self._apply(images)

    def preflight(self, shape: tuple[int, ...]) -> None:
        """Try the transforms on images of this shape (channel, height, width); all generators stay as they are.

        Errors:
            InputError: a transform fails, changes the shape, leaves [0, 1], or draws from an unseeded generator.
        """
        self.appliers = []
        example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        example[:, 0, 0], example[:, -1, -1] = 0, 1
        image = example
        for transform in self.transforms:
            self.appliers.append(_applier(transform, image))
            image = _trial(self.appliers[-1], transform, image[None], 0)[0]
        batch = example.expand(TRIAL_IMAGES, *shape)
        name = f"data.augmentation ({', '.join(map(dotted_name, self.transforms))})"
        for seed in range(TRIAL_SEEDS):
            with seeded(seed):
                images = self._apply(batch.clone())
            if images.shape != batch.shape or not images.is_floating_point():
                got = f"{images.dtype} images of shape {tuple(images.shape[1:])}"
                raise InputError(f"{name} gives {got}; they must be floats of shape {shape}")
            if not (images.min() >= -1e-5 and images.max() <= 1 + 1e-5):  # so that NaN is refused too
                got = f"pixels in [{images.min():.3g}, {images.max():.3g}]"
                raise InputError(f"{name} gives {got}; they must stay in [0, 1]; leave normalization to the model")
        with seeded(TRIAL_SEEDS - 1):
            again = self._apply(batch.clone())
        if not torch.equal(images, again):
            raise InputError(
                f"{name} gives different images with equal seeds; it must draw from torch, numpy.random or random, "
                "which are seeded in each training step"
            )

    @torch.no_grad()
    def _apply(self, images: Tensor) -> Tensor:
        for apply, transform in zip(self.appliers, self.transforms, strict=True):
            images = apply(transform, images)
        return images


def _to_batch(transform: Transform, images: Tensor) -> Tensor:
    return transform(images)


def _to_images(transform: Transform, images: Tensor) -> Tensor:
    return torch.stack([transform(image) for image in images])


def _to_batches_of_one(transform: Transform, images: Tensor) -> Tensor:
    return torch.cat([transform(image[None]) for image in images])


def _applier(transform: Transform, image: Tensor) -> Applier:
    """Return how `transform` is applied to a batch, so that every image gets a draw of its own."""
    if _draws_per_image(transform, image):
        return _to_batch
    reason = ""
    for applier in (_to_images, _to_batches_of_one):
        try:
            if _trial(applier, transform, image[None], 0).ndim == 4:
                return applier
        except Exception as error:  # whatever a third-party transform raises
            reason = reason or f": {type(error).__name__}: {one_line(error)}"
    raise InputError(
        f"data.augmentation ({dotted_name(transform)}) takes no image of shape {tuple(image.shape)}{reason}; it must "
        "map an image or a batch of images to another"
    )


def _draws_per_image(transform: Transform, image: Tensor) -> bool:
    """Return whether the images of a batch get independent draws; False where none is seen, or no batch is taken."""
    batch = image.expand(TRIAL_IMAGES, *image.shape)
    try:
        drawn = torch.stack([_trial(_to_batch, transform, batch, seed) for seed in range(TRIAL_SEEDS)])
    except Exception:  # whatever a third-party transform raises
        return False
    pixels = drawn.flatten(2).double()  # (seed, image, pixel)
    pixels = pixels[..., :: max(1, pixels.shape[-1] // TRIAL_PIXELS)]
    variance = pixels.flatten(0, 1).var(dim=0).mean()
    return bool(variance > 1e-12 and pixels.var(dim=1).mean() >= INDEPENDENT * variance)


@torch.no_grad()
def _trial(applier: Applier, transform: Transform, images: Tensor, seed: int) -> Tensor:
    with seeded(seed):
        result = applier(transform, images.clone())
    if not isinstance(result, Tensor) or len(result) != len(images):
        raise TypeError(f"it returns {type(result).__name__}, no tensor of as many images")
    return result


AUGMENTATIONS: dict[str, Callable[[], Transform] | None] = {"none": None, "crop_flip": CropFlip}


def build_augmentation(setting: Any) -> Transform | None:
    """Return the augmentation of a setting: 'none' (None), 'crop_flip', a callable or a list of these.

    Errors:
        InputError: another name, or something that cannot be called.
    """
    if setting is None or isinstance(setting, str):
        make = AUGMENTATIONS[check_choice("data.augmentation", setting or "none", AUGMENTATIONS)]
        return make() if make else None
    entries = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    transforms: list[Any] = [build_augmentation(entry) if isinstance(entry, str) else entry for entry in entries]
    transforms = [transform for transform in transforms if transform is not None]
    if not all(map(callable, transforms)):
        raise InputError(
            f"data.augmentation is {setting!r}; it must be {', '.join(AUGMENTATIONS)}, a callable or a list of "
            "callables (_target_: torchvision.transforms.v2.RandomRotation)"
        )
    return Augmentation(transforms) if transforms else None
