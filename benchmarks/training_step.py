"""Time of a training step on this machine, beside its own passes in a plain loop and beside other libraries' PGD.

    python -m benchmarks.training_step [ROUNDS]

ResNet-20 on random 32 x 32 images, and a small network on 8 x 8 ones, where everything but the passes weighs most;
batches of 64, PGD-10, SGD, float32. The steps take turns in each of ROUNDS rounds (default 10), so that whatever else
the machine does slows all of them; ratios are of medians. Other libraries are measured where they are installed: a
plain training step around their PGD (`pip install --no-deps torchattacks==3.5.1 rai-toolbox==0.2.1`, in an environment
of its own). A row is appended to benchmarks/results/training_step.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import append_row, installed
from benchmarks.step_times import (
    ATTACK_STEPS,
    CPU,
    EPSILON,
    FLOAT32,
    STEP_SIZE,
    Sizes,
    Step,
    Variant,
    floor_step,
    milliseconds,
    network_and_batches,
    nsr_step,
    spread,
    with_sgd,
)

NETWORKS = {  # name: (sizes, steps that are timed together)
    "ResNet20, 32 x 32": (Sizes(network="ResNet20", batch=64), 1),
    "SmallCNN, 8 x 8": (Sizes(network="SmallCNN", image_size=8, batch=64), 10),
}
CHANNELS_LAST = Variant(channels_last=True)
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def library_step(sizes: Sizes, attack: Attack) -> Step:
    """A plain step of adversarial training around a library's attack."""
    net, batches = network_and_batches(sizes, CPU, FLOAT32)

    def loss(images: Tensor, labels: Tensor, _: int) -> Tensor:
        net.eval()
        adversarial = attack(net, images, labels)
        net.train()
        return cross_entropy(net(adversarial), labels)

    return with_sgd(net, batches, loss)


def torchattacks_pgd(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(net, eps=EPSILON, alpha=STEP_SIZE, steps=ATTACK_STEPS)
    adversarial: Tensor = attack(images, labels)
    return adversarial


def rai_toolbox_pgd(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    from rai_toolbox.optim import LinfProjectedOptim
    from rai_toolbox.perturbations import gradient_ascent

    settings = {"epsilon": EPSILON, "lr": STEP_SIZE, "steps": ATTACK_STEPS}
    settings |= {"optimizer": LinfProjectedOptim, "use_best": False}
    adversarial, _ = gradient_ascent(model=net, data=images, target=labels, **settings)
    return adversarial.detach()


LIBRARIES: dict[str, Attack] = {"torchattacks": torchattacks_pgd, "rai-toolbox": rai_toolbox_pgd}


def measure(sizes: Sizes, rounds: int, together: int) -> dict[str, Any]:
    """Milliseconds of each step, and the ratios of their medians."""
    steps = {
        "floor": floor_step(sizes, views=1),
        "nsr": nsr_step(sizes, stabilizes=False),  # performance=off
        "nsr, performance=auto": nsr_step(sizes, variant=CHANNELS_LAST, stabilizes=False, folds=True),
        **{name: library_step(sizes, attack) for name, attack in LIBRARIES.items() if installed(name)},
        "floor of sns": floor_step(sizes, views=2),
        "nsr with sns": nsr_step(sizes, stabilizes=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            taken = sum(milliseconds(step, number + more) for more in range(together))
            if number > 0:  # the first round warms up
                times[name].append(taken / together)
    middle = {name: median(values) for name, values in times.items()}
    ratios = {name: middle["nsr"] / middle[name] for name in ("floor", *LIBRARIES) if name in middle}
    ratios["performance=auto"] = middle["nsr"] / middle["nsr, performance=auto"]
    ratios["floor, both with sns"] = middle["nsr with sns"] / middle["floor of sns"]
    return {
        "nsr_to": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "step_ms": {name: spread(values) for name, values in times.items()},
    }


def main(rounds: int) -> None:
    if rounds < 2:
        sys.exit(f"error: ROUNDS is {rounds}; it must be 2 or more for quartiles")
    row = {name: measure(sizes, rounds, together) for name, (sizes, together) in NETWORKS.items()}
    append_row("training_step", {**row, "libraries": {name: installed(name) for name in LIBRARIES}})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
