"""Cost of a training step against its settings, a model fitted to it, and what large runs would take.

    python -m benchmarks.scaling measure [ROUNDS]    the steps of POINTS take turns; a row each to results/scaling.jsonl
    python -m benchmarks.scaling page                docs/scaling.md from the rows

Times are processor time of one thread. FLOPs are counted by torch.utils.flop_counter on the meta device, where nothing
is computed, and so are the tensors that a pass keeps for its backward pass.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import DOCS, RESULTS, append_row, table
from benchmarks.step_times import CLASSES, EPSILON, MEAN, STD, STEP_SIZE, Sizes, random_batch, with_sgd
from nsr.attacks import GradientAttack
from nsr.attacks.folding import foldable_pairs
from nsr.compare import exit_code
from nsr.errors import check_choice
from nsr.layers import find_layers
from nsr.models import Classifier, ResNet20, SmallCNN, WideResNet
from nsr.objectives import AdversarialTraining
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.module import RobustClassifier

PAGE, TEXT = DOCS / "scaling.md", Path(__file__).with_name("scaling_text.md")
SIZE = 32


class Point(NamedTuple):
    """A training step: network, images in a batch, attack steps, hooked layers that SNS stabilizes."""

    network: str = "ResNet20"
    width: int | None = None  # of the small network
    batch: int = 16
    steps: int = 3
    hooked: tuple[str, ...] = ()


ALL = ("relu1", "layer*.*.relu*")
POINTS = [
    *(Point(steps=steps) for steps in (1, 3, 10)),
    *(Point(batch=batch) for batch in (4, 8, 32)),
    *(Point("SmallCNN", width) for width in (8, 16, 32, 64)),
    *(Point(hooked=hooked) for hooked in (("layer3.2.relu2",), ("layer3.*.relu*",), ALL)),
]


class Large(NamedTuple):
    """A run whose cost is predicted; the assumptions are in the page."""

    name: str
    make: Callable[[], nn.Module]
    size: int
    images: int
    epochs: int
    steps: int
    batch: int  # of all devices
    devices: int
    link: float  # bytes a second that each device exchanges gradients with
    image_bytes: float  # as it is read: uint8 on the device, or a JPEG file


def resnet50() -> nn.Module:
    from torchvision.models import resnet50 as torchvisions

    return torchvisions()


PEAK = 989e12  # FLOP/s of an H100 SXM in bf16, dense, by its data sheet
UTILIZATION = (0.08, 0.15, 0.3)  # of the peak; assumed
LARGE = [
    Large("CIFAR-10, WRN-34-10, PGD-10", lambda: wide(), 32, 50_000, 110, 10, 128, 1, np.inf, 3 * 32 * 32),
    Large("ImageNet, ResNet-50, PGD-3", resnet50, 224, 1_281_167, 90, 3, 1024, 8, 450e9, 110e3),
    Large("ImageNet, ResNet-50, PGD-3", resnet50, 224, 1_281_167, 90, 3, 4096, 64, 50e9, 110e3),
]


def wide() -> nn.Module:
    return WideResNet(channels=3, classes=CLASSES, image_size=32, depth=34, width=10)


def small(point: Point) -> nn.Module:
    """The network of a point."""
    if point.network == "SmallCNN":
        return SmallCNN(channels=3, classes=CLASSES, image_size=SIZE, width=point.width)
    return ResNet20(channels=3, classes=CLASSES, image_size=SIZE)


def passes(net: nn.Module, images: Tensor, *, trains: bool) -> None:
    """A forward and a backward pass: to the weights, or, as an attack does, to the images."""
    net.train(trains).requires_grad_(trains)
    leaf = images.detach().requires_grad_(not trains)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    cross_entropy(net(leaf), labels, reduction="sum").backward()


def flops(net: nn.Module, size: int, *, trains: bool) -> float:
    """FLOPs of `passes` for an image."""
    with FlopCounterMode(display=False) as counter:
        passes(net.to("meta"), torch.zeros(2, 3, size, size, device="meta"), trains=trains)
    return counter.get_total_flops() / 2


def kept_bytes(net: nn.Module, size: int) -> float:
    """Bytes of the float32 tensors that a training pass keeps for its backward pass, for an image."""
    net, kept = net.to("meta"), {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        passes(net, torch.zeros(16, 3, size, size, device="meta"), trains=True)
    own = {each.untyped_storage()._cdata for each in net.parameters()}
    return sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in own) / 16


def step_flops(net: nn.Module, size: int, steps: int) -> float:
    """FLOPs of a training step for an image: passes of the attack, and one to the weights."""
    return steps * flops(net, size, trains=False) + flops(net, size, trains=True)


def training_step(point: Point) -> Callable[[int], None]:
    """A step of nsr's training as performance=auto runs it on a CPU."""
    torch.manual_seed(0)
    net = Classifier(small(point), MEAN, STD).to(memory_format=torch.channels_last)
    sizes = Sizes(point.network, image_size=SIZE, batch=point.batch)
    batches = [random_batch(sizes, point.batch, seed=seed) for seed in range(2)]
    module = RobustClassifier(
        net,
        layers=find_layers(net, batches[0][0][:2], list(point.hooked) or None, root=net.net),
        root=net.net,
        classes=CLASSES,
        objective=AdversarialTraining(),
        train_attack=GradientAttack(epsilon=EPSILON, step_size=STEP_SIZE, steps=point.steps),
        stabilizer=SensitivityStabilizer() if point.hooked else None,
    )
    module.train()
    module.on_train_start()
    module.folded_pairs = foldable_pairs(net, batches[0][0][:2])
    return with_sgd(net, batches, lambda images, labels, number: module.training_step((images, labels), number))


