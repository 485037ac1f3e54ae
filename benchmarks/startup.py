"""From the command to the first training step, beside a bare script that imports the same libraries and takes the step.

    python -m benchmarks.startup [ROUNDS]

train.py with its defaults on digits, without the validation before training, and a script of torch, pytorch_lightning
and hydra that builds the same network and takes one PGD-10 step; both end there. They take turns, ROUNDS times
(default 5), with compiled Python files, one thread each; a time is processor time, which other programs lengthen
little.
A row is appended to benchmarks/results/startup.jsonl.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl

from benchmarks.common import ROOT, append_row
from benchmarks.step_times import spread

SETTINGS = ("logger=csv", "trainer.accelerator=cpu", "report=false")
STOP = "+callbacks.stop._target_=benchmarks.startup.StopAfterFirstStep"
HEAVY = ("wandb", "pandas", "matplotlib", "sklearn", "scipy", "torchvision", "torchmetrics", "torch._dynamo")
BARE = """
import os

import hydra, pytorch_lightning, torch
from torch import nn
from torch.nn.functional import cross_entropy
from sklearn.datasets import load_digits

data = load_digits()
images = torch.tensor(data.images[:128, None] / 16, dtype=torch.float32)
labels = torch.tensor(data.target[:128])
layers, before = [], 1
for channels in (32, 64, 64):
    layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    layers += [nn.MaxPool2d(2)] if len(layers) < 8 else []
    before = channels
net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(net.parameters())
adversarial = images
for _ in range(10):
    adversarial = adversarial.detach().requires_grad_()
    gradient = torch.autograd.grad(cross_entropy(net(adversarial), labels), adversarial)[0]
    adversarial = (adversarial + 0.04 * gradient.sign()).clamp(images - 0.15, images + 0.15).clamp(0, 1)
cross_entropy(net(adversarial.detach()), labels).backward()
optimizer.step()
os._exit(0)  # as nsr's ends
"""


class StopAfterFirstStep(pl.Callback):
    """Leaves out the validation before training, ends the process and writes which heavy libraries it has imported."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.num_sanity_val_steps = 0

    def on_train_batch_end(self, *arguments: Any, **further: Any) -> None:
        Path(os.environ["NSR_STARTUP"]).write_text(" ".join(name for name in HEAVY if name in sys.modules))
        os._exit(0)


def processor_seconds(command: list[str], note: Path) -> float:
    """Processor time of a command and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NSR_STARTUP": str(note), "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    seconds: dict[str, list[float]] = {"nsr": [], "bare script": []}
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "imported"
        for number in range(rounds + 1):
            own = [*SETTINGS, STOP, f"hydra.run.dir={folder}/{number}"]
            commands = {"nsr": [str(ROOT / "train.py"), *own], "bare script": ["-c", BARE]}
            for name, command in commands.items():
                used = processor_seconds([sys.executable, *command], note)
                if number > 0:  # the first round compiles the Python files
                    seconds[name].append(round(used, 2))
        imported = note.read_text().split()
    row = {
        "processor_s": {name: spread(values) for name, values in seconds.items()},
        "ratio": round(median(seconds["nsr"]) / median(seconds["bare script"]), 3),
        "imported": imported,
        "rounds": rounds,
    }
    append_row("startup", row)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
