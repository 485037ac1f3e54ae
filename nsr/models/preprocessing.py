"""Sizes to which images are resized and cropped for the published weights of torchvision and timm."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

MOST = 4  # that a line lists
Sizes = tuple[int, int, str]  # image_size, resize_size, interpolation


def published_sizes(name: str | None, net: nn.Module) -> dict[Sizes, str]:
    """Return {(image_size, resize_size, interpolation): published weights} of a network, {} where none are known.

    Args:
        name: of a network of torchvision; None: it is another's.
        net: a network of timm has its name in `default_cfg`.
    """
    found: dict[Sizes, str] = {}
    if name is not None:
        from torchvision.models import get_model_weights

        for weights in get_model_weights(name):
            preset = weights.transforms()
            found.setdefault((preset.crop_size[0], preset.resize_size[0], preset.interpolation.value), weights.name)
        return found
    own = getattr(net, "default_cfg", None)
    if (architecture := own.get("architecture") if isinstance(own, dict) else None) is not None:
        from timm.models import get_arch_pretrained_cfgs

        for tag, config in get_arch_pretrained_cfgs(architecture).items():
            size = config.input_size[-1]
            sizes = (size, math.floor(size / config.crop_pct), config.interpolation)
            if config.crop_mode == "center":
                found.setdefault(sizes, str(tag).rpartition(".")[2])
    return found


def unlike_published(published: dict[Sizes, str], preprocess: Any) -> str | None:
    """Return a line where no published weights take images that `preprocess`, a `Preprocessing`, makes; else None."""
    if preprocess is None or not published:
        return None
    image_size, resize_size = preprocess.image_size, preprocess.resize_size or preprocess.image_size
    if (image_size, resize_size, preprocess.interpolation) in published:
        return None
    forms = [
        f"data.image_size={size} data.resize_size={resized} data.interpolation={interpolation} ({weights})"
        for (size, resized, interpolation), weights in published.items()
    ]
    more = f" and {len(forms) - MOST} more" if len(forms) > MOST else ""
    got = f"images are resized to {resize_size} ({preprocess.interpolation}) and cropped to {image_size} pixels"
    return f"{got}; published weights of this name take {', '.join(forms[:MOST])}{more}"
