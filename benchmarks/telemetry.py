"""What telemetry costs: the share of a run's epochs that goes into SensitivityLogger, for each dashboard.

    python -m benchmarks.telemetry [EPOCHS]

The default experiment on digits, whose epochs are short: the worst case. The seconds are those between entering and
leaving the callback after each validation, pictures among them; `end` is the last picture, drawn once a run. A row a
dashboard is appended to benchmarks/results/telemetry.jsonl.
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

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "telemetry.jsonl"


def run(logger: str, epochs: int) -> dict[str, float]:
    """Seconds of one run: in the callback, in the epochs, at the end."""
    from nsr.app.train import train
    from nsr.callbacks import SensitivityLogger
    from tests.conftest import job

    seconds = {"on_validation_end": 0.0, "on_fit_end": 0.0}
    with tempfile.TemporaryDirectory() as name:

        def timed(hook: str):
            original = getattr(SensitivityLogger, hook)

            def call(self, *arguments):
                started = time.perf_counter()
                original(self, *arguments)
                seconds[hook] += time.perf_counter() - started

            return original, call

        originals = {}
        for hook in seconds:
            originals[hook], replacement = timed(hook)
            setattr(SensitivityLogger, hook, replacement)
        try:
            train(job("train", Path(name) / "run", f"logger={logger}", f"trainer.max_epochs={epochs}"))
        finally:
            for hook, original in originals.items():
                setattr(SensitivityLogger, hook, original)
        epochs_s = sum(json.loads((Path(name) / "run" / "timing.json").read_text())["epochs"])
    return {"epochs_s": epochs_s, "telemetry_s": seconds["on_validation_end"], "end_s": seconds["on_fit_end"]}


def main(epochs: int) -> None:
    os.environ["WANDB_MODE"] = "offline"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for logger in ("csv", "tensorboard", "wandb"):
        seconds = {name: round(value, 3) for name, value in run(logger, epochs).items()}
        row = {
            "logger": logger,
            "epochs": epochs,
            **seconds,
            "share": round(seconds["telemetry_s"] / seconds["epochs_s"], 4),
            "threads": torch.get_num_threads(),
            "machine": platform.platform(),
            "commit": commit.strip(),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
