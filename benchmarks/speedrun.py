"""Accuracy against training time: a speedrun recipe beside PGD-10 training in float32 with performance=off.

    python -m benchmarks.evidence speedrun_fashion_mnist     the runs
    python -m benchmarks.performance_page                    their part of docs/performance.md

The plans speedrun_*.yaml give both recipes as many tuning runs. Training seconds are those of the steps, without
validation: processor time of one thread, on a GPU the time that passed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.common import interval, table, wrapped
from benchmarks.evidence.choice import robust, tuned
from benchmarks.evidence.findings import Study, accuracy, contrast, study

PLANS = ("speedrun_fashion_mnist",)
SPEEDRUN, BASELINE = "speedrun", "pgd10"
FILE = "training_seconds.json"
GOAL = 0.25  # of the baseline's training time, at which the interval's lower end is to lie above MARGIN
MARGIN = -1.0  # points


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


def section() -> list[str]:
    """Return the part of docs/performance.md."""
    return [line for name in PLANS for line in _of_plan(study(name))]


def _of_plan(one: Study) -> Iterator[str]:
    runs = {name: one.arm(name, "none") for name in (BASELINE, SPEEDRUN)}
    yield from wrapped(verdict(one))
    yield ""
    lines = []
    for name, own in runs.items():
        for row in sorted(tuned(one.finished, name, "none"), key=lambda row: row["training_seconds"]):
            lines.append(
                [name, row["setting"], f"{row['training_seconds']:.0f}", f"{100 * robust(row):.1f}", "", "", ""]
            )
        if own:
            means = [fmean(accuracy(row, attack) for row in own.values()) for attack in ("clean", "worst_case")]
            validated = fmean(100 * robust(row) for row in own.values())
            spent = fmean(row["training_seconds"] for row in own.values())
            figures = [f"{spent:.0f}", f"{validated:.1f}", *(f"{mean:.1f}" for mean in means)]
            lines.append([name, f"chosen, mean of {len(own)} seeds", *figures, f"{n_images(own)}"])
    columns = ["recipe", "settings", "training, s", "validation, PGD, %", "clean, %", "worst case, %", "test images"]
    yield from table(columns, lines)


def n_images(own: Any) -> int:
    return int(next(iter(own.values()))["best"]["n_images"])


def verdict(one: Study) -> str:
    """Say how far the plan is, and what its contrast shows of the goal."""
    speedrun, baseline = (one.arm(name, "none") for name in (SPEEDRUN, BASELINE))
    seeds, planned = sorted(speedrun.keys() & baseline.keys()), len(one.plan["confirm"]["seeds"])
    if len(seeds) < planned:
        return f"{one.plan['title']}: {len(seeds)} of {planned} pairs of runs are complete; nothing is concluded yet."
    found = contrast(speedrun, baseline)
    ratio = fmean(speedrun[seed]["training_seconds"] / baseline[seed]["training_seconds"] for seed in seeds)
    is_reached = ratio <= GOAL and found.low > MARGIN
    return (
        f"{one.plan['title']}: the speedrun takes {ratio:.2f} of the baseline's training time (goal {GOAL}); its worst "
        f"case is higher by {interval(found.difference, found.low, found.high)} points (mean over {found.n} paired "
        f"seeds, 95 % interval over seeds and images; goal: the lower end above {MARGIN:g}). The goal is "
        f"{'reached' if is_reached else 'missed'}."
    )
