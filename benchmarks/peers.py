"""A PGD-10 training step beside a plain published loop and beside the same step around other libraries' PGD.

    python -m benchmarks.peers NETWORK PRECISION [ROUNDS [BATCH [KIND]]]     such as ResNet20 float32, ResNet18 bf16

Every contender trains the same network on the same random 32 x 32 images with SGD, in a process of its own, because
performance=auto sets how a process keeps its memory; the steps take turns in each of ROUNDS rounds (default 9). On a
CPU a time is the processor time of one thread, which other programs on the machine lengthen little; on a GPU it is wall
time until the device has finished. Forward and backward passes of a step are counted, and each contender's attack is
run on one fixed network and images, zoo:digits_pgd on the test digits.

A library that is not installed is listed as skipped. They are measured where PYTHONPATH has them: `pip install
--no-deps --target FOLDER torchattacks==3.5.1 rai-toolbox==0.2.1 adversarial-robustness-toolbox==1.20.1 six
secml-torch==1.5`.

KIND is peers; or compiled: nsr's step with compile=true, with and without folding, beside the default and the plain
loop.
A row is appended to benchmarks/results/KIND.jsonl.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import append_row, installed
from benchmarks.step_times import (
    ATTACK_STEPS,
    FLOAT32,
    Sizes,
    Step,
    Variant,
    floor_step,
    network_and_batches,
    nsr_step,
    spread,
    synchronized,
    with_sgd,
)
from nsr.app.machine import keep_freed_memory
from nsr.attacks import GradientAttack
from nsr.attacks.folding import foldable_pairs, folded_batch_norm
from nsr.models import Classifier, SmallCNN
from nsr.models.weights import read_checkpoint
from nsr.zoo import zoo_file

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPSILON, STEP_SIZE = 8 / 255, 2 / 255
DIGITS = {"epsilon": 0.15, "step_size": 0.0375}  # of the fixed network
PRECISIONS = ("float32", "bf16")
ART = "adversarial-robustness-toolbox"
IN_FLOAT32 = "plain loop in float32"  # what a bf16 step saves
COMPILED, NOT_FOLDED = "nsr, compile=true", "nsr, compile=true, not folded"
# with the memory of performance=auto
AUTO = ("nsr", "nsr with SNS", "passes alone", "clean pass alone", COMPILED, NOT_FOLDED)
Contenders = dict[str, Callable[[], tuple[nn.Module, Step]]]
Attack = Callable[..., Tensor]  # attack(net, images, labels, epsilon=..., step_size=...) -> images


def plain_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    """PGD as published code writes it (Madry et al. 2018; Rice et al. 2020)."""
    delta = torch.empty_like(images).uniform_(-epsilon, epsilon)
    delta = (images + delta).clamp(0, 1) - images
    for _ in range(ATTACK_STEPS):
        delta.requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(net(images + delta), labels), delta)[0]
        delta = (delta.detach() + step_size * gradient.sign()).clamp(-epsilon, epsilon)
        delta = (images + delta).clamp(0, 1) - images
    return images + delta


def torchattacks_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    import torchattacks

    return torchattacks.PGD(net, eps=epsilon, alpha=step_size, steps=ATTACK_STEPS)(images, labels)  # type: ignore[no-any-return]


def foolbox_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=ATTACK_STEPS)
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device=images.device)
    return attack.run(model, images, foolbox.Misclassification(labels), epsilon=epsilon)  # type: ignore[no-any-return]


def rai_toolbox_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    from rai_toolbox.optim import LinfProjectedOptim
    from rai_toolbox.perturbations import AdditivePerturbation, gradient_ascent, uniform_like_linf_n_ball_

    start = partial(uniform_like_linf_n_ball_, epsilon=epsilon)
    settings = {"epsilon": epsilon, "lr": step_size, "steps": ATTACK_STEPS, "optimizer": LinfProjectedOptim}
    settings |= {"perturbation_model": partial(AdditivePerturbation, init_fn=start)}
    adversarial, _ = gradient_ascent(model=net, data=images, target=labels, **settings)
    return adversarial.detach().clamp(0, 1)


def art_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), tuple(images.shape[1:]), nb_classes=10, clip_values=(0, 1), device_type=DEVICE.type
    )
    settings = {"eps": epsilon, "eps_step": step_size, "max_iter": ATTACK_STEPS, "num_random_init": 1}
    settings |= {"batch_size": len(images), "verbose": False}
    adversarial = ProjectedGradientDescentPyTorch(classifier, **settings).generate(images.cpu().numpy(), labels.cpu())
    return torch.from_numpy(adversarial).to(images.device)


def secml_torch_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    from secmlt.adv.evasion.pgd import PGD

    settings = {"epsilon": epsilon, "step_size": step_size, "num_steps": ATTACK_STEPS, "random_start": True}
    attack = PGD("linf", backend="native", **settings)
    adversarial, _ = next(attack(net, [(images, labels)], stream=True))
    net.zero_grad()  # it fills the gradients of the weights, too
    return adversarial.detach()  # type: ignore[no-any-return]


LIBRARIES: dict[str, Attack] = {
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "rai-toolbox": rai_toolbox_pgd,
    ART: art_pgd,
    "secml-torch": secml_torch_pgd,
}
SKIPPED = f"MAIR: no package to install; {ART} in bf16: it converts logits to NumPy"


def peer_step(sizes: Sizes, attack: Attack, variant: Variant) -> tuple[nn.Module, Step]:
    """A plain step of adversarial training around an attack, the whole of it in the precision of the variant."""
    net, batches = network_and_batches(sizes, DEVICE, variant)

    def loss(images: Tensor, labels: Tensor, _: int) -> Tensor:
        with variant.autocast(DEVICE):
            net.eval()
            adversarial = attack(net, images, labels, epsilon=EPSILON, step_size=STEP_SIZE)
            net.train()
            return cross_entropy(net(adversarial), labels)

    return net, with_sgd(net, batches, loss)


def contenders(sizes: Sizes, variant: Variant) -> Contenders:
    """{name: makes its network and step}: nsr by default, with performance=off, with SNS; plain loop; libraries."""
    fast, on = variant._replace(channels_last=True), DEVICE
    there = [name for name in LIBRARIES if installed(name) and not (variant.bf16 and name == ART)]
    peers = {"plain loop": plain_pgd, **{name: LIBRARIES[name] for name in there}}
    in_float32 = {IN_FLOAT32: partial(peer_step, sizes, plain_pgd, FLOAT32)} if variant.bf16 else {}
    return {
        "nsr": partial(nsr_step, sizes, device=on, variant=fast, stabilizes=False, folds=True),
        "nsr, performance=off": partial(nsr_step, sizes, device=on, variant=variant, stabilizes=False),
        **{name: partial(peer_step, sizes, attack, variant) for name, attack in peers.items()},
        **in_float32,
        "nsr with SNS": partial(nsr_step, sizes, device=on, variant=fast, folds=True),
        "passes alone": partial(floor_step, sizes, device=on, variant=fast, views=1),
        "clean pass alone": partial(clean_step, sizes, fast),
    }


def compiled(sizes: Sizes, variant: Variant) -> Contenders:
    """{name: makes its network and step}: nsr by default and compiled; plain loop."""
    fast = variant._replace(channels_last=True)
    step = partial(nsr_step, sizes, device=DEVICE, stabilizes=False)
    found: Contenders = {
        "nsr": partial(step, variant=fast, folds=True),
        COMPILED: partial(step, variant=fast._replace(compiled=True), folds=True),
        NOT_FOLDED: partial(step, variant=fast._replace(compiled=True)),
        "plain loop": partial(peer_step, sizes, plain_pgd, variant),
    }
    return found | ({IN_FLOAT32: partial(peer_step, sizes, plain_pgd, FLOAT32)} if variant.bf16 else {})


def clean_step(sizes: Sizes, variant: Variant) -> tuple[nn.Module, Step]:
    """A forward and backward pass of clean images: what SNS needs at least beside PGD training."""
    net, batches = network_and_batches(sizes, DEVICE, variant)

    def step(number: int) -> None:
        images, labels = batches[number % len(batches)]
        with variant.autocast(DEVICE):
            loss = cross_entropy(net(images), labels)
        torch.autograd.grad(loss, list(net.parameters()))

    return net, step


def counted(net: nn.Module, step: Step) -> dict[str, int]:
    """Count the forward and backward passes of a step, by the logits and their gradients."""
    counts = {"forward": 0, "backward": 0}

    def on_backward(gradient: Tensor) -> None:
        counts["backward"] += 1

    def on_forward(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        counts["forward"] += 1
        if logits.requires_grad:
            logits.register_hook(on_backward)

    handle = net.register_forward_hook(on_forward)
    step(0)
    handle.remove()
    return counts


def fixed_network() -> tuple[Classifier, Tensor, Tensor]:
    """zoo:digits_pgd in eval mode, and the 500 test digits with their labels."""
    from nsr.data.sources import Digits

    state = read_checkpoint(zoo_file("zoo:digits_pgd"))["state_dict"]
    state = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
    net = SmallCNN(channels=1, classes=10, image_size=8, width=len(state["net.conv1.weight"]))
    classifier = Classifier(net, [0.5], [0.5])  # overwritten by the file's
    classifier.load_state_dict(state)
    test = Digits(channels=1, image_size=8, classes=10, mean=[0.5], std=[0.5]).load("test")
    return classifier.eval(), test.images, test.labels


def nsr_pgd(net: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, step_size: float) -> Tensor:
    """nsr's training attack as performance=auto runs it."""
    attack = GradientAttack(epsilon=epsilon, step_size=step_size, steps=ATTACK_STEPS)
    with folded_batch_norm(foldable_pairs(net, images[:2])):
        return attack(net, images, labels)


