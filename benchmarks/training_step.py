"""What a training step costs on this machine, beside its own passes in a plain loop and beside other libraries' attack.

    python -m benchmarks.training_step [ROUNDS]

ResNet-20 on random 32 x 32 images, and a small network on 8 x 8 ones, where whatever is no pass counts most; batches of
64, PGD-10, SGD, float32. Every step takes its turn in each of ROUNDS rounds (default 10), so that whatever else the
machine does meets all of them; ratios are of medians. The floor is the passes alone, without the attack's arithmetic,
taps or records. Other libraries are measured where they are installed: a plain training step around their PGD
(`pip install --no-deps torchattacks==3.5.1 rai-toolbox==0.2.1`, in an environment of its own). A row is appended to
benchmarks/results/training_step.jsonl.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.gpu.given import Sizes
from benchmarks.gpu.networks import network, random_batch
from benchmarks.gpu.step_times import BATCHES, Step, adversarial_training, input_gradient, milliseconds, sgd, spread

RESULTS = Path(__file__).with_name("results") / "training_step.jsonl"
NETWORKS = {  # name: (sizes, steps that are timed together)
    "ResNet20, 32 x 32": (Sizes(network="ResNet20", batch=64), 1),
    "SmallCNN, 8 x 8": (Sizes(network="SmallCNN", image_size=8, batch=64), 10),
}
ATTACK_STEPS = 10
RADIUS, STEP_SIZE = 8 / 255, 2 / 255
CPU = torch.device("cpu")
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def of_nsr(sizes: Sizes, *, stabilizes: bool) -> Step:
    """A step as the Trainer makes it."""
    net, data = network(sizes), batches(sizes)
    images = data[0][0][:2]
    module = adversarial_training(net, images, stabilizes=stabilizes, steps=ATTACK_STEPS, step_size=STEP_SIZE)
    return stepping(net, data, lambda images, labels, number: module.training_step((images, labels), number))


def around(sizes: Sizes, attack: Attack) -> Step:
    """A plain step of adversarial training around somebody's attack."""
    net, data = network(sizes), batches(sizes)

    def loss(images: Tensor, labels: Tensor, _: int) -> Tensor:
        net.eval()
        adversarial = attack(net, images, labels)
        net.train()
        return cross_entropy(net(adversarial), labels)

    return stepping(net, data, loss)


def floor(sizes: Sizes, *, sides: int) -> Step:
    """The passes alone: an input gradient a step of the attack, then a training pass for each of the sides."""
    net, data = network(sizes), batches(sizes)

    def loss(images: Tensor, labels: Tensor, _: int) -> Tensor:
        net.eval().requires_grad_(False)
        for _ in range(ATTACK_STEPS):
            input_gradient(net, images, labels)
        net.train().requires_grad_(True)
        return torch.stack([cross_entropy(net(images), labels) for _ in range(sides)]).sum()

    return stepping(net, data, loss)


def stepping(net: nn.Module, data: list[tuple[Tensor, Tensor]], loss: Callable[..., Any]) -> Step:
    """Loss, gradients, SGD."""
    optimizer = sgd(net)

    def step(number: int) -> None:
        loss(*data[number % BATCHES], number).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def batches(sizes: Sizes) -> list[tuple[Tensor, Tensor]]:
    """A few random ones, in turn."""
    return [random_batch(sizes, sizes.batch, seed=seed) for seed in range(BATCHES)]


def of_torchattacks(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(net, eps=RADIUS, alpha=STEP_SIZE, steps=ATTACK_STEPS)
    adversarial: Tensor = attack(images, labels)
    return adversarial


def of_rai_toolbox(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    from rai_toolbox.optim import LinfProjectedOptim
    from rai_toolbox.perturbations import gradient_ascent

    settings = {"epsilon": RADIUS, "lr": STEP_SIZE, "steps": ATTACK_STEPS}
    adversarial, _ = gradient_ascent(
        model=net, data=images, target=labels, optimizer=LinfProjectedOptim, use_best=False, **settings
    )
    return adversarial.detach()


LIBRARIES: dict[str, Attack] = {"torchattacks": of_torchattacks, "rai-toolbox": of_rai_toolbox}


def installed(name: str) -> str | None:
    """Its version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure(sizes: Sizes, rounds: int, together: int) -> dict[str, Any]:
    """Milliseconds of each step, and the ratios of their medians."""
    steps = {
        "floor": floor(sizes, sides=1),
        "nsr": of_nsr(sizes, stabilizes=False),
        **{name: around(sizes, attack) for name, attack in LIBRARIES.items() if installed(name)},
        "floor of sns": floor(sizes, sides=2),
        "nsr with sns": of_nsr(sizes, stabilizes=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            taken = milliseconds(lambda first, step=step: [step(first + more) for more in range(together)], number, CPU)
            if number > 0:  # the first round warms up
                times[name].append(taken / together)
    middle = {name: median(values) for name, values in times.items()}
    ratios = {name: middle["nsr"] / middle[name] for name in ("floor", *LIBRARIES) if name in middle}
    ratios["floor, both with sns"] = middle["nsr with sns"] / middle["floor of sns"]
    return {
        "nsr_to": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "step_ms": {name: spread(values) for name, values in times.items()},
    }


def main(rounds: int) -> None:
    if rounds < 2:
        sys.exit(f"error: ROUNDS is {rounds}; quartiles need at least 2")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    row = {
        "commit": commit.strip(),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, **{name: installed(name) for name in LIBRARIES}},
        **{name: measure(sizes, rounds, together) for name, (sizes, together) in NETWORKS.items()},
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
