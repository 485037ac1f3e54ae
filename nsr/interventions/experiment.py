"""Interventions on neurons: what the sensitive ones of a layer cause, and whether others cause as much.

    restore     the adversarial image, the set's outputs replaced by their clean ones: is it right again?
    corrupt     the clean image, the set's outputs replaced by their adversarial ones: does it become wrong?
    mask_zero   the clean image, the set's outputs zero; mask_mean: their mean over the ranking images and positions

Restore and corrupt are measured on images that are right without the attack and wrong under it, masks on all that are
right without. Neurons are ranked on one half of the images and intervened on in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from nsr.errors import InputError, check_choice, check_number, did_you_mean
from nsr.interventions.controls import NeuronSets, neuron_sets
from nsr.interventions.effects import Effects, Outcomes
from nsr.interventions.patching import Recording, Replay
from nsr.interventions.ranking import RANKINGS, LayerRanking, Pairs, rank_neurons
from nsr.layers import Layer, as_list, calls_matching
from nsr.losses import margin

MASKS = ("mask_zero", "mask_mean")
KINDS = ("restore", "corrupt", *MASKS)


class Interventions:
    """The settings of an analysis, checked once; `measure` does it.

    Args:
        layers: names or patterns, of those that `measure` is given; None: all.
        shares: of a layer's neurons, each in (0, 1].
        kinds: of 'restore', 'corrupt', 'mask_zero', 'mask_mean'.
        rankings: further rankings whose first neurons are a control: 'activation' (mean |output| on clean images),
            'relative' (relative sensitivity), 'conductance' (captum's).
        draws: random sets of equal size, of equal mass and of equal energy, at each share.
        replicates: of the bootstrap.
        images_at_once: in one pass, sets times images: what bounds the memory.
        seed: of the random sets and the bootstrap.

    Errors:
        InputError: a setting out of range.
    """

    def __init__(
        self,
        *,
        layers: str | Sequence[str] | None = None,
        shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
        kinds: Sequence[str] = ("restore", "corrupt"),
        rankings: Sequence[str] = ("activation",),
        draws: int = 20,
        replicates: int = 2000,
        images_at_once: int = 256,
        seed: int = 0,
    ):
        self.layers = None if layers is None else as_list(layers)
        self.shares = [check_share(share) for share in _several("shares", shares)]
        self.kinds = [check_choice("kinds entry", kind, KINDS) for kind in _several("kinds", kinds)]
        self.rankings = [check_choice("rankings entry", name, RANKINGS) for name in rankings]
        self.draws = check_number("draws", draws, lowest=2, whole=True)
        self.replicates = check_number("replicates", replicates, lowest=100, whole=True)
        self.images_at_once = check_number("images_at_once", images_at_once, lowest=1, whole=True)
        self.seed = check_number("seed", seed, lowest=0, whole=True)

    def chosen(self, tapped: Sequence[Layer]) -> list[Layer]:
        """Those of the layers that are intervened on; InputError where a pattern means none of them."""
        if self.layers is None:
            return list(tapped)
        names = [layer.name for layer in tapped]
        wanted: set[str] = set()
        for pattern in self.layers:
            matching = calls_matching(pattern, names)
            if not matching:
                raise InputError(
                    f"analysis.interventions.layers: no tapped layer matches {pattern!r}"
                    f"{did_you_mean(pattern, names)}; tapped are {', '.join(names)}; layers=[...] taps others"
                )
            wanted.update(matching)
        return [layer for layer in tapped if layer.name in wanted]

    def measure(
        self,
        net: nn.Module,
        layers: Sequence[Layer],
        ranking: Iterable[Pairs],
        tested: Iterable[Pairs],
        *,
        within: nn.Module | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> Effects:
        """What every set of every layer does.

        Args:
            net: images in [0, 1] -> logits; left as it was.
            layers: of `find_layers`.
            ranking: batches that neurons are ranked on, gone through once.
            tested: batches of other images, that they are intervened on in, gone through once after that.
            within: the part of `net` that the layers' names refer to.
            progress: called after each layer of each batch and kind.

        Errors:
            InputError: no image of `tested` can be intervened on for any kind, such as where none is fooled.
        """
        batches = iter(ranking)
        first = next(batches, None)
        if first is None:
            raise InputError("there are no images to rank neurons on; interventions need two halves")
        replay = Replay(net, self.chosen(layers), first.images, within=within)
        batches = chain(iter([first]), batches)
        del first  # or it would live as long as the ranking
        rankings = rank_neurons(replay, batches, self.rankings, within=within, images_at_once=self.images_at_once)
        sets = {name: self._sets(name, layer) for name, layer in rankings.items()}
        outcomes = Outcomes(self.kinds)
        for pairs in tested:
            self._intervene(replay, pairs, rankings, sets, outcomes, progress)
        return outcomes.effects(rankings, sets, shares=self.shares, replicates=self.replicates, seed=self.seed)

    def _sets(self, name: str, layer: LayerRanking) -> NeuronSets:
        chosen = {ranking: getattr(layer, ranking) for ranking in self.rankings}
        return neuron_sets(
            layer.sensitivity,
            layer.energy,
            chosen,
            shares=self.shares,
            draws=self.draws,
            seed=self.seed,
            layer=name,
        )

    # ---------------------------------------------------------------- intervening

    def _intervene(
        self,
        replay: Replay,
        pairs: Pairs,
        rankings: Mapping[str, LayerRanking],
        sets: Mapping[str, NeuronSets],
        outcomes: Outcomes,
        progress: Callable[[], None],
    ) -> None:
        """One batch: its two passes, then every layer and set from what they left."""
        clean, attacked = replay.record(pairs.images), replay.record(pairs.adversarial)
        right, withstood = (recording.logits.argmax(1) == pairs.labels for recording in (clean, attacked))
        outcomes.count(right, withstood)
        for kind in self.kinds:
            index = (right if kind in MASKS else right & ~withstood).nonzero()[:, 0]
            base, other = (attacked, clean) if kind == "restore" else (clean, attacked)
            base, labels = base.select(index), pairs.labels[index]
            for name, layer in replay.layers.items():
                if len(index):
                    features = base.features[name]
                    instead = (
                        _mask(kind, layer, rankings[name], features) if kind in MASKS else other.features[name][index]
                    )
                    margins, wrong = self._outcome(replay, base, name, instead, sets[name].distinct, labels)
                    outcomes.add(kind, name, wrong=wrong, rise=margins - margin(base.logits, labels))
                progress()

    def _outcome(
        self, replay: Replay, base: Recording, layer: str, replacement: Tensor, masks: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Margins and whether an image is wrong, each (set, image), `images_at_once` sets times images in a pass."""
        masks = masks.to(labels.device)
        margins, wrong = [], []
        for part in torch.arange(len(labels), device=labels.device).split(self.images_at_once):
            few = base.select(part)
            instead = replacement[part] if len(replacement) == len(labels) else replacement
            together = masks.split(max(1, self.images_at_once // len(part)))
            logits = torch.cat([replay.logits(few, layer, instead, some) for some in together])
            flat, repeated = logits.flatten(0, 1), labels[part].repeat(len(masks))
            margins.append(margin(flat, repeated).unflatten(0, (len(masks), -1)))
            wrong.append((flat.argmax(1) != repeated).unflatten(0, (len(masks), -1)))
        return torch.cat(margins, 1), torch.cat(wrong, 1)


def check_share(share: float) -> float:
    """InputError unless it is in (0, 1]."""
    return float(check_number("shares entry", share, above=0, highest=1, advice="a share of the layer's neurons"))


def _several(name: str, values: Sequence) -> list:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values or len({*values}) < len(values):
        raise InputError(f"{name} is {values!r}; it must be a list of different entries, at least one")
    return list(values)


def _mask(kind: str, layer: Layer, ranking: LayerRanking, features: Tensor) -> Tensor:
    """What masked neurons give, of a shape that broadcasts to the layer's output."""
    shape = [1] * features.ndim
    shape[layer.neuron_dim] = -1
    means = ranking.mean_output.to(features).view(shape)
    return means if kind == "mask_mean" else torch.zeros_like(means)
