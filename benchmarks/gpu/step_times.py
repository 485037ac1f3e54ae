"""What a step of PGD training with SNS takes, beside the same passes in a plain loop, and what it holds in memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.gpu.given import Given, Report, Sizes, check_packages
from benchmarks.gpu.networks import CLASSES, EPSILON, best_device, network, random_batch

BATCHES = 4  # random ones, in turn
EVALUATION_BATCH = 250
Step = Callable[[int], None]


class Variant(NamedTuple):
    """How the step is computed."""

    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False


VARIANTS = {  # the one that takes longest comes last
    "float32": Variant(),
    "bf16-mixed": Variant(bf16=True),
    "bf16-mixed_channels_last": Variant(bf16=True, channels_last=True),
    "bf16-mixed_channels_last_compiled": Variant(bf16=True, channels_last=True, compiled=True),
}


def measure(given: Given, report: Report) -> None:
    check_packages("scipy")
    device = best_device()
    report("device", device.type)
    report("batch", given.sizes.batch)
    report("attack_steps", given.sizes.attack_steps)
    # float32 convolutions of a training step take TF32 unless torch is told otherwise; train.py does not tell it
    report("tf32_of_convolutions", torch.backends.cudnn.allow_tf32)
    report("evaluation_pass", evaluation_pass(given.sizes, device))
    for name, variant in VARIANTS.items():
        report(name, timed(given.sizes, device, variant))
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def timed(sizes: Sizes, device: torch.device, variant: Variant) -> dict[str, Any]:
    """Step and floor in turn, so that whatever else the machine does meets both."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = training_step(sizes, device, variant)
    first = milliseconds(step, 0, device)
    for number in range(sizes.warm_up_steps):
        step(number)
    figures: dict[str, Any] = {"first_step_s": round(first / 1000, 1)}
    if device.type == "cuda":  # before the floor's own network is made
        figures["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    floor = plain_step(sizes, device, variant)
    for number in range(1 + sizes.warm_up_steps):
        floor(number)
    times: dict[str, list[float]] = {"step": [], "floor": []}
    for number in range(sizes.timed_steps):
        for name, function in (("step", step), ("floor", floor)):
            times[name].append(milliseconds(function, number, device))
    figures |= {f"{name}_ms": spread(values) for name, values in times.items()}
    middle = median(times["step"])
    figures["ratio_to_floor"] = round(middle / median(times["floor"]), 3)
    figures["images_per_second"] = round(1000 * sizes.batch / middle, 1)
    return figures


def training_step(sizes: Sizes, device: torch.device, variant: Variant) -> Step:
    """PGD from a random start, SNS, gradients, SGD: a step as the Trainer makes it."""
    net, data = network_and_batches(sizes, device, variant)
    module = adversarial_training(net, data[0][0][:2], stabilizes=True, steps=sizes.attack_steps)
    if variant.compiled:
        net.compile(backend=sizes.backend)
    optimizer = sgd(net)

    def step(number: int) -> None:
        with precision(device, variant):
            loss = module.training_step(data[number % BATCHES], number)
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def adversarial_training(net: Any, images: Tensor, *, stabilizes: bool, **attack_settings: Any) -> Any:
    """A module of PGD training, ready for its steps where `net` is.

    Args:
        net: a Classifier.
        images: two or more, to find its layers by.
    """
    from nsr.attacks import GradientAttack
    from nsr.evaluation.suite import Suite
    from nsr.layers import find_layers
    from nsr.objectives import AdversarialTraining
    from nsr.stabilizer import SensitivityStabilizer
    from nsr.training.module import RobustClassifier

    attack = GradientAttack(epsilon=EPSILON, **attack_settings)
    module = RobustClassifier(
        net,
        layers=find_layers(net, images, within=net.net),
        within=net.net,
        classes=CLASSES,
        objective=AdversarialTraining(),
        attack=attack,
        suite=Suite({"pgd": attack}),
        stabilizer=SensitivityStabilizer() if stabilizes else None,
    ).to(images.device)
    module.train()
    module.on_train_start()
    return module


def plain_step(sizes: Sizes, device: torch.device, variant: Variant) -> Step:
    """The passes of that step and nothing else: no attack's arithmetic, no taps, no sensitivities, no records."""
    classifier, data = network_and_batches(sizes, device, variant)
    # a class of its own: torch keeps compiled code by the function, and does not look for taps that came later or
    # belong to another network, so that with one class the step above would be given the code of this one
    net = nn.Sequential(classifier.normalize, classifier.net)
    if variant.compiled:
        net.compile(backend=sizes.backend)
    optimizer = sgd(net)

    def step(number: int) -> None:
        images, labels = data[number % BATCHES]
        net.eval().requires_grad_(False)
        for _ in range(sizes.attack_steps):
            with precision(device, variant):
                input_gradient(net, images, labels)
        net.train().requires_grad_(True)
        with precision(device, variant):
            loss = cross_entropy(net(images), labels) + cross_entropy(net(images), labels)  # both sides of SNS
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation_pass(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """A forward and an input-gradient pass of evaluation: float32 as written, eval mode."""
    from nsr.modes import full_precision

    net = network(sizes).to(device).eval().requires_grad_(False)
    count = EVALUATION_BATCH if sizes.batch > 8 else sizes.batch
    images, labels = (tensor.to(device) for tensor in random_batch(sizes, count))

    def step(number: int) -> None:
        with full_precision(device):
            input_gradient(net, images, labels)

    for number in range(sizes.warm_up_steps):
        step(number)
    times = [milliseconds(step, number, device) for number in range(sizes.timed_steps)]
    return {"batch": count, "pass_ms": spread(times)}


def input_gradient(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the cross-entropy, shaped as `images`."""
    images = images.detach().requires_grad_()
    loss = cross_entropy(net(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


def network_and_batches(
    sizes: Sizes, device: torch.device, variant: Variant
) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """On the device, the network in the variant's memory format."""
    memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
    net = network(sizes).to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    batches = [random_batch(sizes, sizes.batch, seed=seed) for seed in range(BATCHES)]
    return net, [(images.to(device), labels.to(device)) for images, labels in batches]


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """As in optimizer=sgd, but slow enough that random images and labels do no harm."""
    return torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)


def precision(device: torch.device, variant: Variant) -> AbstractContextManager[Any]:
    """As Lightning's bf16-mixed has it around a training step."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if variant.bf16 else nullcontext()


def milliseconds(step: Step, number: int, device: torch.device) -> float:
    """Until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def spread(times: list[float]) -> dict[str, float]:
    """Median, quartiles, how many."""
    lower, middle, upper = quantiles(times, n=4, method="inclusive")
    return {
        "median": round(middle, 3),
        "lower_quartile": round(lower, 3),
        "upper_quartile": round(upper, 3),
        "n": len(times),
    }
