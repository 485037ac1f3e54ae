"""The pictures of a measured network, each with its caption and its numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nsr import plots
from nsr.errors import one_line
from nsr.losses import cross_entropy
from nsr.modes import eager_mode, full_precision, network_mode
from nsr.pictures.attacked import GPU_FACTOR, SHOWN, Attacked, attack_images
from nsr.pictures.landscape import STEPS, grid, random_direction
from nsr.pictures.neurons import TOP_IMAGES, Neuron, Views, receptive_fields, shown_neurons, view
from nsr.pictures.subject import Picture, Subject
from nsr.run.plain_text import printable

log = logging.getLogger(__name__)
LANDSCAPES = 4  # images
LANDSCAPE_BUDGET = 3.6e11  # operations: about 12 s of two cores
MOST_CLASSES = 20  # columns of the heat map of classes


class _Material:
    """A subject, its attacked images and the passes on them."""

    def __init__(self, subject: Subject, attacked: Attacked, neurons: list[Neuron], views: Views):
        self.subject, self.attacked, self.neurons, self.views = subject, attacked, neurons, views
        self.title = subject.titles.get(attacked.row, attacked.row)
        self.labels = subject.labels[torch.as_tensor(attacked.positions)]
        self.places = subject.places[torch.as_tensor(attacked.positions)].tolist()
        self.class_names = [printable(name) for name in subject.class_names]

    @property
    def attacked_on(self) -> str:
        """Describe the images that neurons are measured on."""
        count, whole = len(self.places), len(self.subject.labels)
        others = count - self.attacked.shown
        return f"{count} of {whole:,} test images: the chosen ones and {others} drawn at random"

    @property
    def neuron_names(self) -> list[str]:
        """Return 'LAYER neuron NUMBER' for each."""
        return [printable(f"{layer.name} neuron {neuron}") for layer, neuron in self.neurons]


def make_pictures(subject: Subject) -> list[Picture]:
    """Return the pictures that can be made of a subject, in float32 and eval mode; none where nothing was attacked."""
    with full_precision(subject.device), network_mode(subject.net, "eval"), eager_mode():
        attacked = attack_images(subject)
        if attacked is None:
            return []
        neurons = shown_neurons(subject)
        material = _Material(subject, attacked, neurons, view(subject, attacked, neurons))
        makers: list[Callable[[_Material], Iterator[Picture]]] = [_examples, _steps, _classes, _maps, _top, _landscape]
        pictures: list[Picture] = []
        for make in makers:
            try:
                pictures += make(material)
            except Exception as error:  # of any network; the others stand
                name = make.__name__.strip("_")
                log.warning(f"no picture of {name}: {type(error).__name__}: {printable(one_line(error))}")
        return pictures


def _examples(found: _Material) -> Iterator[Picture]:
    attacked, shown = found.attacked, found.attacked.shown
    order = sorted(range(shown), key=lambda number: attacked.groups[number])  # fell before held
    clean, adversarial = (torch.stack([each[n] for n in order]) for each in (attacked.images, attacked.adversarial))
    probabilities = [logits[:shown].softmax(1)[order] for logits in found.views.logits]
    headings = {"fell": "misclassified under attack", "held": "robust"}
    labels = found.labels[:shown][order]
    figure = plots.examples(
        clean,
        adversarial,
        labels=labels,
        clean_probabilities=probabilities[0],
        adversarial_probabilities=probabilities[1],
        class_names=found.class_names,
        groups=[headings[attacked.groups[number]] for number in order],
    )
    data = [
        {"image": found.places[number], "label": int(labels[row]), "group": attacked.groups[number]}
        | {f"{view}_prediction": int(each[row].argmax()) for view, each in _named(probabilities)}
        | {f"{view}_confidence": float(each[row].max()) for view, each in _named(probabilities)}
        for row, number in enumerate(order)
    ]
    counts = [attacked.groups.count(group) for group in headings]
    caption = (
        f"{found.title}. Chosen: the first {SHOWN} test images that are correctly classified and misclassified under "
        "the attack, and the first that are robust to it, one of each class before a second one. Above each image: the "
        f"prediction and its probability; ✗: misclassified. {attacked.note}"
    ).strip()
    alt = (
        f"{counts[0]} test images that are misclassified under {found.title} and {counts[1]} that are robust to it: "
        "clean, adversarial, and their amplified difference; predictions are in the page's data."
    )
    content = {"attack": attacked.row, "images": data, "note": attacked.note}
    yield Picture("examples", "examples", figure, alt, caption, content)


def _named(views: Any) -> Iterator[tuple[str, Any]]:
    return zip(("clean", "adversarial"), views, strict=True)


def _steps(found: _Material) -> Iterator[Picture]:
    attacked = found.attacked
    if attacked.steps is None or attacked.steps_logits is None:
        return
    label, probabilities = int(found.labels[0]), attacked.steps_logits.softmax(1)
    names = found.class_names
    figure = plots.attack_steps(attacked.steps, probabilities, label=label, class_names=names)
    caption = (
        f"{found.title}, step by step: the first of the examples (test image {found.places[0]}) from the start of the "
        "attack to its end, and the network's probabilities of the image's class and of the strongest other."
    )
    first, last = (100 * float(probabilities[step, label]) for step in (0, -1))
    alt = f"Along {len(probabilities) - 1} steps the probability of the class goes from {first:.0f} to {last:.0f} %."
    data = {"attack": attacked.row, "image": found.places[0], "label": label}
    data |= {"probability": probabilities[:, label].tolist(), "prediction": probabilities.argmax(1).tolist()}
    yield Picture("attack_steps", "examples", figure, alt, caption, data)


def _classes(found: _Material) -> Iterator[Picture]:
    import pandas

    labels, counts = found.labels.unique(return_counts=True)
    kept = counts.sort(descending=True, stable=True).indices[:MOST_CLASSES].sort().values
    labels, counts = labels[kept].tolist(), counts[kept].tolist()
    names = [printable(found.subject.name(label)) for label in labels]
    means = {
        layer: [float(values[found.labels == label].mean()) for label in labels]
        for layer, values in found.views.by_layer.items()
    }
    rows = [(layer, number, value) for layer, own in means.items() for number, value in enumerate(own)]
    frame = pandas.DataFrame(rows, columns=["layer", "class", "absolute"])
    figure = plots.sensitivity_heat_map(frame, column="class", column_names=names)
    caption = (
        "Absolute sensitivity (activation units) of the images of each class, mean over a layer's neurons; "
        f"{found.title}, {found.attacked_on}. Right: the layer's largest value, to which its row is scaled."
    )
    size = f"a row for each of {len(means)} layers, a column for each of {len(labels)} classes"
    data = {"attack": found.attacked.row, "images": found.places, "classes": labels, "counts": counts}
    data["absolute"] = means
    alt = f"Heat map of absolute sensitivity, {size}."
    yield Picture("class_sensitivity", "sensitivity", figure, alt, caption, data)


def _maps(found: _Material) -> Iterator[Picture]:
    maps = found.views.maps
    if not maps:
        return
    attacked, numbers = found.attacked, list(maps)
    figure = plots.feature_maps(
        [maps[number][0] for number in numbers],
        [maps[number][1] for number in numbers],
        names=[found.neuron_names[number] for number in numbers],
        clean=attacked.images[0],
        adversarial=attacked.adversarial[0],
    )
    caption = (
        f"Outputs of the most sensitive neurons of some layers on test image {found.places[0]}: clean, under "
        f"{found.title}, absolute difference. The first two share a scale, written at the left (activation units). "
    )
    alt = f"Feature maps of {len(numbers)} neurons on a clean image, its adversarial example, and the difference."
    data = {"attack": attacked.row, "image": found.places[0], "neurons": [_neuron(found, number) for number in numbers]}
    for number, row in zip(numbers, data["neurons"], strict=True):
        row["mean_difference"] = float(found.views.moved[0, number])
    yield Picture("feature_maps", "features", figure, alt, caption + _ranked(found), data)


def _ranked(found: _Material) -> str:
    without = [layer.name for number, (layer, _) in enumerate(found.neurons) if number not in found.views.maps]
    text = f"Neurons are ranked by absolute sensitivity on {found.subject.measured_on}."
    if without:
        text += f" The outputs of {printable(', '.join(dict.fromkeys(without)))} are no images, so they have no maps."
    return text


def _neuron(found: _Material, number: int) -> dict[str, Any]:
    layer, neuron = found.neurons[number]
    sensitivity = float(found.subject.sensitivities[layer.name][neuron])
    return {"layer": layer.name, "neuron": neuron, "sensitivity": sensitivity}


def _top(found: _Material) -> Iterator[Picture]:
    attacked, views = found.attacked, found.views
    if not found.neurons:
        return
    images, values, boxes, data = [], [], [], []
    for number, neuron in enumerate(found.neurons):
        order = views.moved[:, number].sort(descending=True, stable=True).indices[:TOP_IMAGES]
        best = order.tolist()
        places, larger = views.places[order, number], views.views[order, number]
        fields = receptive_fields(found.subject, attacked, neuron, best, places, larger)
        images.append(torch.stack([attacked.images[each] for each in best]))
        values.append(views.moved[order, number].tolist())
        boxes.append(fields)
        row = {"images": [found.places[each] for each in best], "values": values[-1], "boxes": fields}
        data.append({**_neuron(found, number), **row})
    figure = plots.top_images(images, names=found.neuron_names, values=values, boxes=boxes)
    caption = (
        "Images whose attack moves the most sensitive neurons most (mean absolute difference above each, activation "
        f"units): {found.title}, among {found.attacked_on}. Rectangle and crop: the pixels that the neuron's output "
        "depends on where it moved most (gradient not zero); no rectangle: all pixels. "
    )
    alt = f"The {TOP_IMAGES} test images that move each of {len(data)} neurons most, with receptive fields."
    content = {"attack": attacked.row, "candidates": found.places, "neurons": data}
    yield Picture("top_images", "features", figure, alt, caption + _ranked(found), content)


def _landscape(found: _Material) -> Iterator[Picture]:
    subject, attacked = found.subject, found.attacked
    norm = getattr(subject.attacks[attacked.row], "norm", "linf") or "linf"
    budget = LANDSCAPE_BUDGET * (1 if subject.device.type == "cpu" else GPU_FACTOR)
    fitting = int(budget / max(STEPS**2 * attacked.meter.image, 1.0))
    count = min(LANDSCAPES, attacked.shown, max(1, fitting))
    images, adversarial = (torch.stack(each[:count]) for each in (attacked.images, attacked.adversarial))
    difference = adversarial - images
    moved = difference.flatten(1).abs().amax(1) > 0
    if not moved.any():
        return
    other = random_direction(subject, attacked.positions[:count], difference, norm)
    numbers = moved.nonzero()[:, 0].tolist()
    made = [grid(subject, images[n], difference[n], other[n], int(found.labels[n])) for n in numbers]
    losses, correct = (torch.stack([each[part] for each in made]) for part in (0, 1))
    names = [
        f"image {found.places[n]}, {'misclassified' if attacked.groups[n] == 'fell' else 'robust'}" for n in numbers
    ]
    figure = plots.landscape(losses, correct=correct, names=names)
    caption = (
        f"Cross-entropy (nats) around {len(numbers)} of the examples: x + a d + b r, clipped to [0, 1], where x + d "
        f"is the adversarial image ({found.title}) and r is random and as long as d. Circle: the image; large cross: "
        "the adversarial one; small crosses: misclassified. Each panel has its own scale. Where the loss rises more "
        "in the random than in the adversarial direction, or is rugged, the gradient misleads the attack: suspect "
        "gradient masking."
    )
    ends = [f"{each[4, 4]:.3g} at the image and {each[4, 8]:.3g} at the adversarial one" for each in losses]
    alt = f"Loss of {len(numbers)} images over the adversarial and a random direction; {', '.join(ends)}."
    exact = [cross_entropy(each, found.labels[: len(each)]) for each in found.views.logits]
    data = {"attack": attacked.row, "images": [found.places[n] for n in numbers], "steps": losses.shape[1]}
    data |= {"losses": losses.tolist(), "correct": correct.int().tolist()}
    data |= {f"{name}_loss": values[numbers].tolist() for name, values in _named(exact)}
    yield Picture("landscape", "landscape", figure, alt, caption, data)
