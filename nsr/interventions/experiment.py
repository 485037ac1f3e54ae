"""Interventions on neurons: what the most sensitive neurons of a layer cause, and whether others cause as much.

    patch_clean        run on the adversarial image with the set's clean outputs: is it correctly classified again?
    patch_adversarial  run on the clean image with the set's adversarial outputs: is it misclassified?
    zero_ablation      run on the clean image with the set's outputs set to zero: is it misclassified?
    mean_ablation      the same with each neuron's mean output over the ranking images and positions

Activation patching is measured on images that are correctly classified without the attack and misclassified under it,
ablation on all that are correctly classified without it. Neurons are ranked on one half of the images and intervened on
in the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nsr.errors import (
    InputError,
    check_batch,
    check_choice,
    check_finite_logits,
    check_layers,
    check_logits,
    check_number,
)
from nsr.interventions.controls import NeuronSets, neuron_sets
from nsr.interventions.effects import ABLATIONS, KINDS, EffectAccumulator, Effects
from nsr.interventions.pairs import Pairs, adversarial_pairs, check_image_count, halves
from nsr.interventions.patching import Patcher, align_neurons
from nsr.interventions.ranking import RANKINGS, LayerRanking, rank_neurons
from nsr.interventions.report import tables, write_effects
from nsr.layers import Layer, find_layers
from nsr.layers.names import matching_names
from nsr.modes import network_mode


@dataclass(frozen=True)
class AnalysisContext:
    """The evaluation that an analysis belongs to: what `evaluate.py analyses=[...]` runs after its attacks.

    An analysis is any object with a method `run(context)`; it returns lines of text and rich tables to print, or None.
    It may also have `check(layers, n_images)`, called before anything is measured with the hooked layers and the number
    of test images (None: not known yet); it raises `nsr.errors.InputError` where the analysis cannot run.
    """

    net: nn.Module  # images in [0, 1] -> logits, on the device to measure on
    root: nn.Module  # the module that the layers' names refer to
    layers: Sequence[Layer]  # the hooked layers
    labels: Tensor  # (image,) of all test images
    batches: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]  # indices -> (images, labels), on the device
    attack: Callable[..., Tensor]  # attack(net, images, labels, generator=...): the one of the sensitivities
    directory: Path  # of the evaluation's files
    settings: Mapping[str, Any]  # the whole configuration, to be kept beside the results


class Interventions:
    """Settings of the interventions, and the analysis that measures them.

    Args:
        layers: names or patterns; None: all hooked layers.
        fractions: of a layer's neurons, each in (0, 1].
        kinds: of 'patch_clean', 'patch_adversarial', 'zero_ablation', 'mean_ablation'.
        rankings: further rankings whose first neurons are a control: 'activation' (mean |output| on clean images),
            'relative' (relative sensitivity), 'squared_difference', 'attribution' (a first-order estimate of
            patch_clean, see `nsr.interventions.ranking`), 'conductance' (of captum).
        n_random_sets: random sets of each random control at each fraction.
        n_bootstrap: resamples of the bootstrap.
        internal_batch_size: sets times images in one forward pass; it bounds the memory.
        seed: of the halves, the attack, the random sets and the bootstrap.

    Errors:
        InputError: a setting out of range.
    """

    def __init__(
        self,
        *,
        layers: str | Sequence[str] | None = None,
        fractions: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
        kinds: Sequence[str] = ("patch_clean", "patch_adversarial"),
        rankings: Sequence[str] = ("activation",),
        n_random_sets: int = 20,
        n_bootstrap: int = 2000,
        internal_batch_size: int = 256,
        seed: int = 0,
    ):
        self.layers = None if layers is None else check_layers("layers", layers)
        advice = "a fraction of the layer's neurons"
        self.fractions: list[float] = [
            float(check_number("fractions entry", fraction, above=0, highest=1, advice=advice))
            for fraction in _distinct("fractions", fractions)
        ]
        self.kinds = [check_choice("kinds entry", kind, KINDS) for kind in _distinct("kinds", kinds)]
        self.rankings = [check_choice("rankings entry", name, RANKINGS) for name in rankings]
        self.n_random_sets = check_number("n_random_sets", n_random_sets, lowest=2, whole=True)
        self.n_bootstrap = check_number("n_bootstrap", n_bootstrap, lowest=100, whole=True)
        self.internal_batch_size = check_number("internal_batch_size", internal_batch_size, lowest=1, whole=True)
        self.seed = check_number("seed", seed, lowest=0, whole=True)

    # ---------------------------------------------------------------- as an analysis of evaluate.py

    def check(self, layers: Sequence[Layer], n_images: int | None) -> None:
        """Raise InputError for layers that are not hooked, or too few test images (None: not known yet)."""
        self.select_layers(layers)
        if n_images is not None:
            check_image_count(n_images)

    def run(self, context: AnalysisContext) -> list[Any]:
        """Measure on the test images; write interventions.csv, interventions.json and plots.

        Returns:
            Tables and lines to print.
        """
        net, layers = context.net, self.select_layers(context.layers)
        indices = halves(context.labels, seed=self.seed)
        ranking, tested = (
            adversarial_pairs(net, context.batches(index), context.attack, seed=self.seed, half=half)
            for half, index in enumerate(indices)
        )
        try:
            with progress_bar("interventions", len(indices[1]) * len(layers) * len(self.kinds)) as advance:
                effects = self.measure(net, layers, ranking, tested, root=context.root, progress=advance)
        except InputError as error:  # the evaluation itself is complete
            return [f"interventions  nothing measured: {error}"]
        written = write_effects(context.directory, effects, settings=context.settings)
        skipped = [f"interventions  no {kind}: {reason}" for kind, reason in effects.skipped.items()]
        return [*skipped, *tables(effects), f"written to  {', '.join(written)}"]

    def select_layers(self, hooked: Sequence[Layer]) -> list[Layer]:
        """Return the layers to intervene on; InputError where a pattern matches none of the hooked ones."""
        names = matching_names("analysis.interventions.layers", self.layers, [layer.name for layer in hooked])
        return [layer for layer in hooked if layer.name in names]

    # ---------------------------------------------------------------- measuring

    def measure(
        self,
        net: nn.Module,
        layers: Sequence[Layer],
        ranking: Iterable[Pairs],
        tested: Iterable[Pairs],
        *,
        root: nn.Module | None = None,
        progress: Callable[[int], None] = lambda images: None,
    ) -> Effects:
        """Measure the effects of every set of every layer.

        Args:
            net: images in [0, 1] -> logits; left as it was.
            layers: of `find_layers`.
            ranking: batches to rank neurons on, iterated once.
            tested: batches of other images to intervene on, iterated once after that.
            root: the module that the layers' names refer to; None: `net`.
            progress: called with the number of images for each layer and kind.

        Errors:
            InputError: no image can be intervened on for any kind, for example where the attack fools none.
        """
        batches = iter(ranking)
        first = next(batches, None)
        if first is None:
            raise InputError("there are no images to rank neurons on; interventions need two halves")
        patcher = Patcher(net, layers, first.images, root=root, internal_batch_size=self.internal_batch_size)
        batches = chain(iter([first]), batches)
        del first  # it would live as long as the ranking
        rankings = rank_neurons(patcher, batches, self.rankings)
        sets = {
            name: neuron_sets(
                layer.sensitivity,
                layer.squared_difference,
                {ranking: getattr(layer, ranking) for ranking in self.rankings},
                fractions=self.fractions,
                n_random_sets=self.n_random_sets,
                seed=self.seed,
                layer=name,
            )
            for name, layer in rankings.items()
        }
        accumulator = EffectAccumulator(self.kinds)
        for pairs in tested:
            self._intervene(patcher, pairs, rankings, sets, accumulator, progress)
        return accumulator.effects(rankings, sets, n_bootstrap=self.n_bootstrap, seed=self.seed)

    def _intervene(
        self,
        patcher: Patcher,
        pairs: Pairs,
        rankings: Mapping[str, LayerRanking],
        sets: Mapping[str, NeuronSets],
        accumulator: EffectAccumulator,
        progress: Callable[[int], None],
    ) -> None:
        """Run the two plain passes of a batch, then the patched ones of every kind, layer and set."""
        clean, attacked = patcher.record(pairs.images), patcher.record(pairs.adversarial)
        check_finite_logits(torch.cat([clean.logits, attacked.logits], 1))
        correct, robust = (recording.logits.argmax(1) == pairs.labels for recording in (clean, attacked))
        accumulator.count(correct, robust)
        for kind in self.kinds:
            index = (correct if kind in ABLATIONS else correct & ~robust).nonzero()[:, 0]
            base, other = (attacked, clean) if kind == "patch_clean" else (clean, attacked)
            for part in index.split(self.internal_batch_size) if len(index) else ():
                recording, labels = base.select(part), pairs.labels[part]
                for name in patcher.layers:
                    if kind in ABLATIONS:
                        features = recording.features[name]
                        mean = align_neurons(rankings[name].mean_output.to(features), features.ndim)
                        replacement = mean if kind == "mean_ablation" else torch.zeros_like(mean)
                    else:
                        replacement = other.features[name][part]
                    logits = patcher.logits(recording, name, replacement, sets[name].distinct)
                    accumulator.add(kind, name, plain=recording.logits, patched=logits, labels=labels)
                    progress(len(part))
            progress((len(pairs.labels) - len(index)) * len(patcher.layers))


def intervene(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Tensor | Callable[..., Tensor],
    *,
    settings: Interventions | None = None,
    root: nn.Module | None = None,
    batch_size: int = 250,
) -> Effects:
    """Measure the effects of activation patching and ablation of sets of neurons on the prediction.

    Args:
        net: images in [0, 1] -> logits; any module, left as it was.
        images: (image, channel, height, width), half of which neurons are ranked on, by class.
        labels: (image,).
        attack: attack(net, images, labels, generator=...) -> adversarial images, such as `nsr.attacks.GradientAttack`;
            or the adversarial images themselves, in the order of `images`.
        settings: layers, fractions, kinds, controls and seed; None: the defaults, on all activations.
        root: the module that the layers' names refer to; None: `net`.
        batch_size: images whose features are in memory at the same time.

    Returns:
        Effects: `.rows`, `.frame()` (a pandas DataFrame), `.layers`, `.images`.

    Errors:
        InputError: an unknown layer, too few images for two halves, none that the attack fools.
    """
    settings = settings or Interventions()
    check_number("batch_size", batch_size, lowest=1, whole=True)
    check_batch(images, labels)
    if isinstance(attack, Tensor) and attack.shape != images.shape:
        raise InputError(
            f"attack is a tensor of shape {tuple(attack.shape)}; adversarial images must have the shape of images, "
            f"{tuple(images.shape)}"
        )
    layers = find_layers(net, images[[0, -1]], settings.layers, root=root)
    with torch.no_grad(), network_mode(net, "eval"):
        check_logits(net(images[:2]), labels[:2])

    def pairs(half: int, indices: Tensor) -> Iterator[Pairs]:
        parts = indices.to(images.device).split(batch_size)
        if isinstance(attack, Tensor):
            return (Pairs(images[part], attack[part], labels[part]) for part in parts)
        batches = ((images[part], labels[part]) for part in parts)
        return adversarial_pairs(net, batches, attack, seed=settings.seed, half=half)

    ranking, tested = (pairs(half, indices) for half, indices in enumerate(halves(labels, seed=settings.seed)))
    return settings.measure(net, layers, ranking, tested, root=root)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances by a number of `total` steps: a bar on a terminal, a row per tenth elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    task, done = bar.add_task(title, total=total), 0

    def advance(steps: int) -> None:
        nonlocal done
        tenths, done = 10 * done // total, done + steps
        bar.update(task, completed=done)
        if bar.disable and 10 * done // total > tenths:
            print(f"{title}  {100 * done // total} %", flush=True)

    with bar:
        yield advance


def _distinct(name: str, values: Sequence) -> list:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values or len({*values}) < len(values):
        raise InputError(f"{name} is {values!r}; it must be a list of different entries, at least one")
    return list(values)
