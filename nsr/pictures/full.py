"""Pictures that take minutes: inputs optimized for neurons, and the landscape of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from nsr import plots
from nsr.features import FeatureExtractor
from nsr.layers import Layer
from nsr.losses import cross_entropy
from nsr.modes import eager_mode, frozen_parameters, full_precision, network_mode
from nsr.pictures.attacked import GPU_FACTOR
from nsr.pictures.landscape import STEPS
from nsr.pictures.neurons import shown_neurons
from nsr.pictures.subject import Picture, Subject, operations, parts
from nsr.run.plain_text import printable

BUDGET = 5e12  # operations of each picture on a CPU: about three minutes of two cores
ASCENT = (32, 128)  # fewest and most steps
LEARNING_RATE = 0.05
JITTER = 16  # a shift by up to 1 / JITTER of the image
IMAGES = (4, 64)  # fewest and most that the landscape of the weights is measured on


def optimized_inputs(
    net: nn.Module,
    layer: Layer,
    neurons: Sequence[int],
    shape: Sequence[int],
    *,
    root: nn.Module,
    steps: int = ASCENT[1],
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Ascend the mean output of each neuron over the image (Olah et al. 2017): Fourier coefficients, shifted each step.

    Args:
        shape: (channel, height, width) of the network's images.

    Returns:
        (neuron, channel, height, width) in [0, 1] and the neurons' mean outputs on them.
    """
    device = next(net.parameters()).device
    channels, height, width = shape
    generator = Generator().manual_seed(seed)
    frequencies = torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width)[None].square()
    scale = 1 / frequencies.sqrt().clamp(min=1 / max(height, width))  # low frequencies weigh more, as in photographs
    spectrum = 0.1 * torch.randn(len(neurons), channels, *scale.shape, 2, generator=generator)
    spectrum, scale = spectrum.to(device).requires_grad_(), scale.to(device)
    optimizer = torch.optim.Adam([spectrum], lr=LEARNING_RATE)
    extractor = FeatureExtractor(net, [layer], root=root)

    def images() -> Tensor:
        pixels = torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=(height, width), norm="ortho")
        return torch.sigmoid(pixels)

    def outputs(inputs: Tensor) -> Tensor:
        features = extractor(inputs)[1][layer.name][:, list(neurons)]  # (image, neuron, ...)
        return features.flatten(2).mean(2).diagonal() if features.ndim > 2 else features.diagonal()

    try:
        for _ in range(steps):
            reach = (max(1, height // JITTER), max(1, width // JITTER))
            shifts = [int(torch.randint(-most, most + 1, (), generator=generator)) for most in reach]
            optimizer.zero_grad()
            (-outputs(images().roll(shifts, dims=(2, 3))).sum()).backward()
            optimizer.step()
        with torch.no_grad():
            found = images()
            return found.cpu(), outputs(found).cpu()
    finally:
        extractor.remove()


def weight_landscape(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, seed: int = 0) -> Tensor:
    """Return the mean loss over two random filter-normalized directions of the weights (Li et al. 2018).

    Each filter's direction is as long as the filter. Biases and normalization layers stay. The weights are restored.

    Args:
        batches: (images, labels) on the network's device.

    Returns:
        (9, 9): rows along the second direction, columns along the first, both from -1 to 1.
    """
    generator = Generator().manual_seed(seed)
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    before = [weight.detach().clone() for weight in weights]
    directions = [[_filter_normalized(weight, generator) for weight in before] for _ in range(2)]
    losses = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    scales = torch.linspace(-1, 1, STEPS).tolist()
    with torch.no_grad():
        try:
            for row, second in enumerate(scales):
                for column, first in enumerate(scales):
                    for weight, own, one, other in zip(weights, before, *directions, strict=True):
                        weight.copy_(own + first * one + second * other)
                    each = [cross_entropy(net(images), labels) for images, labels in batches]
                    losses[row, column] = torch.cat(each).double().mean().cpu()
        finally:
            for weight, own in zip(weights, before, strict=True):
                weight.copy_(own)
    return losses


def _filter_normalized(weight: Tensor, generator: Generator) -> Tensor:
    direction = torch.randn(weight.shape, generator=generator).to(weight)
    lengths = (each.flatten(1).norm(dim=1) for each in (weight, direction))
    ratio = torch.div(*lengths)
    return direction * ratio.view(-1, *[1] * (weight.ndim - 1))


def full_pictures(subject: Subject, attack_row: str) -> list[Picture]:
    """Return the optimized inputs of the most sensitive neurons, and the landscape of the weights.

    Args:
        attack_row: the attack whose adversarial images, made once, have a landscape of their own.
    """
    with full_precision(subject.device), network_mode(subject.net, "eval"), eager_mode():
        with frozen_parameters(subject.net):
            inputs = _inputs(subject)
        return [*inputs, _weights(subject, attack_row)]


def _affordable(subject: Subject, passes: float, fewest: int, most: int) -> int:
    """Return how many times as many forward passes of one image fit the budget."""
    budget = BUDGET * (1 if subject.device.type == "cpu" else GPU_FACTOR)
    return max(fewest, min(most, int(budget / max(passes * operations(subject), 1.0))))


def _inputs(subject: Subject) -> list[Picture]:
    by_layer: dict[str, tuple[Layer, list[int]]] = {}
    for layer, neuron in shown_neurons(subject):
        by_layer.setdefault(layer.name, (layer, []))[1].append(neuron)
    if not by_layer:
        return []
    shape = subject.read(0).shape
    passes = 3 * sum(len(neurons) for _, neurons in by_layer.values())  # a backward pass costs about two forward ones
    steps = _affordable(subject, passes, *ASCENT)
    made = [
        optimized_inputs(subject.net, layer, neurons, shape, root=subject.root, steps=steps, seed=subject.seed)
        for layer, neurons in by_layer.values()
    ]
    names = [printable(f"{name} neurons {', '.join(map(str, neurons))}") for name, (_, neurons) in by_layer.items()]
    values = [outputs.tolist() for _, outputs in made]
    figure = plots.top_images([images for images, _ in made], names=names, values=values, heading="optimized inputs")
    caption = (
        f"Inputs that {steps} steps of ascent (Fourier coefficients, random shifts; Olah et al. 2017) found for the "
        f"most sensitive neurons, with the neuron's mean output above each. Ranked on {subject.measured_on}."
    )
    data = [
        {"layer": name, "neurons": neurons, "outputs": own}
        for (name, (_, neurons)), own in zip(by_layer.items(), values, strict=True)
    ]
    alt = f"Optimized inputs for {sum(map(len, values))} neurons of {len(made)} layers."
    return [Picture("optimized_inputs", "features", figure, alt, caption, {"layers": data})]


def _weights(subject: Subject, attack_row: str) -> Picture:
    clean, adversarial = [], []
    positions = range(min(_affordable(subject, 2 * STEPS**2, *IMAGES), len(subject.labels)))
    for own in parts(positions, subject.batch):
        images, labels = subject.images(own), subject.labels[torch.as_tensor(list(own))].to(subject.device)
        clean.append((images, labels))
        attacked = subject.attacks[attack_row](subject.net, images, labels, generator=subject.generators(own))
        adversarial.append((attacked, labels))
    losses = torch.stack([weight_landscape(subject.net, each, seed=subject.seed) for each in (clean, adversarial)])
    title, middle = subject.titles[attack_row], STEPS // 2
    figure = plots.landscape(
        losses,
        names=["clean", "adversarial"],
        marks=[(0.0, 0.0, "o")],
        xlabel="first random direction of the weights",
        ylabel="second random direction",
        logarithmic=True,
    )
    caption = (
        f"Mean cross-entropy of the first {len(positions)} test images, clean and adversarial ({title}, made once for "
        "the trained weights), over two filter-normalized random directions of the weights (Li et al. 2018). Circle: "
        "the trained weights. Colors follow the logarithm of the loss; each panel has its own scale."
    )
    clean_loss, attacked_loss = losses[:, middle, middle].tolist()
    alt = f"Landscape of the weights: loss {clean_loss:.3g} on clean and {attacked_loss:.3g} on adversarial images."
    data = {"images": len(positions), "losses": losses.tolist()}
    return Picture("weight_landscape", "landscape", figure, alt, caption, data)
