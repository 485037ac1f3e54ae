"""Time of a step of PGD-10 training with SNS, beside its own passes in a plain loop, and its peak memory.

    python -m benchmarks.step_times [OUT_JSON]

ResNet-18 on random 32 x 32 images, batches of 128, on the GPU where there is one; float32, bf16-mixed, channels_last
and compiled. Step and plain loop take turns, so that whatever else the machine does slows both. NSR_GPU_TINY=1 takes
a small network and two steps, to try it on a CPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import machine
from nsr import models
from nsr.attacks import GradientAttack
from nsr.attacks.folding import foldable_pairs
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.objectives import AdversarialTraining
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.compilation import compile_in_place
from nsr.training.module import RobustClassifier

CLASSES = 10
EPSILON, STEP_SIZE, ATTACK_STEPS = 8 / 255, 2 / 255, 10
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]  # about those of CIFAR-10
BATCHES = 4  # random ones, in turn
CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor]
Step = Callable[[int], None]


@dataclass(frozen=True)
class Sizes:
    """Size of the problem."""

    network: str = "ResNet18"  # of nsr.models
    image_size: int = 32
    batch: int = 128
    timed_steps: int = 30
    warm_up_steps: int = 5
    backend: str = "inductor"  # of torch.compile


TINY = Sizes("SmallCNN", image_size=8, batch=8, timed_steps=2, warm_up_steps=1, backend="aot_eager")


class Variant(NamedTuple):
    """Precision, memory layout and compilation of a step."""

    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of Lightning's bf16-mixed."""
        return torch.autocast(device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


FLOAT32 = Variant()
VARIANTS = {
    "float32": FLOAT32,
    "bf16-mixed": Variant(bf16=True),
    "bf16-mixed, channels_last": Variant(bf16=True, channels_last=True),
    "bf16-mixed, channels_last, compiled": Variant(bf16=True, channels_last=True, compiled=True),
}


def network(sizes: Sizes) -> Classifier:
    """A network with fixed random weights, its BatchNorm statistics those of a random batch."""
    torch.manual_seed(0)
    net = getattr(models, sizes.network)(channels=3, classes=CLASSES, image_size=sizes.image_size)
    classifier = Classifier(net, MEAN, STD).train()
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        classifier(random_batch(sizes, 32, seed=100)[0])
    for norm in norms:
        norm.momentum = 0.1
    return classifier


def random_batch(sizes: Sizes, count: int, *, seed: int = 0) -> Batch:
    """Images (count, 3, size, size) in [0, 1] and labels (count,), on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, sizes.image_size, sizes.image_size, generator=generator)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def adversarial_training(
    net: Classifier, images: Tensor, *, stabilizer: SensitivityStabilizer | None = None
) -> RobustClassifier:
    """A module of PGD training in the state of its first step; `images` (two or more) find its layers."""
    module = RobustClassifier(
        net,
        layers=find_layers(net, images, root=net.net),
        root=net.net,
        classes=CLASSES,
        objective=AdversarialTraining(),
        train_attack=GradientAttack(epsilon=EPSILON, step_size=STEP_SIZE, steps=ATTACK_STEPS),
        stabilizer=stabilizer,
    ).to(images.device)
    module.train()
    module.on_train_start()
    return module


def nsr_step(
    sizes: Sizes,
    *,
    device: torch.device = CPU,
    variant: Variant = FLOAT32,
    stabilizes: bool = True,
    folds: bool = False,
    around_metrics: Callable[[Callable[..., None]], Callable[..., None]] | None = None,
) -> tuple[Classifier, Step]:
    """The network and its training step, gradients and SGD, as the Trainer makes them.

    Args:
        around_metrics: wraps the update of the metrics of training.
    """
    net, batches = network_and_batches(sizes, device, variant)
    stabilizer = SensitivityStabilizer() if stabilizes else None
    module = adversarial_training(net, batches[0][0][:2], stabilizer=stabilizer)
    if around_metrics is not None:
        module.train_metrics.update = around_metrics(module.train_metrics.update)  # type: ignore[method-assign]
    if folds:
        module.folded_pairs = foldable_pairs(net, batches[0][0][:2])
    if variant.compiled:
        compile_in_place(net, sizes=(sizes.batch,), backend=sizes.backend, pairs=module.folded_pairs)

    def loss(images: Tensor, labels: Tensor, number: int) -> Any:
        with variant.autocast(device):
            return module.training_step((images, labels), number)

    return net, with_sgd(net, batches, loss)


def floor_step(
    sizes: Sizes, *, device: torch.device = CPU, variant: Variant = FLOAT32, views: int = 2
) -> tuple[nn.Module, Step]:
    """The network and the passes alone: an input gradient for each attack step, then a training pass for each view."""
    classifier, batches = network_and_batches(sizes, device, variant)
    # a class of its own, because torch keeps compiled code by function and would reuse that of the hooked network
    net = nn.Sequential(classifier.normalize, classifier.net)
    if variant.compiled:
        net.compile(backend=sizes.backend)

    def loss(images: Tensor, labels: Tensor, _: int) -> Tensor:
        net.eval().requires_grad_(False)
        for _ in range(ATTACK_STEPS):
            with variant.autocast(device):
                leaf = images.detach().requires_grad_()
                torch.autograd.grad(cross_entropy(net(leaf), labels, reduction="sum"), leaf)
        net.train().requires_grad_(True)
        with variant.autocast(device):
            return torch.stack([cross_entropy(net(images), labels) for _ in range(views)]).sum()

    return net, with_sgd(net, batches, loss)


def with_sgd(net: nn.Module, batches: list[Batch], loss: Callable[[Tensor, Tensor, int], Any]) -> Step:
    """A step of SGD on a loss, at a learning rate low enough for random labels."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(number: int) -> None:
        loss(*batches[number % len(batches)], number).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def network_and_batches(sizes: Sizes, device: torch.device, variant: Variant) -> tuple[Classifier, list[Batch]]:
    """The network and its random batches on the device, in the variant's memory format."""
    memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
    net = network(sizes).to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    batches = [random_batch(sizes, sizes.batch, seed=seed) for seed in range(BATCHES)]
    return net, [(images.to(device), labels.to(device)) for images, labels in batches]


def milliseconds(step: Step, number: int, device: torch.device = CPU) -> float:
    """Wall time until the device has finished."""
    synchronized(device)
    started = time.perf_counter()
    step(number)
    synchronized(device)
    return 1000 * (time.perf_counter() - started)


def synchronized(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def spread(times: list[float]) -> dict[str, float]:
    """Median, quartiles and number of measurements."""
    lower, middle, upper = (round(value, 3) for value in quantiles(times, n=4, method="inclusive"))
    return {"median": middle, "lower_quartile": lower, "upper_quartile": upper, "n": len(times)}


def measure(sizes: Sizes, device: torch.device, variant: Variant) -> dict[str, Any]:
    """Times of step and floor in turn, and the peak memory of the step alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _, step = nsr_step(sizes, device=device, variant=variant)
    row: dict[str, Any] = {"first_step_s": round(milliseconds(step, 0, device) / 1000, 1)}
    for number in range(sizes.warm_up_steps):
        step(number)
    if device.type == "cuda":  # before the floor's own network exists
        row["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    _, floor = floor_step(sizes, device=device, variant=variant)
    for number in range(1 + sizes.warm_up_steps):
        floor(number)
    times: dict[str, list[float]] = {"step_ms": [], "floor_ms": []}
    for number in range(sizes.timed_steps):
        times["step_ms"].append(milliseconds(step, number, device))
        times["floor_ms"].append(milliseconds(floor, number, device))
    middle = {name: median(values) for name, values in times.items()}
    row |= {name: spread(values) for name, values in times.items()}
    row["ratio_to_floor"] = round(middle["step_ms"] / middle["floor_ms"], 3)
    row["images_per_second"] = round(1000 * sizes.batch / middle["step_ms"], 1)
    return row


def main(out: Path | None) -> None:
    sizes = TINY if os.environ.get("NSR_GPU_TINY") == "1" else Sizes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # TF32 is torch's default for convolutions, and train.py leaves it there
    record = {**machine(), "sizes": vars(sizes), "tf32_convolutions": torch.backends.cudnn.allow_tf32}
    for name, variant in VARIANTS.items():
        record[name] = measure(sizes, device, variant)
        print(name, json.dumps(record[name]), flush=True)
        if out is not None:
            out.write_text(json.dumps(record, indent=2) + "\n")
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
