"""Accuracy against training time: a speedrun recipe beside PGD-10 training in float32 with performance=off.

    python -m benchmarks.speedrun fashion_mnist 0,1 4 3,6 [WORDS]
    python -m benchmarks.speedrun cifar10 0 15 15 data=image_folder data.root=FOLDER     from a folder of images

The arguments: the data of experiment=speedrun_DATA, the seeds, the epochs of the speedrun and those of the baseline,
and further words of train.py for both. The baseline is experiment=DATA_pgd with the speedrun's network. Each run trains
and its checkpoint of the highest validated robust accuracy is evaluated under APGD-CE and APGD-T. A row is appended to
benchmarks/results/speedrun.jsonl; a run that has its row is not repeated. Seconds are those of training's steps:
processor time of one thread, on a GPU the time that passed. EVALUATION in the environment has further words of
evaluate.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.common import RESULTS, ROOT, append_row
from nsr.compare import exit_code
from nsr.errors import InputError, check_choice

SPEEDRUN, BASELINE = "speedrun", "pgd10"
FILE = "training_seconds.json"


def seconds() -> float:
    """Processor time of this process, which a busy machine does not change; with a GPU the time that passed."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class TrainingSeconds(pl.Callback):
    """Writes the seconds of all training steps so far into the run directory."""

    def __init__(self) -> None:
        self.total = self.started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = seconds()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        now = seconds()
        self.total, self.started = self.total + now - self.started, now
        Path(trainer.default_root_dir, FILE).write_text(json.dumps(self.total))


def words_of(arm: str, data: str) -> list[str]:
    """The words of train.py of an arm."""
    if arm == SPEEDRUN:
        return [f"experiment=speedrun_{data}"]
    network = "resnet20" if data == "cifar10" else "small_cnn"
    return [f"experiment={data}_pgd", f"model={network}", "performance=off", "trainer.precision=32-true"]


def call(program: str, *words: str) -> None:
    """Run a command of nsr with one thread; InputError with its last line where it fails."""
    command = [sys.executable, str(ROOT / f"{program}.py"), *words, "report=false", "pictures=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{program}.py {' '.join(words)} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )


def measure(arm: str, data: str, seed: int, epochs: int, words: list[str], evaluation: list[str]) -> dict[str, Any]:
    """Train and evaluate once; return the row."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        own = [*words_of(arm, data), *words, f"seed={seed}", f"trainer.max_epochs={epochs}", "logger=none"]
        own += ["test_attacks=[clean]", "+callbacks.seconds._target_=benchmarks.speedrun.TrainingSeconds"]
        call("train", *own, f"hydra.run.dir={run}")
        checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
        attacks = [
            "test_attacks=[clean,apgd_ce,apgd_t]",
            "sensitivity_attack.steps=1",
            "checks.enabled=false",
            *evaluation,
        ]
        call("evaluate", checkpoint, *attacks, f"hydra.run.dir={folder}/evaluation")
        found = json.loads((Path(folder) / "evaluation" / "evaluation.json").read_text())
        trained = json.loads((run / "metrics.json").read_text())
        images = sum(1 for _ in (Path(folder) / "evaluation" / "images.csv").open()) - 1
        accuracies = {name.removeprefix("test/"): value for name, value in found.items() if name.endswith("_accuracy")}
        return {
            **key(arm, data, seed, epochs, words),
            "training_s": round(json.loads((run / FILE).read_text()), 1),
            "validation_robust_accuracy": trained.get("validation/robust_accuracy"),
            "best_epoch": trained.get("best_epoch"),
            "test_images": images,
            **accuracies,
        }


def key(arm: str, data: str, seed: int, epochs: int, words: list[str]) -> dict[str, Any]:
    """What a row is found by."""
    return {"arm": arm, "data": data, "seed": seed, "epochs": epochs, "words": words}


def done(row: dict[str, Any]) -> bool:
    """Whether a run has its row."""
    path = RESULTS / "speedrun.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return any(row.items() <= {name: found.get(name) for name in row}.items() for found in rows)


def main(data: str, seeds: str, speedrun_epochs: str, baseline_epochs: str, *words: str) -> None:
    check_choice("the data", data, ("fashion_mnist", "cifar10"))
    lengths = {SPEEDRUN: speedrun_epochs, BASELINE: baseline_epochs}
    for seed in map(int, seeds.split(",")):
        for arm, epochs in ((arm, int(epochs)) for arm, own in lengths.items() for epochs in own.split(",")):
            if not done(key(arm, data, seed, epochs, list(words))):
                append_row(
                    "speedrun", measure(arm, data, seed, epochs, list(words), os.environ.get("EVALUATION", "").split())
                )


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(*sys.argv[1:])))
