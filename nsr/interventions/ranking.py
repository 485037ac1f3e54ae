"""Rankings of each layer's neurons on one half of the images: by sensitivity, and by what the controls use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsr.interventions.conductance import conductance
from nsr.interventions.pairs import Pairs
from nsr.interventions.patching import Patcher
from nsr.layers import Layer
from nsr.sensitivity import SensitivitySums, divide, sensitivity_sums

RANKINGS = ("activation", "relative", "conductance")  # beside sensitivity


class LayerRanking(NamedTuple):
    """Scores of one layer's neurons, each (neuron,) float64."""

    sensitivity: Tensor  # absolute
    squared_difference: Tensor  # mean squared activation difference, over images and positions
    relative: Tensor
    activation: Tensor  # mean |output| on clean images
    mean_output: Tensor  # on clean images, with its sign
    conductance: Tensor | None = None

    def summary(self) -> dict[str, float | None]:
        """Metrics of the layer; the correlation is Pearson's over neurons, None where a score is constant."""
        both = torch.stack([self.sensitivity, self.activation])
        is_constant = bool((both == both[:, :1]).all(1).any())
        return {
            "neurons": len(self.sensitivity),
            "mean_sensitivity": float(self.sensitivity.mean()),
            "mean_activation": float(self.activation.mean()),
            "correlation_of_sensitivity_and_activation": None if is_constant else float(torch.corrcoef(both)[0, 1]),
        }


def rank_neurons(
    patcher: Patcher,
    batches: Iterable[Pairs],
    rankings: Sequence[str] = (),
    *,
    root: nn.Module | None = None,
    internal_batch_size: int | None = None,
) -> dict[str, LayerRanking]:
    """Rank neurons by sums over the batches: two passes per batch, plus those of conductance where it is asked for.

    Args:
        patcher: of the network and its layers.
        batches: iterated once.
        rankings: of RANKINGS; conductance is computed only if named.
        root, internal_batch_size: see `conductance`.
    """
    sums: dict[str, list[Tensor]] = {}
    samples = 0
    for pairs in batches:
        clean, adversarial = patcher.record(pairs.images), patcher.record(pairs.adversarial)
        samples += len(pairs.labels)
        for name, layer in patcher.layers.items():
            new = _layer_sums(layer, clean.features[name], adversarial.features[name])
            if "conductance" in rankings:
                flow = conductance(patcher.net, layer, *pairs, root=root, internal_batch_size=internal_batch_size)
                new.append(flow.abs().double().sum(0))  # (batch, neuron) -> (neuron,)
            sums[name] = [old + more for old, more in zip(sums[name], new, strict=True)] if name in sums else new
    return {name: _ranking(parts, samples) for name, parts in sums.items()}


def _layer_sums(layer: Layer, clean: Tensor, adversarial: Tensor) -> list[Tensor]:
    """Activation difference, activation, output and squared difference, summed over the batch, (neuron,) float64."""
    difference, activation, _ = sensitivity_sums(clean, adversarial, neuron_dim=layer.neuron_dim, dtype=torch.float64)

    def means(values: Tensor) -> Tensor:
        values = values.movedim(layer.neuron_dim, 1).flatten(1, -1).unflatten(1, (layer.neurons, -1))
        return values.mean(2, dtype=torch.float64)  # (batch, neuron)

    return [difference, activation, means(clean).sum(0), means((clean - adversarial) ** 2).sum(0)]


def _ranking(sums: Sequence[Tensor], samples: int) -> LayerRanking:
    difference, activation, output, squares, *further = sums
    parts = SensitivitySums(difference, activation, samples)
    return LayerRanking(
        sensitivity=divide(parts),
        squared_difference=squares / samples,
        relative=divide(parts, "relative"),
        activation=activation / samples,
        mean_output=output / samples,
        conductance=further[0] / samples if further else None,
    )
