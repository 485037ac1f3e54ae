"""What enters from outside is checked once, here: images, labels, logits. Each check waits for the device once."""

from __future__ import annotations

from torch import Tensor

from nsr.errors import InputError


def check_batch(images: Tensor, labels: Tensor, *, classes: int | None = None) -> None:
    """InputError unless images are (batch, ...) floats in [0, 1] and labels (batch,) whole numbers of a class."""
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}; they must be floats in [0, 1], e.g. images.float() / 255")
    if images.ndim < 2 or len(images) == 0:
        raise InputError(f"images have shape {tuple(images.shape)}; they must be (batch, channel, height, width)")
    lowest, highest = images.detach().aminmax()
    if not (lowest >= 0 and highest <= 1):  # so that nan is refused too
        raise InputError(
            f"images outside [0, 1]: they go from {lowest:.4g} to {highest:.4g}; "
            "the normalisation is the model's first layer, an attack works on pixels"
        )
    if labels.is_floating_point() or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be whole numbers, one an image, "
            f"({len(images)},)"
        )
    smallest, largest = labels.aminmax()
    if smallest < 0 or (classes is not None and largest >= classes):
        wrong = smallest if smallest < 0 else largest
        limit = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise InputError(f"labels hold the class {int(wrong)}; there are classes {limit}")


def check_logits(logits: object, labels: Tensor, *, classes: int | None = None) -> None:
    """InputError unless logits are (batch, class), as many classes as there are, or at least as the labels name."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        got = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"the network's output is {got}; it must be logits ({len(labels)}, class)")
    if classes is not None and logits.shape[1] != classes:
        raise InputError(f"the network gives {logits.shape[1]} logits an image; the data have {classes} classes")
    if classes is None and int(labels.max()) >= logits.shape[1]:
        raise InputError(f"labels hold the class {int(labels.max())}; the network gives {logits.shape[1]} logits")
