"""Cost of SensitivityLogger: its fraction of the epochs' time, for each logger.

    python -m benchmarks.sensitivity_logger [EPOCHS]

The default experiment on digits, whose epochs are short: the worst case. `logging_s` is the time inside the callback
after each validation, plots included; `end_s` is the last plot, drawn once a run. A row for each logger is appended to
benchmarks/results/sensitivity_logger.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, append_row

# train.py with the two hooks of the callback timed; argv: file for the seconds, then train.py's arguments
TIMED = """
import json, runpy, sys, time
from nsr.callbacks import SensitivityLogger

def time_hook(name, seconds):
    original = getattr(SensitivityLogger, name)

    def timed(*arguments):
        started = time.perf_counter()
        original(*arguments)
        seconds[name] += time.perf_counter() - started

    setattr(SensitivityLogger, name, timed)

program, out = "train.py", sys.argv.pop(1)
seconds = {"on_validation_end": 0.0, "on_fit_end": 0.0}
for name in seconds:
    time_hook(name, seconds)
sys.argv[0] = program
try:
    runpy.run_path(program, run_name="__main__")
finally:
    open(out, "w").write(json.dumps(seconds))
"""


def main(epochs: int) -> None:
    for logger in ("csv", "tensorboard", "wandb"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            overrides = [f"logger={logger}", f"trainer.max_epochs={epochs}", f"hydra.run.dir={folder / 'run'}"]
            command = [sys.executable, "-c", TIMED, str(folder / "seconds.json"), *overrides]
            environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
            seconds = json.loads((folder / "seconds.json").read_text())
            epochs_s = sum(json.loads((folder / "run" / "timing.json").read_text())["epochs"])
        logging_s, end_s = round(seconds["on_validation_end"], 3), round(seconds["on_fit_end"], 3)
        row = {"logger": logger, "epochs": epochs, "epochs_s": round(epochs_s, 3), "logging_s": logging_s}
        append_row("sensitivity_logger", {**row, "end_s": end_s, "fraction": round(logging_s / epochs_s, 4)})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
