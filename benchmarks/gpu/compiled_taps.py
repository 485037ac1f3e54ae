"""Taps under torch.compile: the eager features in the default mode, and from CUDA graphs where they are cloned.

A CUDA graph (mode="reduce-overhead") writes its outputs into the same memory at each replay, so the features of one
pass do not outlive the next: they are cloned, or both sides go through the network as one batch. What happens to
those that are neither is told, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.given import Given, Report, Sizes
from benchmarks.gpu.networks import best_device, network, random_batch
from nsr.features import FeatureTaps
from nsr.layers import find_layers
from nsr.modes import full_precision

BOUND = 1e-4  # float32: a compiled graph adds up in another order
WARM_UP_PASSES = 3  # a CUDA graph is tried, recorded, and only then replayed
Features = Mapping[str, Tensor]


def measure(given: Given, report: Report) -> None:
    device = best_device()
    sides = [random_batch(given.sizes, given.sizes.images, seed=seed)[0].to(device) for seed in (1, 2)]
    report("device", device.type)
    report("bound", BOUND)
    with torch.no_grad(), full_precision(device):
        taps = tapped(given.sizes, device)
        eager = [taps(images)[1] for images in sides]
        report("layers", len(eager[0]))
        taps = tapped(given.sizes, device, backend=given.sizes.backend)
        found = [features_of(taps, images) for images in sides]
        report("default", {"largest_relative_difference": furthest(found, eager)})
        if device.type == "cuda":
            report("cuda_graphs", cuda_graphs(given.sizes, sides, eager))
        else:
            report("cuda_graphs", {"skipped": "CUDA graphs need a GPU"})
    figures = {"default": report.figures["default"], **report.figures["cuda_graphs"]}
    judged = {name: figures[name] for name in ("default", "cloned", "in_one_pass") if name in figures}
    too_far = [name for name, row in judged.items() if row["largest_relative_difference"] > BOUND]
    if too_far:
        report("failed", f"features further than {BOUND:g} from eager's: {', '.join(too_far)}")


def tapped(sizes: Sizes, device: torch.device, **compilation: Any) -> FeatureTaps:
    """A network with taps, and only then compiled where there are settings of torch.compile."""
    net = network(sizes).to(device).eval()
    images = random_batch(sizes, 2)[0].to(device)
    taps = FeatureTaps(net, find_layers(net, images, within=net.net), within=net.net)
    if compilation:
        torch.compiler.reset()
        net.compile(**compilation, dynamic=False)
    return taps


def features_of(taps: FeatureTaps, images: Tensor) -> dict[str, Tensor]:
    """Those of a pass that later ones may overwrite."""
    torch.compiler.cudagraph_mark_step_begin()
    return taps(images)[1]


def cloned(features: Features) -> dict[str, Tensor]:
    """As they are now."""
    return {name: values.clone() for name, values in features.items()}


def cuda_graphs(sizes: Sizes, sides: Sequence[Tensor], eager: Sequence[Features]) -> dict[str, Any]:
    """The differences with clones, with one pass for both sides, and with neither."""
    taps = tapped(sizes, sides[0].device, mode="reduce-overhead")
    for _ in range(WARM_UP_PASSES):
        features_of(taps, sides[0])
    figures: dict[str, Any] = {}
    found = [cloned(features_of(taps, images)) for images in sides]
    figures["cloned"] = {"largest_relative_difference": furthest(found, eager)}
    kept = [features_of(taps, images) for images in sides]
    try:
        difference = furthest(kept[:1], eager[:1])
        figures["not_cloned"] = {"largest_relative_difference": difference, "overwritten": difference > BOUND}
    except RuntimeError as error:
        figures["not_cloned"] = {"raises": str(error).splitlines()[0]}
    both = torch.cat(list(sides))
    for _ in range(WARM_UP_PASSES):
        features = features_of(taps, both)
    halves = {name: values.chunk(2) for name, values in features.items()}
    found = [{name: pair[side] for name, pair in halves.items()} for side in range(2)]
    figures["in_one_pass"] = {"largest_relative_difference": furthest(found, eager)}
    return figures


def furthest(found: Sequence[Features], expected: Sequence[Features]) -> float:
    """The largest difference of any feature, relative to the largest feature of its layer."""
    differences = [
        float(((one[name] - values).abs().max() / values.abs().max()).nan_to_num(nan=inf))
        for one, other in zip(found, expected, strict=True)
        for name, values in other.items()
    ]
    return max(differences)
