"""Draw docs/assets/front.png: an adversarial digit, and the sensitivity of each neuron of three networks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import nsr  # noqa: E402
from nsr.data import Digits  # noqa: E402
from nsr.models.classifier import Classifier  # noqa: E402
from nsr.models.networks import SmallCNN  # noqa: E402
from nsr.models.weights import read_checkpoint  # noqa: E402
from nsr.plots.style import COLORS, styled  # noqa: E402

NETWORKS = {"digits_natural": "natural", "digits_pgd": "PGD", "digits_pgd_sns": "PGD + SNS"}
LAYERS = ["relu1", "relu2", "relu3", "relu4"]
EPSILON, IMAGES = 0.15, 200
MEAN, STD = [0.3057], [0.3765]


def network(name: str) -> Classifier:
    """Return a network of the zoo that takes pixels in [0, 1]."""
    net = Classifier(SmallCNN(channels=1, classes=10, image_size=8, width=16), mean=MEAN, std=STD)
    state = read_checkpoint(f"zoo:{name}")["state_dict"]
    net.load_state_dict({key.removeprefix("net."): value for key, value in state.items()})
    return net.eval()


def relative(net: Classifier, images: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    """Return {layer: (neuron,)}, largest first, without neurons that are silent on clean images."""
    with torch.no_grad(), nsr.capture_features(net.net, LAYERS) as features:
        net(images)
        clean = dict(features)
        net(adversarial)
        found = {}
        for layer, values in clean.items():
            moved = nsr.neuron_sensitivity(values, features[layer])
            size = nsr.neuron_sensitivity(values, torch.zeros_like(values))
            found[layer] = (moved / size)[size > 0].sort(descending=True).values
    return found


def draw() -> None:
    """Write the picture."""
    torch.manual_seed(0)
    test = Digits(channels=1, image_size=8, classes=10, mean=MEAN, std=STD).load("test")
    images, labels = test.images[:IMAGES], test.labels[:IMAGES]
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 2.3), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.75])
        curves = right.subplots(1, 4, sharey=True)
        for number, (name, title) in enumerate(NETWORKS.items()):
            net = network(name)
            adversarial = nsr.pgd(net, images, labels, epsilon=EPSILON, step_size=0.01, steps=40)
            before, after = net(images).argmax(1), net(adversarial).argmax(1)
            robust = ((before == labels) & (after == labels)).float().mean()
            for axis, (layer, values) in zip(curves, relative(net, images, adversarial).items(), strict=True):
                place = torch.linspace(0, 100, len(values))
                axis.plot(place, values, color=COLORS[number], label=f"{title}: {100 * robust:.0f} % robust")
                axis.set(title=layer, ylim=(0, 2), xlim=(0, 100), xticks=[0, 100])
            if not number:
                first = int(((before == labels) & (after != labels)).nonzero()[0])
                panels = [images[first, 0], adversarial[first, 0], adversarial[first, 0] - images[first, 0]]
                titles = [f"clean: {before[first]}", f"adversarial: {after[first]}", "difference"]
        for axis, pixels, title in zip(left.subplots(1, 3), panels, titles, strict=True):
            scale = {"cmap": "RdBu", "vmin": -EPSILON, "vmax": EPSILON} if title == "difference" else {"cmap": "gray"}
            axis.imshow(pixels, **scale)
            axis.set(title=title, xticks=[], yticks=[])
        curves[0].set_ylabel("relative sensitivity")
        right.supxlabel("neurons of the layer, most sensitive first, %", fontsize=7)
        right.legend(*curves[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figure.savefig(ROOT / "docs" / "assets" / "front.png", dpi=200)


if __name__ == "__main__":
    draw()
