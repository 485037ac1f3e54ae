"""From what each intervention did to each image to effects and paired contrasts with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nsr.errors import InputError
from nsr.interventions.bootstrap import Bootstrap, Interval
from nsr.interventions.controls import MOST, WHOLE, NeuronSets
from nsr.interventions.ranking import LayerRanking

if TYPE_CHECKING:
    import pandas

DECIMALS = 6


@dataclass(frozen=True)
class Row:
    """A family of sets at one share of one layer. Effects are means over its draws and the images, in [0, 1]."""

    layer: str
    kind: str
    share: float  # of the layer's neurons that the most sensitive set has
    family: str
    draws: int
    neurons: float  # in a set, mean over draws
    layer_neurons: int
    mass: float  # share of the layer's summed sensitivity, mean over draws
    energy: float  # share of its summed squared movement, mean over draws
    overlap: float  # share of the most sensitive set that is in it, mean over draws
    images: int
    effect: float  # share of the images that are right again (restore) or become wrong (corrupt, mask)
    effect_low: float
    effect_high: float
    contrast: float | None  # the most sensitive set's effect minus this one's, paired; None of that set itself
    contrast_low: float | None
    contrast_high: float | None
    margin: float  # how far the logit margin moves towards the effect, in logits
    margin_low: float
    margin_high: float
    margin_contrast: float | None
    margin_contrast_low: float | None
    margin_contrast_high: float | None


@dataclass(frozen=True)
class Effects:
    """What was found.

    Args:
        rows: one a layer, kind, share and family.
        layers: {layer: {figure: value}} of the ranking images.
        images: {'tested', 'right', 'fooled': how many}.
        left_out: {kind: why there are no rows of it}.
    """

    rows: list[Row]
    layers: dict[str, dict[str, float | None]]
    images: dict[str, int]
    left_out: dict[str, str]

    def frame(self) -> pandas.DataFrame:
        """The rows as a data frame; needs pandas."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])

    def kinds(self) -> list[str]:
        """Those that there are rows of."""
        return list(dict.fromkeys(row.kind for row in self.rows))

    def plain(self) -> dict[str, Any]:
        """All but the rows, as plain values."""
        return {"images": self.images, "left_out": self.left_out, "layers": self.layers}


@dataclass
class Outcomes:
    """A flag and a margin for each intervention on each image: all that is kept of a batch."""

    kinds: Sequence[str]
    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("tested", "right", "fooled"), 0))
    flags: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    gains: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)

    def count(self, right: Tensor, right_under_attack: Tensor) -> None:
        """Adds a batch's images, each (batch,) bool."""
        for name, images in (("tested", right | True), ("right", right), ("fooled", right & ~right_under_attack)):
            self.images[name] += int(images.sum())

    def add(self, kind: str, layer: str, *, wrong: Tensor, rise: Tensor) -> None:
        """Adds a batch's interventions, each (distinct set, image): whether it is wrong, how far its margin rose."""
        restores = kind == "restore"
        self.flags.setdefault((kind, layer), []).append((~wrong if restores else wrong).cpu())
        self.gains.setdefault((kind, layer), []).append((-rise if restores else rise).float().cpu())

    def effects(
        self,
        rankings: Mapping[str, LayerRanking],
        sets: Mapping[str, NeuronSets],
        *,
        shares: Sequence[float],
        replicates: int,
        seed: int,
    ) -> Effects:
        """Effects, contrasts and their intervals.

        Errors:
            InputError: there is no image for any kind.
        """
        left_out = {kind: reason for kind in self.kinds if (reason := self._too_few(kind))}
        if len(left_out) == len(self.kinds):
            raise InputError(next(iter(left_out.values())))
        rows = []
        for kind in self.kinds:
            if kind not in left_out:
                bootstrap = Bootstrap(self._images_of(kind), replicates=replicates, seed=seed)
                for layer in rankings:
                    rows += self._rows(kind, layer, rankings[layer], sets[layer], shares, bootstrap)
        return Effects(rows, {name: layer.figures() for name, layer in rankings.items()}, dict(self.images), left_out)

    def _images_of(self, kind: str) -> int:
        return self.images["right" if kind.startswith("mask") else "fooled"]

    def _too_few(self, kind: str) -> str:
        if self._images_of(kind):
            return ""
        if not self.images["right"]:
            return f"none of the {self.images['tested']} tested images is right without the attack: nothing to change"
        return (
            f"none of the {self.images['right']} tested images that are right is fooled by the attack: nothing to "
            f"{kind}; take a larger epsilon, or kinds=[mask_zero]"
        )

    def _rows(
        self,
        kind: str,
        layer: str,
        ranking: LayerRanking,
        sets: NeuronSets,
        shares: Sequence[float],
        bootstrap: Bootstrap,
    ) -> list[Row]:
        flags, gains = (torch.cat(parts[kind, layer], 1) for parts in (self.flags, self.gains))
        families = list(dict.fromkeys(family for _, family in sets.rows if family != WHOLE))
        rows = []
        for share, family in [*((share, family) for share in shares for family in families), (1.0, WHOLE)]:
            of, most = sets.rows[share, family], sets.rows.get((share, MOST))
            masks = sets.masks(share, family)
            measured = [values for part in (flags, gains) for values in _compared(part, of, most, family, bootstrap)]
            description = {
                "draws": len(masks),
                "neurons": float(masks.sum(1).double().mean()),
                "layer_neurons": masks.shape[1],
                "mass": _share(masks, ranking.sensitivity.cpu()),
                "energy": _share(masks, ranking.energy.cpu()),
                "overlap": 1.0 if most is None else float(_overlap(masks, sets.distinct[most[0]])),
                "images": flags.shape[1],
            }
            figures = dict(zip(_MEASURED, measured, strict=True))
            rows.append(Row(layer, kind, share, family, **_rounded({**description, **figures})))
        return rows


_MEASURED = [
    f"{figure}{end}" for figure in ("effect", "contrast", "margin", "margin_contrast") for end in ("", "_low", "_high")
]


def _compared(values: Tensor, of: Tensor, most: Tensor | None, family: str, bootstrap: Bootstrap) -> list[float | None]:
    """The mean of a family's values with its interval, and that of its contrast with the most sensitive set."""
    alone: Interval = bootstrap.mean(values[of])
    if most is None or family in (MOST, WHOLE):
        return [*alone, None, None, None]
    return [*alone, *bootstrap.contrast(values[most], values[of])]


def _share(masks: Tensor, weights: Tensor) -> float:
    """The share of the layer's summed weights in the sets, mean over draws; 0 where all are 0."""
    total = float(weights.sum())
    return 0.0 if total == 0 else float((masks.double() @ weights).mean()) / total


def _overlap(masks: Tensor, most: Tensor) -> Tensor:
    return (masks & most).sum(1).double().mean() / most.sum()


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, DECIMALS) if isinstance(value, float) else value for name, value in figures.items()}
