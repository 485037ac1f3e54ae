"""What one half of the images tells of each layer's neurons: sensitivity, and what else they may be ranked by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsr.interventions.conductance import conductance
from nsr.interventions.patching import Replay
from nsr.layers import Layer
from nsr.sensitivity import SensitivitySums, divide, sensitivity_sums

RANKINGS = ("activation", "relative", "conductance")  # beside sensitivity's own


class Pairs(NamedTuple):
    """Images and their adversarial examples."""

    images: Tensor  # (batch, channel, height, width)
    adversarial: Tensor
    labels: Tensor  # (batch,)


class LayerRanking(NamedTuple):
    """What the ranking images tell of one layer's neurons, each (neuron,) float64."""

    sensitivity: Tensor  # absolute
    energy: Tensor  # mean squared movement, over images and positions
    relative: Tensor
    activation: Tensor  # mean |output| on clean images
    mean_output: Tensor  # with its sign
    conductance: Tensor | None = None

    def correlation(self) -> float | None:
        """Pearson's, of sensitivity and activation over neurons; None where one of them is the same for all."""
        both = torch.stack([self.sensitivity, self.activation])
        if bool((both == both[:, :1]).all(1).any()):
            return None
        return float(torch.corrcoef(both)[0, 1])

    def figures(self) -> dict[str, float | None]:
        """What is reported of the layer as a whole."""
        return {
            "neurons": len(self.sensitivity),
            "mean_sensitivity": float(self.sensitivity.mean()),
            "mean_activation": float(self.activation.mean()),
            "correlation_of_sensitivity_and_activation": self.correlation(),
        }


def rank_neurons(
    replay: Replay,
    batches: Iterable[Pairs],
    rankings: Sequence[str] = (),
    *,
    within: nn.Module | None = None,
    images_at_once: int | None = None,
) -> dict[str, LayerRanking]:
    """{layer: its rankings} from sums over the batches: two passes each, and conductance's own where it is asked for.

    Args:
        replay: of the network and its layers.
        batches: gone through once.
        rankings: of RANKINGS; conductance is left out unless named.
        within, images_at_once: as in `conductance`.
    """
    sums: dict[str, list[Tensor]] = {}
    samples = 0
    for pairs in batches:
        clean, adversarial = replay.record(pairs.images), replay.record(pairs.adversarial)
        samples += len(pairs.labels)
        for name, layer in replay.layers.items():
            new = _layer_sums(layer, clean.features[name], adversarial.features[name])
            if "conductance" in rankings:
                flow = conductance(replay.net, layer, *pairs, within=within, images_at_once=images_at_once)
                new.append(flow.abs().double().sum(0))  # (batch, neuron) -> (neuron,)
            sums[name] = [old + more for old, more in zip(sums[name], new, strict=True)] if name in sums else new
    return {name: _ranking(parts, samples) for name, parts in sums.items()}


def _layer_sums(layer: Layer, clean: Tensor, adversarial: Tensor) -> list[Tensor]:
    """Movement, activation, output and squared movement of each neuron, summed over the batch, (neuron,) float64."""
    sums = sensitivity_sums(clean, adversarial, neuron_dim=layer.neuron_dim, dtype=torch.float64)

    def means(values: Tensor) -> Tensor:
        return (
            values.movedim(layer.neuron_dim, 1)
            .flatten(1, -1)
            .unflatten(1, (layer.neurons, -1))
            .mean(2, dtype=torch.float64)
        )

    return [sums.movement, sums.activation, means(clean).sum(0), means((clean - adversarial) ** 2).sum(0)]


def _ranking(sums: Sequence[Tensor], samples: int) -> LayerRanking:
    movement, activation, output, squares, *further = sums
    parts = SensitivitySums(movement, activation, samples)
    return LayerRanking(
        sensitivity=divide(parts),
        energy=squares / samples,
        relative=divide(parts, "relative"),
        activation=activation / samples,
        mean_output=output / samples,
        conductance=further[0] / samples if further else None,
    )
