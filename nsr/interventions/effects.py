"""Effects of interventions and paired contrasts with the controls, with percentile bootstrap intervals (Efron 1979).

Images are resampled with replacement, and so are the sets of a random control. Both terms of a contrast use the same
resampled images. The ranking of the neurons stays fixed: an interval covers other images and other random sets, not
another ranking half or another network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nsr.errors import InputError, check_finite_logits
from nsr.interventions.controls import MOST, WHOLE, NeuronSets
from nsr.interventions.ranking import LayerRanking
from nsr.losses import margin
from nsr.randomness import frozen_stream

if TYPE_CHECKING:
    import pandas

ABLATIONS = ("zero_ablation", "mean_ablation")
KINDS = ("patch_clean", "patch_adversarial", *ABLATIONS)
DECIMALS = 6
IMAGES, SETS = 3, 4  # streams of random numbers
LEVELS = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Row:
    """One kind of intervention on the most sensitive neurons of a layer, or on a control; means over its sets."""

    layer: str
    kind: str
    fraction: float  # of the layer's neurons that are most sensitive
    control: str  # 'most_sensitive' or the name of a control
    n_sets: int
    neurons: float  # in a set
    layer_neurons: int
    sensitivity_fraction: float  # of the layer's summed sensitivity that is in a set
    squared_difference_fraction: float  # of the layer's summed squared activation difference that is in a set
    overlap: float  # fraction of the most sensitive neurons that is in a set
    images: int
    effect: float  # fraction of images that become correctly classified (patch_clean) or misclassified (other kinds)
    effect_low: float
    effect_high: float
    contrast: float | None  # effect of the most sensitive neurons minus this one, paired; None for their own row
    contrast_low: float | None
    contrast_high: float | None
    margin: float  # shift of the logit margin towards the effect, in logits
    margin_low: float
    margin_high: float
    margin_contrast: float | None
    margin_contrast_low: float | None
    margin_contrast_high: float | None


@dataclass(frozen=True)
class Effects:
    """Results of the interventions on one network."""

    rows: list[Row]  # one per layer, kind, fraction and control
    layers: dict[str, dict[str, float | None]]  # {layer: {metric: value}} on the ranking images
    images: dict[str, int]  # {'tested', 'correct', 'fooled': count}; fooled are correct only without the attack
    skipped: dict[str, str]  # {kind: reason why it has no rows}

    def frame(self) -> pandas.DataFrame:
        """The rows as the data frame that interventions.csv holds; needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows)

    def kinds(self) -> list[str]:
        """The kinds that have rows."""
        return list(dict.fromkeys(row.kind for row in self.rows))