def measure(rounds: int) -> None:
    """Append a row for each point."""
    torch.set_num_threads(1)
    steps = [training_step(point) for point in POINTS]
    found: list[list[float]] = [[] for _ in POINTS]
    for number in range(rounds + 1):
        for place, step in enumerate(steps):
            started = time.process_time()
            step(number)
            if number:  # the first one warms up
                found[place].append(1000 * (time.process_time() - started))
    for point, times in zip(POINTS, found, strict=True):
        lower, middle, upper = quantiles(times, n=4)
        net = small(point)
        row = {"ms": middle, "lower_quartile": lower, "upper_quartile": upper, "n": rounds}
        work = {"flops": point.batch * step_flops(net, SIZE, point.steps), "passes": point.steps + 1}
        append_row("scaling", {**point._asdict(), **row, **work})


def rows() -> list[dict[str, Any]]:
    path = RESULTS / "scaling.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fitted(measured: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Fit ms = a * FLOPs + b * passes, relative errors least squares; return FLOP/s, ms a pass, median error."""
    work = np.array([[row["flops"], row["passes"]] for row in measured])
    times = np.array([row["ms"] for row in measured])
    (slope, overhead), *_ = np.linalg.lstsq(work / times[:, None], np.ones(len(times)), rcond=None)
    errors = np.abs(work @ [slope, overhead] / times - 1)
    return 1000 / slope, overhead, float(np.median(errors))


def cost_table() -> list[str]:
    lines = []
    for row in rows():
        network = row["network"] + (f", width {row['width']}" if row["width"] else "")
        spread = f"{row['ms']:.0f} ({row['lower_quartile']:.0f} to {row['upper_quartile']:.0f})"
        hooked = ", ".join(f"`{name}`" for name in row["hooked"]) or "none"
        work = [f"{row['flops'] / 1e9:.1f}", spread, str(row["n"])]
        lines.append([network, str(row["steps"]), str(row["batch"]), hooked, *work])
    return table(["network", "steps", "batch", "stabilized", "GFLOP", "ms, median (quartiles)", "n"], lines)


def fit_table() -> list[str]:
    lines = []
    for network in ("ResNet20", "SmallCNN"):
        plain = [row for row in rows() if row["network"] == network and not row["hooked"]]
        rate, overhead, error = fitted(plain)
        lines.append([network, str(len(plain)), f"{rate / 1e9:.0f}", f"{overhead:.1f}", f"{100 * error:.0f}"])
    return table(["network", "rows", "GFLOP/s", "ms a pass", "median error, %"], lines)


def predicted(run: Large, utilization: float) -> dict[str, float]:
    """Hours of training, images a second, bytes a second that are read, seconds of a step and of its exchange."""
    net = run.make()
    weights = sum(each.numel() for each in net.parameters())
    exchange = 2 * 4 * weights / run.link  # a ring of float32 gradients, not hidden behind the backward pass
    compute = run.batch / run.devices * step_flops(net, run.size, run.steps) / (PEAK * utilization)
    step = compute + exchange
    rate = run.batch / step
    memory = run.batch / run.devices * kept_bytes(net, run.size) / 2 + 16 * weights
    return {
        "hours": run.epochs * run.images / rate / 3600,
        "images": rate,
        "read": rate * run.image_bytes,
        "memory": memory,
        "exchange": exchange / step,
    }


def prediction_table() -> list[str]:
    lines = []
    for run in LARGE:
        low, middle, high = (predicted(run, utilization) for utilization in UTILIZATION)
        hours = f"{middle['hours']:.1f} ({high['hours']:.1f} to {low['hours']:.1f})"
        cells = [run.name, str(run.devices), f"{run.epochs} x {run.batch}", hours, f"{middle['memory'] / 2**30:.0f}"]
        rate = f"{middle['images']:,.0f}, {middle['read'] / 1e6:,.0f} MB/s"
        lines.append([*cells, rate, f"{100 * middle['exchange']:.0f}"])
    columns = ["run", "H100", "epochs x batch", "hours", "GiB each", "images a second, read", "exchange, %"]
    return table(columns, lines)


def work_table() -> list[str]:
    lines = []
    for run in LARGE[:2]:
        net = run.make()
        own = [flops(net, run.size, trains=trains) / 1e9 for trains in (False, True)]
        whole = step_flops(net, run.size, run.steps) / 1e9
        cells = [f"{value:.1f}" for value in (*own, whole)]
        lines.append([run.name, *cells, f"{kept_bytes(net, run.size) / 2**20:.0f}"])
    return table(["run", "pass of the attack", "pass of training", "step", "kept, MiB in float32"], lines)


def page() -> str:
    """The text with its tables."""
    text = TEXT.read_text()
    parts = {"cost": cost_table, "fit": fit_table, "predictions": prediction_table, "work": work_table}
    for name, make in parts.items():
        text = text.replace(f"{{{name}}}", "\n".join(make()))
    return text


def main(action: str, rounds: str = "7") -> None:
    check_choice("the action", action, ("measure", "page"))
    measure(int(rounds)) if action == "measure" else PAGE.write_text(page())


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(*sys.argv[1:])))
