"""The loss of a training step: the passes that objective and stabilizer need, and the objective's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nsr.features import FeatureExtractor
from nsr.modes import batch_norm_mode
from nsr.objectives import auxiliary_inputs, compute_terms


class Passes(NamedTuple):
    """What the passes gave, by view: 'clean', 'adversarial'."""

    logits: dict[str, Tensor]  # (batch, class)
    features: dict[str, dict[str, Tensor]]  # {layer: (batch, neuron, ...)}
    auxiliary: dict[str, list[Tensor]]  # logits of each auxiliary head


def run_passes(
    extractor: FeatureExtractor, views: Mapping[str, Tensor], needed: Iterable[str], stabilizer: Any = None
) -> Passes:
    """Make one pass for each view that the objective needs, and for those that the stabilizer needs beside them.

    Args:
        extractor: of the network in training.
        views: {view: images (batch, channel, height, width)}.
        needed: the objective's views.
        stabilizer: None: there is none in this step.
    """
    net, passes = extractor.net, Passes({}, {}, {})
    for view in needed:
        passes.logits[view], passes.features[view] = extractor(views[view])
        passes.auxiliary[view] = getattr(net, "auxiliary_logits", [])
    # the stabilizer's passes last, so that their random draws disturb no other, and without a trace in BatchNorm
    for view in ("clean", "adversarial") if stabilizer is not None else ():
        if view not in passes.features:
            gradient = view == "adversarial" or getattr(stabilizer, "gradient_through_clean", True)
            handling = getattr(stabilizer, "batch_norm", "batch")
            with batch_norm_mode(net, handling), torch.set_grad_enabled(gradient):
                passes.logits[view], passes.features[view] = extractor(views[view])
    if any(passes.auxiliary.values()):
        net.auxiliary_logits = []  # type: ignore[assignment]  # their graphs end with this step
    return passes


def objective_terms(
    objective: Callable[..., Any], net: nn.Module, views: Mapping[str, Tensor], labels: Tensor, passes: Passes
) -> dict[str, Tensor]:
    """Compute the objective's terms from everything that it may ask for, and its loss on each auxiliary head.

    Args:
        labels: (batch,), or (batch, class) probabilities.

    Returns:
        {term: scalar}
    """
    inputs: dict[str, Any] = {"labels": labels, "net": net}
    for kind, values in (("images", views), ("logits", passes.logits), ("features", passes.features)):
        inputs |= {f"{view}_{kind}": value for view, value in values.items()}
    terms = compute_terms(objective, inputs)
    for number, (name, weight) in enumerate(getattr(net, "auxiliary", {}).items()):
        heads = {view: each[number] for view, each in passes.auxiliary.items()}
        own = auxiliary_inputs(objective, inputs, heads)
        terms[f"auxiliary_{name}"] = weight * torch.stack([*compute_terms(objective, own).values()]).sum()
    return terms
