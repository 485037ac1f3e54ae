"""What several processes cost: an epoch of two beside one of the same total threads, and the way to the first step.

    python -m benchmarks.scale [ROUNDS]

One process on two threads and two processes (gloo) on one thread each train the small network on digits, the same
global batches, in turn, ROUNDS times (default 3). The ratio is of the medians over all epochs but each run's first.
The first step begins when epoch 0, the validation before training, is recorded; compiled Python files are there, as
after a first run. A row is appended to benchmarks/results/scale.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scale.jsonl"
EPOCHS = 5
SHARED = ("logger=csv", f"trainer.max_epochs={EPOCHS}", "attacks=[clean]", "data.batch_size=128")
RUNS = {"one": ("2", ("trainer.accelerator=cpu",)), "two": ("1", ("trainer=ddp_cpu",))}  # {name: (threads, overrides)}


def run(name: str) -> tuple[list[float], float]:
    """Seconds of each epoch but the first, and of the way from the command to the first step."""
    threads, overrides = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "train.py"), *SHARED, *overrides, f"hydra.run.dir={directory}"]
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
    run("two")  # so that no Python file is left to compile
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
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
