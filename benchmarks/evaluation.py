"""Cost of an evaluation: the default test attacks on the 500 test digits, and AutoAttack beside its own script.

    python -m benchmarks.evaluation CHECKPOINT [IMAGES]

CHECKPOINT is that of a small network trained on digits. The seconds of the default attacks are those of evaluate.py
beyond an evaluation of clean images alone. pyautoattack as its README shows it and nsr.attacks.AutoAttack take turns on
the same images (the first IMAGES digits, default 250) with the same seed; the ratio is of their medians, and their
outcomes must agree image by image. A row is appended to benchmarks/results/evaluation.jsonl.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from statistics import median

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.common import ROOT, append_row, installed
from nsr.attacks import AutoAttack
from nsr.models import Classifier, SmallCNN

EPSILON = 0.15  # Linf, pixels in [0, 1]
REPEATS = 3


def evaluation_seconds(checkpoint: str, *overrides: str) -> float:
    """Wall time of the user's own command."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, str(ROOT / "evaluate.py"), f"checkpoint={checkpoint}", "checks.enabled=false"]
        started = time.perf_counter()
        subprocess.run([*command, *overrides, f"hydra.run.dir={name}/run"], check=True, capture_output=True)
        return time.perf_counter() - started


def network(checkpoint: str) -> Classifier:
    """The small network of a run on digits."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    state = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
    net = SmallCNN(channels=1, classes=10, image_size=8, width=len(state["net.conv1.weight"]))
    classifier = Classifier(net, [0.5], [0.5])  # overwritten by the checkpoint's
    classifier.load_state_dict(state)
    return classifier.eval().requires_grad_(False)


def original(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """AutoAttack as its README shows it."""
    from pyautoattack import AutoAttack as Original

    attack = Original(net, norm="Linf", eps=EPSILON, seed=0, version="standard")
    return attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]


def main(checkpoint: str, count: int) -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:count, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[:count])
    net = network(checkpoint)
    seconds: dict[str, list[float]] = {"original": [], "nsr": []}
    for _ in range(REPEATS):
        outcomes = []
        for name, attack in (("original", original), ("nsr", AutoAttack(epsilon=EPSILON))):
            started = time.perf_counter()
            adversarial = attack(net, images, labels)
            seconds[name].append(round(time.perf_counter() - started, 2))
            outcomes.append(net(adversarial).argmax(1) == labels)
        assert torch.equal(*outcomes), "nsr's AutoAttack differs from the original"
    clean = median(evaluation_seconds(checkpoint, "test_attacks=[clean]") for _ in range(REPEATS))
    row = {
        "default_attacks_500_digits_s": [round(evaluation_seconds(checkpoint) - clean, 1) for _ in range(REPEATS)],
        "autoattack_images": count,
        "autoattack_s": seconds,
        "ratio": round(median(seconds["nsr"]) / median(seconds["original"]), 3),
        "robust": int(outcomes[0].sum()),
        "pyautoattack": installed("pyautoattack"),
    }
    append_row("evaluation", row)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 250)
