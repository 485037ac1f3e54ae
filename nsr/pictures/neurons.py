"""What neurons do on the attacked images: predictions, activations of the most sensitive ones, receptive fields."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nsr.features import FeatureExtractor
from nsr.layers import Layer
from nsr.pictures.attacked import Attacked
from nsr.pictures.subject import Subject, parts
from nsr.sensitivity import most_sensitive

LAYERS, NEURONS = 4, 2  # shown: layers, spread over the network, and most sensitive neurons of each
TOP_IMAGES = 3  # of each neuron

Neuron = tuple[Layer, int]
Box = tuple[int, int, int, int]


@dataclass
class Views:
    """The passes on the attacked images, clean and adversarial."""

    logits: tuple[Tensor, Tensor]  # (image, class) each
    by_layer: dict[str, Tensor]  # {layer: (image,) mean over its neurons of the absolute sensitivity on each image}
    moved: Tensor  # (image, neuron) mean |F(x) - F(x')| over positions, of the shown neurons
    places: Tensor  # (image, neuron) position of the largest difference, in the flattened feature map
    views: Tensor  # (image, neuron) the view in which the output is larger there: 0 clean, 1 adversarial
    maps: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # {neuron: its maps on the first image}


def shown_neurons(subject: Subject) -> list[Neuron]:
    """Return the most sensitive neurons of at most four layers, spread over the network."""
    measured = [layer for layer in subject.layers if layer.name in subject.sensitivities]
    if not measured:
        return []
    spread = torch.linspace(0, len(measured) - 1, min(LAYERS, len(measured))).round().long().tolist()
    layers = [measured[place] for place in dict.fromkeys(spread)]
    return [
        (layer, neuron)
        for layer in layers
        for neuron in most_sensitive(subject.sensitivities[layer.name], NEURONS).tolist()
    ]


def view(subject: Subject, attacked: Attacked, neurons: list[Neuron]) -> Views:
    """Run the network on the attacked images."""
    extractor = FeatureExtractor(subject.net, subject.layers, root=subject.root)
    made: list[Views] = []
    try:
        with torch.no_grad():
            for own in parts(range(len(attacked.positions)), subject.batch):
                pair = [torch.stack([each[n] for n in own]) for each in (attacked.images, attacked.adversarial)]
                results = [extractor(images.to(subject.device)) for images in pair]
                made.append(_batch(results, neurons, is_first=not made))
    finally:
        extractor.remove()
    logits = tuple(torch.cat([each.logits[number] for each in made]) for number in (0, 1))
    by_layer = {name: torch.cat([each.by_layer[name] for each in made]) for name in made[0].by_layer}
    moved, places, views = (torch.cat([getattr(each, name) for each in made]) for name in ("moved", "places", "views"))
    return Views((logits[0], logits[1]), by_layer, moved, places, views, made[0].maps)


def _batch(results: list[tuple[Tensor, dict[str, Tensor]]], neurons: list[Neuron], *, is_first: bool) -> Views:
    (clean_logits, clean), (logits, adversarial) = results
    by_layer = {name: (clean[name] - adversarial[name]).abs().flatten(1).mean(1).cpu() for name in clean}
    nothing = torch.zeros(len(logits), 0)
    columns: list[list[Tensor]] = [[], [], []]
    maps = {}
    for number, (layer, neuron) in enumerate(neurons):
        views = [each[layer.name][:, neuron] for each in (clean, adversarial)]  # (image, ...)
        flat = [each.flatten(1) if each.ndim > 1 else each[:, None] for each in views]
        difference = (flat[0] - flat[1]).abs()
        place = difference.argmax(1, keepdim=True)
        larger = flat[1].gather(1, place) > flat[0].gather(1, place)
        for column, values in zip(columns, (difference.mean(1), place[:, 0], larger[:, 0].long()), strict=True):
            column.append(values.cpu())
        if is_first and views[0].ndim == 3 and views[0].shape[1:].numel() > 1:
            maps[number] = (views[0][0].cpu(), views[1][0].cpu())
    moved, places, larger = (torch.stack(column, 1) if column else nothing for column in columns)
    return Views((clean_logits.cpu(), logits.cpu()), by_layer, moved, places, larger, maps)


def receptive_fields(
    subject: Subject, attacked: Attacked, neuron: Neuron, images: list[int], places: Tensor, views: Tensor
) -> list[Box | None]:
    """Return the part of each image that the neuron's output at a place depends on; None: no or all of it.

    It is where the gradient with respect to the pixels is not zero.

    Args:
        images: indices in `attacked`.
        places, views: (image,) of these images, see `Views`.
    """
    layer, number = neuron
    extractor = FeatureExtractor(subject.net, [layer], root=subject.root)
    pairs = (attacked.images, attacked.adversarial)
    inputs = torch.stack([pairs[int(which)][n] for n, which in zip(images, views, strict=True)]).to(subject.device)
    try:
        with torch.enable_grad():
            _, features = extractor(inputs.requires_grad_())
            values = features[layer.name][:, number].reshape(len(images), -1)
            (gradient,) = torch.autograd.grad(values.gather(1, places[:, None].to(subject.device)).sum(), inputs)
    finally:
        extractor.remove()
    return [_box(each.abs().amax(0).cpu() > 0) for each in gradient]


def _box(used: Tensor) -> Box | None:
    """Return the smallest rectangle around the True pixels (height, width)."""
    if not used.any() or used.all():
        return None
    rows, columns = (used.any(axis).nonzero()[:, 0] for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
