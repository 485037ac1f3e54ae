"""Augmentation of the training images, drawn for every image independently: by the loader, or on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nsr.data.crops import CropFlip, CropShift
from nsr.data.mixing import CutMix, Mixing, MixUp, is_mixing
from nsr.errors import InputError, check_choice, dotted_name, one_line
from nsr.randomness import draw_seed, seeded

Transform = Callable[[Tensor], Tensor]
Applier = Callable[[Transform, Tensor], Tensor]
TRIAL_SEEDS, TRIAL_IMAGES, TRIAL_PIXELS = 16, 8, 4_096
# the variance within a batch of equal images, as a fraction of that over all draws: 1 where each image has its own
# draw, 0 where all images of a batch have the same
INDEPENDENT = 0.75
STREAM = 2  # of the draws of images as they are read, beside those of training and validation steps


class Augmentation:
    """Third-party transforms, one after the other, each drawn per image and reproducibly.

    A trial decides how each transform is applied: to the whole batch where every image gets a draw of its own, as in
    kornia, else image by image, as for torchvision's. Draws come from the generators of Python, numpy and torch,
    seeded from torch's default generator, which the training step seeds. What is applied image by image would keep a
    GPU waiting: `loaded` leaves it to the data's loader and its workers.

    Args:
        transforms: each takes an image or a batch of images; the last returns floats in [0, 1] of the input's shape.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)
        self.appliers: list[Applier] = []
        self.first = 0  # the transform that `__call__` begins with

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channel, height, width) -> the same."""
        if not self.appliers:
            self.preflight(tuple(images.shape[1:]))
        for transform in self.transforms[self.first :]:
            if isinstance(transform, nn.Module):
                transform.to(images.device)
        with seeded(int(torch.randint(2**31, ()))):
            return self._apply(images, first=self.first)

    def loaded(self, images: Any, *, seed: int) -> Any:
        """Return the data set with all transforms up to the last one that is applied image by image.

        `__call__` applies the others from then on.

        Args:
            images: a Dataset of (image, label).
            seed: of the draws, together with epoch and index of the image: workers and processes make no difference.
        """
        if not self.appliers:
            self.preflight(tuple(images[0][0].shape))
        single = [number for number, applier in enumerate(self.appliers, start=1) if applier is not _to_batch]
        self.first = max(single, default=0)
        return AugmentedImages(images, partial(self._apply, last=self.first), seed=seed) if self.first else images

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
            result = _trial(self.appliers[-1], transform, image[None], 0)[0]
            # the example where it can be: a result may be black, and show no draw of the next transform
            image = example if (result.shape, result.dtype) == (example.shape, example.dtype) else result
        batch = example.expand(TRIAL_IMAGES, *shape)
        name = f"data.augmentation ({', '.join(map(dotted_name, self.transforms))})"
        for seed in range(TRIAL_SEEDS):
            with seeded(seed):
                images = self._apply(batch.clone())
            if images.shape != batch.shape or images.dtype != batch.dtype:
                got = f"{images.dtype} images of shape {tuple(images.shape[1:])}"
                raise InputError(f"{name} gives {got}; they must be {batch.dtype} of shape {shape}")
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
    def _apply(self, images: Tensor, *, first: int = 0, last: int | None = None) -> Tensor:
        for apply, transform in zip(self.appliers[first:last], self.transforms[first:last], strict=True):
            images = apply(transform, images)
        return images


class AugmentedImages(Dataset[tuple[Tensor, Any]]):
    """A data set whose images are augmented as they are read; the draws are a function of (seed, epoch, index).

    Args:
        images: a Dataset of (image, label).
        augment: a batch of one image -> the same.
    """

    def __init__(self, images: Any, augment: Transform, *, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed
        epoch = getattr(images, "epoch", None)  # one tensor for both; worker processes see it change
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_() if epoch is None else epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """(channel, height, width) floats in [0, 1] and the label."""
        image, label = self.images[index]
        with seeded(draw_seed(self.seed, STREAM, int(self.epoch), index)):
            return self.augment(image[None])[0], label


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
        except InputError:
            raise
        except Exception as error:  # whatever a third-party transform raises
            reason = reason or f": {type(error).__name__}: {one_line(error)}"
    raise InputError(
        f"data.augmentation ({dotted_name(transform)}) takes no image of shape {tuple(image.shape)}{reason}; it must "
        "map an image or a batch of images to another; one that mixes labels names `labels` in its signature"
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


def _torchvision(name: str, **settings: Any) -> Any:
    from torchvision.transforms import v2  # here, because it is slow to load

    return getattr(v2, name)(**settings)


def _auto_augment() -> Any:
    from torchvision.transforms import AutoAugmentPolicy

    return _torchvision("AutoAugment", policy=AutoAugmentPolicy.CIFAR10)


AUGMENTATIONS: dict[str, Callable[[], Any] | None] = {
    "none": None,
    "crop_flip": CropFlip,
    "cropshift": CropShift,
    "auto_augment": _auto_augment,
    "rand_augment": partial(_torchvision, "RandAugment"),
    "trivial_augment": partial(_torchvision, "TrivialAugmentWide"),
    "random_erasing": partial(_torchvision, "RandomErasing"),
    "cutout": partial(_torchvision, "RandomErasing", p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
    "cutmix": CutMix,
    "mixup": MixUp,
}


def _made(entry: Any) -> Any:
    if entry is not None and not isinstance(entry, str):
        return entry
    make = AUGMENTATIONS[check_choice("data.augmentation", entry or "none", AUGMENTATIONS)]
    return make() if make else None


def build_augmentation(setting: Any) -> tuple[Transform | None, Mixing | None]:
    """Return the transforms of images, and those that mix images and labels, of the setting `data.augmentation`.

    Args:
        setting: a name of AUGMENTATIONS, a callable or a list of these; mixing transforms (`is_mixing`) come last.
    Errors:
        InputError: another name, something that cannot be called, another order.
    """
    if isinstance(setting, str) and setting == "crop_flip":
        return CropFlip(), None  # without the trial and the seeding that third-party transforms need
    entries = setting if isinstance(setting, (list, tuple)) else [setting]
    transforms = [transform for transform in map(_made, entries) if transform is not None]
    if not all(map(callable, transforms)):
        raise InputError(
            f"data.augmentation is {setting!r}; it must be {', '.join(AUGMENTATIONS)}, a callable or a list of "
            "callables (_target_: torchvision.transforms.v2.RandomRotation)"
        )
    mixing = [transform for transform in transforms if is_mixing(transform)]
    images_alone = transforms[: len(transforms) - len(mixing)]
    if any(map(is_mixing, images_alone)):
        raise InputError(f"data.augmentation mixes images by {dotted_name(mixing[0])} first; put it at the end")
    return Augmentation(images_alone) if images_alone else None, Mixing(mixing) if mixing else None
