"""The result of an attack suite: every test image under every attack, and the accuracies that follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.stats import binomtest
from torch import Tensor

from nsr.metrics.sensitivity import LayerSensitivity

CURVE = "curve_x"  # prefix of rows at other radii than the threat model's: no part of the worst case
WORST = "worst_case"  # row of the images that are robust to every attack


@dataclass(frozen=True)
class SuiteResult:
    """Images in the order of the test set; a row is 'clean' or an attack."""

    outcomes: dict[str, Tensor]  # {row: (image,) uint8, 1 where the image is classified correctly}
    predictions: dict[str, Tensor]  # {row: (image,) int64}; under an attack, of the image that it leaves
    margins: Tensor  # (image,) float32: the label's logit minus the largest other one, without an attack
    labels: Tensor  # (image,) int64
    places: Tensor  # (image,) int64: index in the whole test set
    distances: dict[str, Tensor] = field(default_factory=dict)  # {row of minimum norm: (image,), inf: none was found}
    probed: dict[str, Tensor] = field(default_factory=dict)  # {probe: (image,) uint8, 1 where it flags the image}
    metrics: dict[str, float] = field(default_factory=dict)
    sensitivities: dict[str, LayerSensitivity] = field(default_factory=dict)


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval (Wilson 1927) of a fraction: over other images like these, not over seeds."""
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def robust_to_all(outcomes: Mapping[str, Tensor]) -> Tensor:
    """Return (image,) 1 where the image is classified correctly in every row."""
    return torch.stack(list(outcomes.values())).amin(0)


def accuracies(outcomes: Mapping[str, Tensor], worst: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return {NAME_accuracy: fraction, NAME_low and NAME_high: its 95 % Wilson interval}, the worst cases last.

    Args:
        outcomes: {row: (image,) 1 where the image is classified correctly}.
        worst: {row of a worst case: the rows that it is over}.
    """
    combined = {name: robust_to_all({row: outcomes[row] for row in rows}) for name, rows in worst.items()}
    found: dict[str, float] = {}
    for name, flags in {**outcomes, **combined}.items():
        correct, images = int(flags.sum()), len(flags)
        low, high = wilson(correct, images)
        found |= {f"{name}_accuracy": correct / images, f"{name}_low": low, f"{name}_high": high}
    return found


def median_distances(distances: Mapping[str, Tensor]) -> dict[str, float]:
    """Return {ROW_median_distance: median over all images} of the rows of minimum norm where it is finite."""
    medians = {f"{row}_median_distance": float(values.double().quantile(0.5)) for row, values in distances.items()}
    return {name: value for name, value in medians.items() if value < float("inf")}


def distinct(titles: Mapping[str, str]) -> dict[str, str]:
    """Return {row: title}, with the row's name beside each title that several rows have."""
    counts = Counter(titles.values())
    return {row: f"{title} ({row})" if counts[title] > 1 else title for row, title in titles.items()}


def with_interval(metrics: Mapping[str, float], name: str) -> list[float]:
    """Return NAME_accuracy and its interval, NAME_low and NAME_high."""
    return [metrics[f"{name}_{part}"] for part in ("accuracy", "low", "high")]
