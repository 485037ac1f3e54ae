"""Neuron sensitivity: how far each neuron moves between a clean image and its adversarial twin.

A neuron m of layer l is one channel of a convolutional feature map, one unit of a fully connected layer, one
embedding dimension of a token model; F_lm(x) is its output on x and x' the adversarial example of x. Over N pairs:

    absolute(l, m)   = 1/N * sum_i  1/dim(F_lm) * || F_lm(x_i) - F_lm(x'_i) ||_1
    relative(l, m)   = sum_i || F_lm(x_i) - F_lm(x'_i) ||_1  /  sum_i || F_lm(x_i) ||_1       0 where both are 0
    mean_first(l, m) = 1/N * sum_i  | mean F_lm(x_i) - mean F_lm(x'_i) |

Source: C. Zhang, A. Liu, X. Liu, Y. Xu, H. Yu, Y. Ma, T. Li, Interpreting and Improving Adversarial Robustness of
Deep Neural Networks with Neuron Sensitivity, IEEE TIP 30:1291-1304, 2021. `absolute` is the measure as the paper's
group published it in code (AISafety, sns.py); `mean_first` is that of MindArmour's NeuronMetric, for comparison.
This file needs torch alone. Loss, metric, dashboards and reports all call it; nothing computes the measure again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nsr.errors import InputError, check_choice, check_top

KINDS = ("absolute", "relative", "mean_first")
DISTANCES = ("l1", "l2", "cosine")


class SensitivitySums(NamedTuple):
    """What is added up over samples, batches and processes before the one division at the end."""

    movement: Tensor  # (neuron,) sum over samples of the neuron's mean movement |F(x) - F(x')|
    activation: Tensor  # (neuron,) sum over samples of the neuron's mean |F(x)|
    samples: int | Tensor


def neuron_sensitivity(clean: Tensor, adversarial: Tensor, *, kind: str = "absolute", neuron_dim: int = 1) -> Tensor:
    """The sensitivity of every neuron of one layer over a batch of pairs; differentiable in both sides.

    Args:
        clean: the layer's outputs F_l(x), (batch, channel, height, width), (batch, unit) or any other layout with
            the batch first and the neurons on `neuron_dim`, e.g. tokens (batch, token, dim) with neuron_dim=-1.
        adversarial: F_l(x'), of the same shape.
        kind: 'absolute' (the units of the activation), 'relative' (a ratio) or 'mean_first'; see above.

    Returns:
        (neuron,) in float32, or float64 where the features are.

    Errors:
        InputError: shapes that differ, an empty batch, a neuron_dim that is the batch or none, an unknown kind.
    """
    sums = sensitivity_sums(clean, adversarial, kind=kind, neuron_dim=neuron_dim)
    return divide(sums, kind)


def neuron_movement(clean: Tensor, adversarial: Tensor, *, distance: str = "l1", neuron_dim: int = 1) -> Tensor:
    """How far each neuron moves in another distance than sensitivity's own; differentiable in both sides.

    l1      1/N * sum_i  1/dim(F_lm) * || F_lm(x_i) - F_lm(x'_i) ||_1, which is `neuron_sensitivity`
    l2      1/N * sum_i  1/sqrt(dim(F_lm)) * || F_lm(x_i) - F_lm(x'_i) ||_2
    cosine  1/N * sum_i  1 - cos(F_lm(x_i), F_lm(x'_i)); 0 for a neuron that is silent on both sides

    Args:
        clean, adversarial, neuron_dim: as in `neuron_sensitivity`.
        distance: 'l1', 'l2' or 'cosine'; the last needs neurons of more than one value (feature maps, tokens).

    Returns:
        (neuron,) in float32, or float64 where the features are.
    """
    check_choice("distance", distance, DISTANCES)
    if distance == "l1":
        return neuron_sensitivity(clean, adversarial, neuron_dim=neuron_dim)
    precise = torch.promote_types(clean.dtype, torch.float32)
    # (batch, neuron, value)
    clean, adversarial = (side.to(precise).movedim(neuron_dim, 1) for side in (clean, adversarial))
    clean, adversarial = (side.reshape(*side.shape[:2], -1) for side in (clean, adversarial))
    if distance == "l2":
        return torch.linalg.vector_norm(clean - adversarial, dim=2).mean(0) / clean.shape[2] ** 0.5
    silent = (clean == 0).all(2) & (adversarial == 0).all(2)
    moved = 1 - torch.nn.functional.cosine_similarity(clean, adversarial, dim=2)
    return torch.where(silent, torch.zeros_like(moved), moved).mean(0)


def sensitivity_sums(
    clean: Tensor,
    adversarial: Tensor,
    *,
    kind: str = "absolute",
    neuron_dim: int = 1,
    dtype: torch.dtype | None = None,
) -> SensitivitySums:
    """The sums of `neuron_sensitivity` before their division, so that parts of a data set can be added up.

    Differences are taken in at least float32 whatever the features are in; the sums are accumulated in `dtype`
    (float64 for whole data sets; None: the dtype of the differences).
    """
    check_choice("kind", kind, KINDS)
    if clean.shape != adversarial.shape:
        raise InputError(
            f"clean and adversarial features differ in shape, {tuple(clean.shape)} and {tuple(adversarial.shape)}; "
            "they must be the same layer's outputs on the same images"
        )
    axis = neuron_dim + clean.ndim if neuron_dim < 0 else neuron_dim
    if not 0 < axis < clean.ndim or clean.shape[0] == 0:
        raise InputError(
            f"neuron_dim is {neuron_dim} for features of shape {tuple(clean.shape)}; it must name an axis of them "
            "other than the first, which is a batch of at least one sample"
        )
    precise = torch.promote_types(clean.dtype, torch.float32)
    clean, adversarial = clean.to(precise), adversarial.to(precise)
    others = [dim for dim in range(clean.ndim) if dim != axis]
    positions = [dim for dim in others if dim != 0]  # height and width, tokens
    if kind == "mean_first" and positions:
        clean, adversarial = clean.mean(positions, keepdim=True), adversarial.mean(positions, keepdim=True)
    values = clean.numel() // (clean.shape[0] * clean.shape[axis])  # dim(F_lm)
    movement = (clean - adversarial).abs().sum(others, dtype=dtype) / values  # -> (neuron,)
    activation = clean.abs().sum(others, dtype=dtype) / values  # -> (neuron,)
    return SensitivitySums(movement, activation, clean.shape[0])


def divide(sums: SensitivitySums, kind: str = "absolute") -> Tensor:
    """The sensitivities (neuron,) from sums over any number of batches and processes."""
    if kind == "relative":
        # 0 / 0 is a neuron that is silent on both sides: it does not move, and its gradient is no nan
        activation = torch.where(sums.movement == 0, torch.ones_like(sums.activation), sums.activation)
        return sums.movement / activation
    return sums.movement / sums.samples


def most_sensitive(sensitivity: Tensor, top: int | float) -> Tensor:
    """The ids of a layer's most sensitive neurons, most sensitive first, equal ones by id.

    Args:
        sensitivity: (neuron,).
        top: a count (int; a layer with fewer neurons is taken whole) or a fraction of the layer (float in (0, 1];
            rounded down, at least one neuron). 1 is one neuron, 1.0 is all.

    Returns:
        (k,) int64 on the device of `sensitivity`; no gradient flows through the choice.
    """
    check_top("top", top)
    if sensitivity.ndim != 1 or len(sensitivity) == 0:
        raise InputError(f"sensitivity has shape {tuple(sensitivity.shape)}; it must be (neuron,), not empty")
    neurons = len(sensitivity)
    # the small term keeps 0.1 * 30 at 3 and 0.7 * 10 at 7 whichever way the product was rounded
    count = min(top, neurons) if isinstance(top, int) else max(1, int(top * neurons + 1e-9))
    return torch.sort(sensitivity.detach(), descending=True, stable=True).indices[:count]


def sensitivity_histogram(sensitivity: Tensor, *, bins: int = 64) -> tuple[Tensor, Tensor]:
    """How many of a layer's neurons are how sensitive, made on the device of `sensitivity`.

    Returns:
        counts (bins,) int64 and edges (bins + 1,) float64: k / bins * the largest sensitivity, from 0 (to 1 where
        nothing moves). A bin holds its lower edge, the last both: numpy.histogram on the same edges counts the same.
    """
    values = sensitivity.detach().double()
    largest = values.max()
    shares = torch.arange(bins + 1, dtype=torch.float64, device=values.device) / bins
    edges = shares * torch.where(largest > 0, largest, torch.ones_like(largest))
    bin_of = (torch.searchsorted(edges, values, right=True) - 1).clamp(0, bins - 1)
    counts = torch.zeros(bins, dtype=torch.int64, device=values.device)
    return counts.scatter_add(0, bin_of, torch.ones_like(bin_of)), edges
