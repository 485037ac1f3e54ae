"""Neuron sets that are intervened on: the most sensitive neurons of a layer, and the controls for them.

At each fraction of a layer, with k the number of neurons that `most_sensitive` selects:

    most_sensitive                   the k of the largest sensitivity
    least_sensitive                  the k of the smallest
    random_equal_size                k at random
    random_equal_sensitivity         in random order until their summed sensitivity is that of the most sensitive set
    random_equal_squared_difference  the same by the summed squared activation difference, in which few neurons with a
                                     large difference weigh more
    by_activation, ...               the k of the largest mean |activation| on clean images, or of another ranking
    whole_layer                      all of them, once: the upper bound where shortcuts bypass the layer
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nsr.randomness import frozen_stream
from nsr.sensitivity import most_sensitive

MOST, LEAST, WHOLE = "most_sensitive", "least_sensitive", "whole_layer"
SIZE, SENSITIVITY, SQUARED_DIFFERENCE = RANDOM = (
    "random_equal_size",
    "random_equal_sensitivity",
    "random_equal_squared_difference",
)
STREAM = 2  # of random numbers


class NeuronSets(NamedTuple):
    """All sets of one layer's neurons."""

    distinct: Tensor  # (distinct set, neuron) bool; equal sets are one row
    rows: dict[tuple[float, str], Tensor]  # {(fraction, control): (set,) rows of `distinct`}

    def masks(self, fraction: float, control: str) -> Tensor:
        """(set, neuron) bool."""
        return self.distinct[self.rows[fraction, control]]


def neuron_sets(
    sensitivity: Tensor,
    squared_difference: Tensor,
    rankings: Mapping[str, Tensor],
    *,
    fractions: Sequence[float],
    n_random_sets: int,
    seed: int,
    layer: str,
) -> NeuronSets:
    """Select the sets of one layer; scores are (neuron,).

    Args:
        rankings: {name: scores}, each a control of its largest.
        fractions: of the layer's neurons, each in (0, 1].
        n_random_sets: of each random control at each fraction.
        seed, layer: with the fraction they decide the random sets.
    """
    sensitivity, squared_difference = (values.detach().cpu().double() for values in (sensitivity, squared_difference))
    neurons = len(sensitivity)
    order = most_sensitive(sensitivity, 1.0)
    masks = {(1.0, WHOLE): torch.ones(1, neurons, dtype=torch.bool)}
    for fraction in fractions:
        most = most_sensitive(sensitivity, fraction)
        stream = frozen_stream(seed, STREAM, zlib.crc32(f"{layer} {fraction!r}".encode()))
        by_size, *by_sum = (
            [torch.from_numpy(stream.permutation(neurons)) for _ in range(n_random_sets)] for _ in RANDOM
        )
        masks[fraction, MOST] = _masks([most], neurons)
        masks[fraction, LEAST] = _masks([order[neurons - len(most) :]], neurons)
        masks[fraction, SIZE] = _masks([drawn[: len(most)] for drawn in by_size], neurons)
        for control, weights, orders in zip(RANDOM[1:], (sensitivity, squared_difference), by_sum, strict=True):
            wanted = float(weights[most].sum())
            masks[fraction, control] = _masks([equal_sum(weights, drawn, wanted) for drawn in orders], neurons)
        for name, values in rankings.items():
            masks[fraction, f"by_{name}"] = _masks([most_sensitive(values.detach().cpu(), fraction)], neurons)
    distinct, which = torch.unique(torch.cat(list(masks.values())), dim=0, return_inverse=True)
    rows = which.split([len(mask) for mask in masks.values()])
    return NeuronSets(distinct, dict(zip(masks, rows, strict=True)))


def equal_sum(weights: Tensor, order: Tensor, wanted: float) -> Tensor:
    """Select the first neurons of `order` whose summed weight is nearest to `wanted`, just before or just after it.

    Stopping only after it would give the random sets a larger sum than the set that they control for.

    Args:
        weights: (neuron,) float64, none below 0.
        order: (neuron,) all neurons.
        wanted: at most the sum of all.

    Returns:
        (k,), at least one.
    """
    sums = weights[order].cumsum(0)
    reached = min(int((sums < wanted * (1 - 1e-12)).sum()), len(order) - 1)  # the sums of two orders round differently
    before = float(sums[reached - 1]) if reached > 0 else 0.0
    takes_one_less = reached > 0 and wanted - before < float(sums[reached]) - wanted
    return order[: reached if takes_one_less else reached + 1]


def _masks(sets: Sequence[Tensor], neurons: int) -> Tensor:
    """[(k,) ids] -> (set, neuron) bool"""
    masks = torch.zeros(len(sets), neurons, dtype=torch.bool)
    for mask, ids in zip(masks, sets, strict=True):
        mask[ids.cpu()] = True
    return masks
