"""Neuron sensitivity: the change of each neuron's output between a clean image and its adversarial counterpart.

A neuron m of layer l is one channel of a convolutional feature map, one unit of a fully connected layer, one
embedding dimension of a token model; F_lm(x) is its output on x and x' the adversarial example of x. Over N pairs:

    absolute(l, m)   = 1/N * sum_i  1/dim(F_lm) * || F_lm(x_i) - F_lm(x'_i) ||_1
    relative(l, m)   = sum_i || F_lm(x_i) - F_lm(x'_i) ||_1  /  sum_i || F_lm(x_i) ||_1       0 where both are 0
    mean_first(l, m) = 1/N * sum_i  | mean F_lm(x_i) - mean F_lm(x'_i) |

Source: C. Zhang, A. Liu, X. Liu, Y. Xu, H. Yu, Y. Ma, T. Li, Interpreting and Improving Adversarial Robustness of
Deep Neural Networks with Neuron Sensitivity, IEEE TIP 30:1291-1304, 2021. `absolute` is the measure as the paper's
group published it in code (AISafety, sns.py); `mean_first` is that of MindArmour's NeuronMetric, for comparison.
This file needs torch alone. Loss, metric, callbacks and reports all call it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsr.errors import InputError, check_amount, check_choice

KINDS = ("absolute", "relative", "mean_first")
DISTANCES = ("l1", "l2", "squared", "cosine")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # others, as float8, do not mix with these


class SensitivitySums(NamedTuple):
    """Sums over samples, batches and processes, before the one division at the end."""

    difference: Tensor  # (neuron,) sum over samples of the neuron's mean |F(x) - F(x')|
    activation: Tensor  # (neuron,) sum over samples of the neuron's mean |F(x)|
    samples: int | Tensor


def neuron_sensitivity(clean: Tensor, adversarial: Tensor, *, kind: str = "absolute", neuron_dim: int = 1) -> Tensor:
    """Compute the sensitivity of every neuron of one layer over a batch of pairs; differentiable in both views.

    Args:
        clean: the layer's outputs F_l(x), (batch, channel, height, width), (batch, unit) or any other layout with
            the batch first and the neurons on `neuron_dim`, e.g. tokens (batch, token, dim) with neuron_dim=-1.
        adversarial: F_l(x'), of the same shape.
        kind: 'absolute', the mean of |F(x) - F(x')| in units of the activation; 'relative', its sum over the sum of
            |F(x)|; 'mean_first', the absolute difference of a neuron's mean outputs.
        neuron_dim: the axis of the neurons, not the first.

    Returns:
        (neuron,) in float32, or float64 where the features are; integer and bool features are cast.

    Errors:
        InputError: shapes that differ, no values, complex numbers, a neuron_dim that is the batch or none, an unknown
            kind.

    Source: Zhang et al., IEEE TIP 30:1291-1304, 2021 ('absolute', as the authors' code has it).
    """
    if kind == "relative":
        return divide(sensitivity_sums(clean, adversarial, kind=kind, neuron_dim=neuron_dim), kind)
    return _summed_difference(clean, adversarial, kind, neuron_dim)[0] / len(clean)  # without the sums of |F(x)|


def activation_difference(clean: Tensor, adversarial: Tensor, *, distance: str = "l1", neuron_dim: int = 1) -> Tensor:
    """Compute each neuron's mean activation difference in one of four distances; differentiable in both views.

    l1       1/N * sum_i  1/dim(F_lm) * || F_lm(x_i) - F_lm(x'_i) ||_1, which is `neuron_sensitivity`
    l2       1/N * sum_i  1/sqrt(dim(F_lm)) * || F_lm(x_i) - F_lm(x'_i) ||_2
    squared  1/N * sum_i  1/dim(F_lm) * || F_lm(x_i) - F_lm(x'_i) ||_2^2
    cosine   1/N * sum_i  1 - cos(F_lm(x_i), F_lm(x'_i)); 0 for a neuron that is 0 in both views

    Args:
        clean, adversarial, neuron_dim: as in `neuron_sensitivity`.
        distance: 'l1', 'l2', 'squared' or 'cosine'; the last needs neurons of more than one value (feature maps,
            tokens).

    Returns:
        (neuron,) in float32, or float64 where the features are.

    Errors:
        InputError: an unknown distance; those of `neuron_sensitivity`.
    """
    check_choice("distance", distance, DISTANCES)
    if distance == "l1":
        return neuron_sensitivity(clean, adversarial, neuron_dim=neuron_dim)
    clean, adversarial = _by_neuron(clean, adversarial, neuron_dim)
    if distance == "l2":
        return torch.linalg.vector_norm(clean - adversarial, dim=2).mean(0) / clean.shape[2] ** 0.5
    if distance == "squared":
        return ((clean - adversarial) ** 2).mean((0, 2))
    silent = (clean == 0).all(2) & (adversarial == 0).all(2)
    difference = 1 - torch.nn.functional.cosine_similarity(clean, adversarial, dim=2)
    return torch.where(silent, torch.zeros_like(difference), difference).mean(0)


def attribution(clean: Tensor, adversarial: Tensor, slopes: Tensor, *, neuron_dim: int = 1) -> Tensor:
    """Estimate, to first order, how much of a loss each neuron's change between the views causes, for each image.

    attribution(l, m, i) = sum over positions p of  dM_i/dF_lmp(x'_i) * (F_lmp(x'_i) - F_lmp(x_i))

    Args:
        clean, adversarial, neuron_dim: as in `neuron_sensitivity`.
        slopes: dM/dF(x'), the gradient of a quantity M of each image by the adversarial features, of their shape.

    Returns:
        (batch, neuron): how far M falls, to first order, if the neuron has its clean outputs.

    Source: attribution patching, Nanda 2023; Kramar et al., AtP*, 2024.
    """
    before, after = _by_neuron(clean, adversarial, neuron_dim)
    _, slope = _by_neuron(clean, slopes, neuron_dim)
    return ((after - before) * slope).sum(2)


def sensitivity_sums(
    clean: Tensor,
    adversarial: Tensor,
    *,
    kind: str = "absolute",
    neuron_dim: int = 1,
    dtype: torch.dtype | None = None,
) -> SensitivitySums:
    """Compute the sums of `neuron_sensitivity` before their division, so that parts of a data set can be added.

    Differences are taken in at least float32 whatever the features are in; the sums are accumulated in `dtype`
    (float64 for whole data sets; None: the dtype of the differences). Arguments and errors as there.
    """
    difference, clean, over = _summed_difference(clean, adversarial, kind, neuron_dim, dtype)
    activation = clean.abs().sum(over, dtype=dtype) / _positions(clean, over)
    return SensitivitySums(difference, activation, len(clean))


def _summed_difference(
    clean: Tensor, adversarial: Tensor, kind: str, neuron_dim: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """Sum each neuron's mean |F(x) - F(x')| over the samples.

    Returns:
        the sums (neuron,); the clean view in at least float32, for 'mean_first' its means over positions; the axes of
        samples and positions.
    """
    check_choice("kind", kind, KINDS)
    precise, axis = _checked(clean, adversarial, neuron_dim)
    clean, adversarial = (view if view.dtype in FLOATS else view.to(precise) for view in (clean, adversarial))
    over = [dim for dim in range(clean.ndim) if dim != axis]
    if kind == "mean_first" and over[1:]:  # height and width, tokens
        clean, adversarial = (view.to(precise).mean(over[1:], keepdim=True) for view in (clean, adversarial))
    summed: Tensor = _AbsoluteDifference.apply(clean, adversarial, over, precise, dtype)
    return summed / _positions(clean, over), clean.to(precise), over


def _by_neuron(clean: Tensor, adversarial: Tensor, neuron_dim: int) -> tuple[Tensor, Tensor]:
    """Return both views as (batch, neuron, position), in at least float32."""
    precise, axis = _checked(clean, adversarial, neuron_dim)
    moved = (view.to(precise).movedim(axis, 1) for view in (clean, adversarial))
    clean, adversarial = (view.reshape(*view.shape[:2], -1) for view in moved)
    return clean, adversarial


def _positions(values: Tensor, over: Sequence[int]) -> int:
    return math.prod(values.shape[dim] for dim in over[1:])


def _difference(clean: Tensor, adversarial: Tensor, precise: torch.dtype) -> Tensor:
    """Return clean - adversarial in `precise`, in memory of its own."""
    if clean.dtype == precise:
        return clean - adversarial.to(precise)
    return clean.to(precise).sub_(adversarial.to(precise))


class _AbsoluteDifference(torch.autograd.Function):
    """sum |clean - adversarial| over all axes but the neurons', (neuron,), differences taken in `precise`.

    Autograd would keep a difference and its absolute value of every activation, in float32 for bfloat16 features. This
    keeps the features, which the network's own backward pass keeps anyway. In place, because fresh memory costs more
    than the arithmetic.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        clean: Tensor, adversarial: Tensor, over: list[int], precise: torch.dtype, dtype: torch.dtype | None
    ) -> Tensor:
        return _difference(clean, adversarial, precise).abs_().sum(over, dtype=dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        clean, adversarial, ctx.over, ctx.precise, _ = inputs
        ctx.save_for_backward(clean, adversarial)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        clean, adversarial = ctx.saved_tensors
        sign = _difference(clean, adversarial, ctx.precise).sign_()
        scale = gradient.to(ctx.precise).view([1 if dim in ctx.over else -1 for dim in range(clean.ndim)])
        # a second derivative needs the sign
        towards = sign * scale if torch.is_grad_enabled() else sign.mul_(scale)
        needs_clean, needs_adversarial, *_ = ctx.needs_input_grad
        of_clean = towards.to(clean.dtype) if needs_clean else None
        return of_clean, -towards.to(adversarial.dtype) if needs_adversarial else None, None, None, None


def _checked(clean: Tensor, adversarial: Tensor, neuron_dim: int) -> tuple[torch.dtype, int]:
    """Return the dtype of both views' differences, at least float32, and the axis of the neurons from the first."""
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
    if clean.numel() == 0:
        raise InputError(f"features of shape {tuple(clean.shape)} hold no values; each axis must be at least 1 long")
    precise = torch.float32
    for dtype in (clean.dtype, adversarial.dtype):
        is_narrow = dtype.is_floating_point and dtype not in FLOATS
        precise = torch.promote_types(precise, torch.float32 if is_narrow else dtype)
    if precise.is_complex:
        raise InputError(
            f"features are complex numbers ({precise}), whose sensitivity is not defined; pass their absolute values, "
            "or torch.view_as_real of them"
        )
    return precise, axis


def divide(sums: SensitivitySums, kind: str = "absolute") -> Tensor:
    """Return the sensitivities (neuron,) from sums over any number of batches and processes."""
    if kind == "relative":
        # 0 / 0, a neuron that is 0 in both views, gives 0, and a gradient that is not NaN
        activation = torch.where(sums.difference == 0, torch.ones_like(sums.activation), sums.activation)
        return sums.difference / activation
    return sums.difference / sums.samples


def most_sensitive(sensitivity: Tensor, top: int | float) -> Tensor:
    """Return the ids of a layer's most sensitive neurons, most sensitive first, equal ones by id.

    Args:
        sensitivity: (neuron,).
        top: a count (int; a layer with fewer neurons is taken whole) or a fraction of the layer (float in (0, 1];
            rounded down, at least one neuron). 1 is one neuron, 1.0 is all.

    Returns:
        (k,) int64 on the device of `sensitivity`; the selection carries no gradient.

    Errors:
        InputError: a top out of range, a sensitivity that is not (neuron,), empty or not a number.
    """
    if sensitivity.isnan().any():
        ids = sensitivity.isnan().nonzero()[:, -1].tolist()
        raise InputError(
            f"the sensitivity of {len(ids)} of {sensitivity.numel()} neurons is nan, the first is neuron {ids[0]}; the "
            "features it was computed from hold nan or inf"
        )
    return largest(sensitivity, top)


def largest(sensitivity: Tensor, top: int | float) -> Tensor:
    """Return what `most_sensitive` does without its check for nan, which waits for the device."""
    top = check_amount("top", top)
    if sensitivity.ndim != 1 or len(sensitivity) == 0:
        raise InputError(f"sensitivity has shape {tuple(sensitivity.shape)}; it must be (neuron,), not empty")
    neurons = len(sensitivity)
    # the small term keeps 0.1 * 30 at 3 and 0.7 * 10 at 7 whichever way the product was rounded
    count = min(top, neurons) if isinstance(top, int) else max(1, int(top * neurons + 1e-9))
    return torch.sort(sensitivity.detach(), descending=True, stable=True).indices[:count]


def sensitivity_histogram(sensitivity: Tensor, *, bins: int = 64) -> tuple[Tensor, Tensor]:
    """Count a layer's neurons by their sensitivity (neuron,), on its device.

    Returns:
        counts (bins,) int64 and edges (bins + 1,) float64: k / bins * the largest sensitivity, from 0 (to 1 where
        all are 0). A bin includes its lower edge, the last both: numpy.histogram on the same edges counts the same.
    """
    values = sensitivity.detach().double()
    largest = values.max()
    fractions = torch.arange(bins + 1, dtype=torch.float64, device=values.device) / bins
    edges = fractions * torch.where(largest > 0, largest, torch.ones_like(largest))
    bin_of = (torch.searchsorted(edges, values, right=True) - 1).clamp(0, bins - 1)
    counts = torch.zeros(bins, dtype=torch.int64, device=values.device)
    return counts.scatter_add(0, bin_of, torch.ones_like(bin_of)), edges
