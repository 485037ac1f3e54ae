"""Terms that were tried beside SNS's: image by image, relative to the activation, towards an averaged network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nsr import capture_features
from nsr.objectives import AdversarialTraining
from nsr.sensitivity import activation_difference, largest

Features = Mapping[str, Tensor]  # {layer: (batch, neuron, ...)}


class ImageByImage(nn.Module):
    """weight * mean over layers and images of the mean of the image's own largest activation differences.

    Args:
        weight: of the term in the objective.
        top: neurons of each layer and image, a count (int) or a fraction (float).
    """

    def __init__(self, *, weight: float = 1.0, top: int | float = 0.1):
        super().__init__()
        self.weight, self.top = weight, top

    def forward(self, clean: Features, adversarial: Features) -> Tensor:
        terms = []
        for layer, features in clean.items():
            differences = (adversarial[layer].float() - features.float()).abs()
            differences = differences.reshape(*differences.shape[:2], -1).mean(2)  # (batch, neuron)
            count = len(largest(differences[0], self.top))
            terms.append(differences.topk(count, dim=1).values.mean())
        return self.weight * torch.stack(terms).mean()


class RelativeTerm(nn.Module):
    """weight * mean over layers of the mean of the largest d / max(a, floor * mean of a over the layer's neurons).

    d is a neuron's activation difference, a its mean |output| on clean images: a neuron cannot lower its ratio by
    shrinking its outputs, and one that hardly fires does not dominate.

    Args:
        weight: of the term in the objective.
        top: neurons of each layer, a count (int) or a fraction (float).
        floor: of a, as a fraction of its mean over the layer.
    """

    def __init__(self, *, weight: float = 1.0, top: int | float = 0.1, floor: float = 0.1):
        super().__init__()
        self.weight, self.top, self.floor = weight, top, floor

    def forward(self, clean: Features, adversarial: Features) -> Tensor:
        terms = []
        for layer, features in clean.items():
            difference = activation_difference(features, adversarial[layer])
            activation = activation_difference(features, torch.zeros_like(features))
            ratio = difference / activation.maximum(self.floor * activation.mean())
            terms.append(ratio[largest(ratio, self.top)].mean())
        return self.weight * torch.stack(terms).mean()


class TowardsAverage(AdversarialTraining):
    """Adversarial training with SNS's term between adversarial features and clean ones of an averaged network.

    The average is an exponential one of parameters and buffers, updated before each step; it gets no gradient.

    Args:
        term_weight: of the term.
        top: stabilized neurons of each layer, a count (int) or a fraction (float).
        decay: of the average.
    """

    def __init__(
        self, *, term_weight: float = 0.5, top: int | float = 0.1, decay: float = 0.99, **settings: float
    ) -> None:
        super().__init__(**settings)
        self.term_weight, self.top, self.decay = term_weight, top, decay
        self.average: AveragedModel | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs, "adversarial_features", "clean_images", "net")

    def __call__(
        self, *, adversarial_features: Features, clean_images: Tensor, net: nn.Module, **rest: Any
    ) -> dict[str, Tensor]:
        if self.average is None:
            self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)
        self.average.update_parameters(net)
        self.average.eval()
        names = {layer: full_name(net, layer) for layer in adversarial_features}
        with torch.no_grad(), capture_features(self.average.module, list(names.values())) as captured:
            self.average(clean_images)
            target = dict(captured)
        terms = []
        for layer, features in adversarial_features.items():
            difference = activation_difference(target[names[layer]], features)
            terms.append(difference[largest(difference, self.top)].mean())
        return {**super().__call__(**rest), "towards_average": self.term_weight * torch.stack(terms).mean()}


def full_name(net: nn.Module, layer: str) -> str:
    """Return the name of a hooked layer in `net`, which may wrap the network that the layer is named in."""
    return next(name for name, _ in net.named_modules() if name == layer or name.endswith(f".{layer}"))
