"""The interface of an analysis: what `evaluate.py analyses=[...]` runs after its attacks.

An analysis is any object with one method:

    run(context: AnalysisContext) -> lines of text and rich tables to print, or None

It may also have `check(layers, n_images)`, called before anything is measured with the hooked layers and the number of
test images (None: not known yet); it raises `nsr.errors.InputError` where the analysis cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nsr.layers import Layer


@dataclass(frozen=True)
class AnalysisContext:
    """The evaluation that an analysis belongs to."""

    net: nn.Module  # images in [0, 1] -> logits, on the device to measure on
    root: nn.Module  # the module that the layers' names refer to
    layers: Sequence[Layer]  # the hooked layers
    labels: Tensor  # (image,) of all test images
    batches: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]  # indices -> (images, labels), on the device
    attack: Callable[..., Tensor]  # attack(net, images, labels, generator=...): the one of the sensitivities
    directory: Path  # of the evaluation's files
    settings: Mapping[str, Any]  # the whole configuration, to be kept beside the results