def robust_accuracies() -> dict[str, float]:
    """Accuracy of the fixed network under each contender's PGD-10."""
    net, images, labels = fixed_network()
    attacks: dict[str, Attack] = {"nsr": nsr_pgd, "plain loop": plain_pgd, **LIBRARIES}
    found = {}
    for name, attack in attacks.items():
        if name in LIBRARIES and not installed(name):
            continue
        torch.manual_seed(0)
        adversarial = attack(net, images, labels, **DIGITS)
        assert (adversarial - images).abs().max() <= DIGITS["epsilon"] + 1e-6, f"{name} leaves the ball"
        found[name] = round(float((net(adversarial).argmax(1) == labels).double().mean()), 4)
    return found


def seconds() -> float:
    """Processor time on a CPU; wall time, once the device has finished, on a GPU."""
    synchronized(DEVICE)
    return time.process_time() if DEVICE.type == "cpu" else time.perf_counter()


def serve(connection: Any, kind: str, name: str, sizes: Sizes, variant: Variant) -> None:
    """Make a contender; send what its first step shows, then the milliseconds of the step of each number received.

    The first step's passes are counted; a compiler, whose graphs have no such hooks, has its time taken.
    """
    if name in AUTO:
        keep_freed_memory()
    net, step = KINDS[kind](sizes, variant)[name]()
    if kind == "compiled":
        started = time.perf_counter()
        step(0)
        connection.send(round(time.perf_counter() - started, 1))
    else:
        connection.send(counted(net, step))
    for number in iter(connection.recv, None):
        started = seconds()
        step(number)
        connection.send(1000 * (seconds() - started))


