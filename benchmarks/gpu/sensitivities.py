"""The same sensitivities on CPU and GPU: attack and measurement, and the measurement alone on equal images."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from benchmarks.gpu.given import Given, Report
from benchmarks.gpu.networks import EPSILON, best_device, network, random_batch
from nsr.attacks import pgd
from nsr.features import FeatureTaps
from nsr.layers import find_layers
from nsr.modes import full_precision
from nsr.sensitivity import neuron_sensitivity

ATTACK_STEPS = 5
# In float32 the sign of a gradient near zero is decided by rounding, and with it a pixel of the attack by two steps.
BOUNDS = {
    "float64": {"attack_and_measure": 1e-9, "measure": 1e-9},
    "float32": {"attack_and_measure": 1e-2, "measure": 1e-4},
}


def measure(given: Given, report: Report) -> None:
    devices = [torch.device("cpu"), best_device()]
    report("devices", [device.type for device in devices])
    report("images", given.sizes.images)
    batch = random_batch(given.sizes, given.sizes.images)
    too_far = []
    for name, bounds in BOUNDS.items():
        dtype = getattr(torch, name)
        adversarial, expected = attack_and_measure(given, batch, devices[0], dtype)
        _, found = attack_and_measure(given, batch, devices[1], dtype)
        _, measured = attack_and_measure(given, batch, devices[1], dtype, adversarial=adversarial)
        figures = {}
        for what, sensitivities in (("attack_and_measure", found), ("measure", measured)):
            difference, layer = largest_difference(expected, sensitivities)
            figures[what] = {"largest_relative_difference": difference, "layer": layer, "bound": bounds[what]}
            if difference > bounds[what]:
                too_far.append(f"{name} {what}: {difference:.3g} in {layer}, the bound is {bounds[what]:g}")
        report(name, {**figures, "layers": len(expected), "neurons": sum(map(len, expected.values()))})
    if too_far:
        report("failed", "; ".join(too_far))


def attack_and_measure(
    given: Given,
    batch: tuple[Tensor, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    *,
    adversarial: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The adversarial images and {layer: sensitivities (neuron,)}, on the CPU."""
    net = network(given.sizes).to(device, dtype).eval()
    images, labels = batch[0].to(device, dtype), batch[1].to(device)
    taps = FeatureTaps(net, find_layers(net, images[:2], within=net.net), within=net.net)
    with full_precision(device):
        if adversarial is None:
            adversarial = pgd(net, images, labels, epsilon=EPSILON, steps=ATTACK_STEPS, random_start=False)
        with torch.no_grad():
            _, clean = taps(images)
            _, moved = taps(adversarial.to(device))
    sensitivities = {name: neuron_sensitivity(clean[name], moved[name]).cpu() for name in clean}
    return adversarial.cpu(), sensitivities


def largest_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[float, str]:
    """Of all neurons, relative to the neuron's own, but at least a thousandth of its layer's mean; and its layer."""
    differences = {}
    for name, values in expected.items():
        own = values.double().abs().clamp(min=1e-3 * float(values.double().abs().mean()) + 1e-300)
        ratios = (found[name].double() - values.double()).abs() / own
        differences[name] = float(ratios.nan_to_num(nan=inf).max())
    layer = max(differences, key=lambda name: differences[name])
    return differences[layer], layer
