"""Networks of torchvision and timm by their names, never with their pretrained weights: weights come from a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from nsr.errors import InputError, did_you_mean
from nsr.models.shared import check_sizes

# what a torchvision class calls the side of its images, where it has to know
IMAGE_SIZE: dict[str, Callable[[int], Any]] = {
    "image_size": lambda size: size,
    "input_size": lambda size: (size, size),
}


def torchvision_model(*, name: str, channels: int, classes: int, image_size: int) -> nn.Module:
    """An image classifier of torchvision, freshly initialised; its modules have torchvision's names.

    inception_v3 and googlenet are built without their auxiliary heads, whose logits come in training alone; their
    published weights were trained on pixels in [-1, 1]: a mean and std of 0.5 a channel.

    Args:
        name: as in torchvision.models.list_models(module=torchvision.models): 'resnet18'.
        channels: of an image; torchvision's networks take 3.
        classes: number of classes.
        image_size: height and width of an image; handed to the networks that are built for one.
    Errors:
        InputError: an unknown name, other channels than 3, or a size that the network cannot be built for.
    """
    check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=1)
    _check_name(name, torchvision_classifiers(), "torchvision")
    if channels != 3:
        raise InputError(
            f"torchvision's {name} takes images of 3 channels, but data.channels is {channels}; "
            "model=timm and nsr's own networks take any number"
        )
    from torchvision.models import get_model_builder

    builder = get_model_builder(name)
    known = inspect.signature(inspect.signature(builder).return_annotation.__init__).parameters
    settings = {key: value(image_size) for key, value in IMAGE_SIZE.items() if key in known}
    settings |= {key: value for key, value in (("aux_logits", False), ("init_weights", True)) if key in known}
    what = f"torchvision's {name} cannot be built for images of 3 x {image_size} x {image_size}"
    return _build(what, builder, weights=None, num_classes=classes, **settings)


def timm_model(*, name: str, channels: int, classes: int, image_size: int) -> nn.Module:
    """A network of timm, freshly initialised; its modules have timm's names.

    Args:
        name: as in timm.list_models(): 'vit_tiny_patch16_224', without the tag of pretrained weights.
        channels: of an image.
        classes: number of classes.
        image_size: height and width of an image; handed to the networks that are built for one.
    Errors:
        InputError: timm is not installed, an unknown name, or a size that the network cannot be built for.
    """
    check_sizes(channels=channels, classes=classes, image_size=image_size, smallest=1)
    try:
        import timm
    except ImportError:
        raise InputError('model=timm needs the package timm: pip install ".[models]"') from None
    _check_name(name, timm.list_models(), "timm")
    described = timm.get_pretrained_cfg(name)
    settings: dict[str, Any] = {"img_size": image_size} if described and described.fixed_input_size else {}
    settings |= {"num_classes": classes, "in_chans": channels, "pretrained": False}
    what = f"timm's {name} cannot be built for images of {channels} x {image_size} x {image_size}"
    return _build(what, timm.create_model, model_name=name, **settings)


def torchvision_classifiers() -> list[str]:
    """The names of torchvision's image classifiers: none for detection, segmentation, video, flow or quantised ones."""
    from torchvision import models

    return models.list_models(module=models)


def _check_name(name: object, known: Collection[str], library: str) -> None:
    if name in known:
        return
    if isinstance(name, str) and (":" in name or "/" in name):
        raise InputError(
            f"model.name is {name!r}, which looks in a hub or a folder: refused; it must be a name that {library} "
            "itself knows, and weights come from model.weights=FILE"
        )
    raise InputError(
        f"model.name is {name!r}; {library} has no image classifier of that name{did_you_mean(name, known)}"
    )


def _build(what: str, builder: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    try:
        return builder(**settings)
    except Exception as error:  # assertions, value errors and type errors, of 80 and 1,300 networks
        reason = " ".join(str(error).split())
        advice = "take another model, or a folder of images with another data.image_size"
        raise InputError(f"{what}: {reason}; {advice}") from error