@dataclass
class EffectAccumulator:
    """Accumulates, for each intervention and image, whether it has its effect and how far it shifts the margin."""

    kinds: Sequence[str]
    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("tested", "correct", "fooled"), 0))
    batches: dict[tuple[str, str], list[Tensor]] = field(
        default_factory=dict
    )  # (changed or shift, distinct set, image)

    def count(self, correct: Tensor, robust: Tensor) -> None:
        """Count a batch's images; correct without the attack and under it, each (batch,) bool."""
        for name, images in (("tested", correct | True), ("correct", correct), ("fooled", correct & ~robust)):
            self.images[name] += int(images.sum())

    def add(self, kind: str, layer: str, *, plain: Tensor, patched: Tensor, labels: Tensor) -> None:
        """Add a batch's logits without the interventions (image, class) and with them (distinct set, image, class)."""
        check_finite_logits(patched.transpose(0, 1))
        margins = margin(patched.flatten(0, 1), labels.repeat(len(patched))).unflatten(0, patched.shape[:2])
        changed, shift = patched.argmax(2) != labels, margins - margin(plain, labels)  # towards misclassification
        if kind == "patch_clean":
            changed, shift = ~changed, -shift
        self.batches.setdefault((kind, layer), []).append(torch.stack([changed.float(), shift.float()]).cpu())

    def effects(
        self, rankings: Mapping[str, LayerRanking], sets: Mapping[str, NeuronSets], *, n_bootstrap: int, seed: int
    ) -> Effects:
        """Compute effects, contrasts and their intervals.

        Errors:
            InputError: no kind has an image to intervene on.
        """
        skipped = {kind: reason for kind in self.kinds if (reason := self._too_few(kind))}
        if len(skipped) == len(self.kinds):
            raise InputError(next(iter(skipped.values())))
        rows = [
            row
            for kind in self.kinds
            if kind not in skipped
            for layer in rankings
            for row in self._rows(kind, layer, rankings[layer], sets[layer], n_bootstrap=n_bootstrap, seed=seed)
        ]
        return Effects(rows, {name: layer.summary() for name, layer in rankings.items()}, dict(self.images), skipped)

    def _too_few(self, kind: str) -> str:
        """Return why no image can be intervened on, "" where one can."""
        if not self.images["correct"]:
            return f"none of the {self.images['tested']} tested images is correctly classified without the attack"
        if kind in ABLATIONS or self.images["fooled"]:
            return ""
        return (
            f"none of the {self.images['correct']} correctly classified images is misclassified under the attack; "
            f"{kind} needs one that is: take a larger epsilon, or kinds=[zero_ablation]"
        )

    def _rows(self, kind: str, layer: str, ranking: LayerRanking, sets: NeuronSets, **bootstrap: int) -> Iterator[Row]:
        changed, shifts = torch.cat(self.batches[kind, layer], 2)
        for fraction, control in sorted(sets.rows, key=lambda key: key[1] == WHOLE):  # the whole layer last
            of, masks = sets.rows[fraction, control], sets.masks(fraction, control)
            most = None if control == WHOLE else sets.rows[fraction, MOST]
            metrics: dict[str, Any] = {
                "n_sets": len(masks),
                "neurons": float(masks.sum(1).double().mean()),
                "layer_neurons": masks.shape[1],
                "sensitivity_fraction": _fraction(masks, ranking.sensitivity),
                "squared_difference_fraction": _fraction(masks, ranking.squared_difference),
                "overlap": 1.0 if most is None else _fraction(masks, sets.distinct[most[0]].double()),
                "images": changed.shape[1],
            }
            for values, name, contrast in ((changed, "effect", "contrast"), (shifts, "margin", "margin_contrast")):
                intervals = {name: mean_interval(values[of], **bootstrap), contrast: (None, None, None)}
                if most is not None and control != MOST:
                    intervals[contrast] = contrast_interval(values[most], values[of], **bootstrap)
                for column, interval in intervals.items():
                    metrics |= zip((column, f"{column}_low", f"{column}_high"), interval, strict=True)
            for name, value in metrics.items():
                metrics[name] = round(value, DECIMALS) if isinstance(value, float) else value
            yield Row(layer, kind, fraction, control, **metrics)


def _fraction(masks: Tensor, weights: Tensor) -> float:
    """The fraction of the summed weights (neuron,) that is in the sets, mean over sets; 0 where all weights are 0."""
    weights = weights.cpu()
    total = float(weights.sum())
    return 0.0 if total == 0 else float((masks.double() @ weights).mean()) / total


# ---------------------------------------------------------------- bootstrap


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Tensor, *, n_bootstrap: int = 2000, seed: int = 0) -> Interval:
    """The mean of values (set, image); one row for a control that is not random."""
    return _interval(values.double().mean(), _resampled_means(values, n_bootstrap, seed))


def contrast_interval(first: Tensor, second: Tensor, *, n_bootstrap: int = 2000, seed: int = 0) -> Interval:
    """The mean of `first` minus the mean of `second`, each (set, image), on the same images in the same order."""
    resampled = _resampled_means(first, n_bootstrap, seed) - _resampled_means(second, n_bootstrap, seed)
    return _interval(first.double().mean() - second.double().mean(), resampled)


def _resampled_means(values: Tensor, n_bootstrap: int, seed: int) -> Tensor:
    """(set, image) -> (resample,)"""
    of_sets = _weights(values.shape[1], n_bootstrap, seed, IMAGES) @ values.double().T  # (resample, set)
    return (of_sets * _weights(len(values), n_bootstrap, seed, SETS)).sum(1)


@lru_cache(maxsize=4)
def _weights(count: int, n_bootstrap: int, seed: int, stream: int) -> Tensor:
    """(resample, count): how often each was drawn, divided by the count."""
    drawn = frozen_stream(seed, stream, count).multinomial(count, np.full(count, 1 / count), size=n_bootstrap)
    return torch.from_numpy(drawn / count)


def _interval(observed: Tensor, resampled: Tensor) -> Interval:
    return Interval(float(observed), *torch.quantile(resampled, LEVELS).tolist())