def in_turns(kind: str, sizes: Sizes, variant: Variant, rounds: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What the first step of each contender shows, and milliseconds of a step in each round."""
    context, connections = multiprocessing.get_context("spawn"), {}
    for name in KINDS[kind](sizes, variant):
        connections[name], there = context.Pipe()
        context.Process(target=serve, args=(there, kind, name, sizes, variant), daemon=True).start()
        there.close()  # here, so that a process that dies is an error and no wait
    first = {name: connection.recv() for name, connection in connections.items()}
    times: dict[str, list[float]] = {name: [] for name in connections}
    for number in range(rounds):
        for name, connection in connections.items():
            connection.send(number)
            times[name].append(connection.recv())
    for connection in connections.values():
        connection.send(None)
    return first, times


def measure(sizes: Sizes, variant: Variant, rounds: int) -> dict[str, Any]:
    """Milliseconds and passes of a step of each contender, and ratios of medians."""
    passes, times = in_turns("peers", sizes, variant, rounds)
    middle = {name: median(values) for name, values in times.items()}
    peers = [name for name in middle if name == "plain loop" or name in LIBRARIES]
    fastest = min(peers, key=middle.__getitem__)
    return {
        "fastest_peer": fastest,
        "to_fastest_peer": {name: round(middle[name] / middle[fastest], 3) for name in middle},
        "sns_added_to_clean_pass": round((middle["nsr with SNS"] - middle["nsr"]) / middle["clean pass alone"], 3),
        "to_passes_alone": round(middle["nsr"] / middle["passes alone"], 3),
        "passes": passes,
        "step_ms": {name: spread(values) for name, values in times.items()},
    }


def main(network: str, precision: str, rounds: str = "9", batch: str = "64", kind: str = "peers") -> None:
    if precision not in PRECISIONS or int(rounds) < 2 or kind not in KINDS:
        allowed = f"{', '.join(PRECISIONS)}; 2 or more; one of {', '.join(KINDS)}"
        sys.exit(f"error: {precision}, {rounds} rounds, {kind}; it must be one of {allowed}")
    variant, sizes = FLOAT32._replace(bf16=precision == "bf16"), Sizes(network=network, batch=int(batch))
    row = {"network": network, "precision": precision, "batch": sizes.batch, "rounds": int(rounds)}
    if kind == "peers":
        missing = [name for name in LIBRARIES if not installed(name)]
        print(f"skipped: {SKIPPED}" + "".join(f"; {name}: not installed" for name in missing), flush=True)
        row |= {"robust_accuracy": robust_accuracies(), "libraries": {name: installed(name) for name in LIBRARIES}}
        row |= measure(sizes, variant, int(rounds))
    else:
        first, times = in_turns(kind, sizes, variant, int(rounds))
        row |= {"first_step": first, "step_ms": {name: spread(values) for name, values in times.items()}}
    append_row(kind, row | {"load": os.getloadavg()[0]})


KINDS: dict[str, Callable[[Sizes, Variant], Contenders]] = {
    "peers": contenders,
    "compiled": compiled,
}

if __name__ == "__main__":
    main(*sys.argv[1:6])
