"""Resident memory of long trainings: after the first epochs it stays as it is.

    python -m tests.endurance.memory [SEED] [ROUNDS]

The rounds take turns through the settings below. A callback reads the process's resident memory after every epoch; the
mean of the last ten epochs may exceed that of epochs 6 to 15 by 2 %. The result goes to
benchmarks/results/endurance_memory.json; exit code 1 where memory grows.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl

from tests.endurance.results import command, run_main, write_rounds

EPOCHS = 40
GROWTH = 0.02
COMMON = (
    *("data=digits", "logger=csv", "trainer.accelerator=cpu", f"trainer.max_epochs={EPOCHS}"),
    *("model.width=8", "validation_attack.steps=3", "test_attacks=[clean]", "report=false"),
)
RUNS = {
    "sns": ("train_attack.steps=3", "stabilizer=sns"),
    "free": ("objective=free", "stabilizer=none", f"trainer.max_epochs={4 * EPOCHS}"),  # divided by its 4 replays
    "averages": ("train_attack.steps=3", "callbacks=[ema]", "stabilizer=none"),
    "tensorboard": ("train_attack.steps=3", "logger=tensorboard", "stabilizer=none"),
}


class ResidentMemory(pl.Callback):
    """Append the resident memory in MB to `path` after every epoch, validation included."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self.path.open("a") as file:
            file.write(f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.1f}\n")


def train(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One round: {"passed": ..., "mb": resident memory after each epoch, and what else helps to find a mistake}."""
    started, path = time.perf_counter(), folder / "memory.txt"
    callback = (
        "+callbacks.memory._target_=tests.endurance.memory.ResidentMemory",
        f"+callbacks.memory.path={path}",
    )
    words = command("train.py", *COMMON, *RUNS[name], *callback, f"seed={seed}", f"hydra.run.dir={folder / 'run'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    resident = [float(line) for line in path.read_text().splitlines()] if path.exists() else []
    complete = found.returncode == 0 and len(resident) == EPOCHS
    growth = fmean(resident[-10:]) / fmean(resident[5:15]) - 1 if complete else float("nan")
    return {
        "settings": name,
        "passed": complete and growth <= GROWTH,
        "growth": round(growth, 4),
        "mb": resident,
        "error": found.stderr.strip()[-500:] if found.returncode else "",
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(seed: int, rounds: int) -> int:
    rows = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(train(list(RUNS)[number % len(RUNS)], seed, Path(folder)))
            print(rows[-1], flush=True)
    return write_rounds("memory", seed, rows)


if __name__ == "__main__":
    run_main(main, len(RUNS))
