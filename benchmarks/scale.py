"""Cost of several processes: an epoch of two beside one of the same total threads, and the time to the first step.

    python -m benchmarks.scale [ROUNDS]

One process on two threads and two processes (gloo) on one thread each train the small network on digits, with the same
global batches, in turn, ROUNDS times (default 3). The ratio is of the medians over all epochs but each run's first.
The first step starts when epoch 0, the validation before training, is recorded; compiled Python files exist, as after
a first run. A row is appended to benchmarks/results/scale.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.common import ROOT, append_row

SETTINGS = ("logger=csv", "trainer.max_epochs=5", "test_attacks=[clean]", "data.batch_size=128")
RUNS = {"one": ("2", "trainer.accelerator=cpu"), "two": ("1", "trainer=ddp_cpu")}  # {name: (threads, override)}


def run(name: str) -> tuple[list[float], float]:
    """Seconds of each epoch but the first, and from the command to the first step."""
    threads, override = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "train.py"), *SETTINGS, override, f"hydra.run.dir={directory}"]
        started = time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (directory / "metrics.csv").exists() and process.poll() is None:
            time.sleep(0.01)
        first_step = time.time() - started
        _, error = process.communicate()
        if process.returncode != 0:
            raise SystemExit(error.decode())
        return json.loads((directory / "timing.json").read_text())["epochs"][1:], first_step


def main(rounds: int) -> None:
    epochs: dict[str, list[float]] = {name: [] for name in RUNS}
    first_steps: dict[str, list[float]] = {name: [] for name in RUNS}
    run("two")  # compiles the Python files
    for _ in range(rounds):
        for name in RUNS:
            seconds, first_step = run(name)
            epochs[name] += seconds
            first_steps[name].append(round(first_step, 2))
    row = {
        "epoch_s": {name: sorted(seconds) for name, seconds in epochs.items()},
        "ratio": round(median(epochs["two"]) / median(epochs["one"]), 3),
        "first_step_s": first_steps,
        "rounds": rounds,
    }
    append_row("scale", row)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
