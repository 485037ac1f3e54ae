"""Which neurons are intervened on: the most sensitive ones, and the controls that they are held against.

At each share of a layer, with k the number of neurons that `most_sensitive` takes of it:

    most_sensitive      the k of the largest sensitivity
    least_sensitive     the k of the smallest
    random_equal_size   k at random, drawn anew for each draw
    random_equal_mass   in random order until their summed sensitivity is that of the most sensitive set, drawn anew
    random_equal_energy the same by summed squared movement: few neurons that move far hold more of it than of mass
    by_activation ...   the k of the largest mean |activation| on clean images, or of another ranking
    whole_layer         all of them, once: what any set can reach at most where shortcuts pass the layer by
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nsr.randomness import frozen_stream
from nsr.sensitivity import most_sensitive

MOST, LEAST, WHOLE = "most_sensitive", "least_sensitive", "whole_layer"
SIZE, MASS, ENERGY = RANDOM = ("random_equal_size", "random_equal_mass", "random_equal_energy")
SETS = 2  # the stream of random numbers


@dataclass(frozen=True)
class NeuronSets:
    """All sets of one layer's neurons.

    Args:
        distinct: (distinct, neuron) bool; sets that hold the same neurons are one row.
        rows: {(share, family): (draw,) rows of `distinct`}.
    """

    distinct: Tensor
    rows: dict[tuple[float, str], Tensor]

    def masks(self, share: float, family: str) -> Tensor:
        """(draw, neuron) bool."""
        return self.distinct[self.rows[share, family]]


def neuron_sets(
    sensitivity: Tensor,
    energy: Tensor,
    rankings: Mapping[str, Tensor],
    *,
    shares: Sequence[float],
    draws: int,
    seed: int,
    layer: str,
) -> NeuronSets:
    """The sets of one layer.

    Args:
        sensitivity: (neuron,), what the most sensitive ones are chosen by and what mass is.
        energy: (neuron,) mean squared movement.
        rankings: {name: (neuron,)} of further rankings, whose largest are taken.
        shares: of the layer's neurons, each in (0, 1].
        draws: random sets of each kind at each share.
        seed: with the layer's name and the share it decides the random sets.
        layer: its name.
    """
    sensitivity, energy = (values.detach().cpu().double() for values in (sensitivity, energy))
    neurons = len(sensitivity)
    masks = {(1.0, WHOLE): torch.ones(1, neurons, dtype=torch.bool)}
    for share in shares:
        order = most_sensitive(sensitivity, 1.0)
        size = len(most_sensitive(sensitivity, share))
        stream = frozen_stream(seed, SETS, zlib.crc32(f"{layer} {share!r}".encode()))
        by_size, by_mass, by_energy = (
            [torch.from_numpy(stream.permutation(neurons)) for _ in range(draws)] for _ in RANDOM
        )
        masks[share, MOST] = _masks([order[:size]], neurons)
        masks[share, LEAST] = _masks([order[neurons - size :]], neurons)
        masks[share, SIZE] = _masks([drawn[:size] for drawn in by_size], neurons)
        for family, weights, orders in ((MASS, sensitivity, by_mass), (ENERGY, energy, by_energy)):
            wanted = float(weights[order[:size]].sum())
            masks[share, family] = _masks([equal_sum(weights, drawn, wanted) for drawn in orders], neurons)
        for name, values in rankings.items():
            masks[share, f"by_{name}"] = _masks([most_sensitive(values.detach().cpu(), share)], neurons)
    distinct, which = torch.unique(torch.cat(list(masks.values())), dim=0, return_inverse=True)
    rows = which.split([len(mask) for mask in masks.values()])
    return NeuronSets(distinct, dict(zip(masks, rows, strict=True)))


def equal_sum(weights: Tensor, order: Tensor, wanted: float) -> Tensor:
    """The first neurons of `order` whose summed weight comes nearest to `wanted`: before it is reached or just then.

    To stop only when it is reached would give the random sets more of it than the set they are held against.

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
