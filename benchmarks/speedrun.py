"""Accuracy against training time: a speedrun recipe beside PGD-10 training in float32 with performance=off.

    python -m benchmarks.evidence speedrun_fashion_mnist     the runs of a plan
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
from benchmarks.evidence.findings import Contrast, Study, accuracy, contrast, study
from benchmarks.evidence.plan import LONGER

PLANS = ("speedrun_fashion_mnist", "speedrun_cifar10_jpeg")
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
    return [line for name in PLANS for line in (*_of_plan(study(name)), "")][:-1]


def _of_plan(one: Study) -> Iterator[str]:
    yield from (f"### {one.plan['title'].removesuffix(', time to a robust network')}", "")
    for text in verdicts(one):
        yield from (*wrapped(text), "")
    lines = []
    for name in (BASELINE, SPEEDRUN):
        for row in sorted(tuned(one.finished, name, "none"), key=lambda row: row["training_seconds"]):
            spent, validated = f"{row['training_seconds']:.0f}", f"{100 * robust(row):.1f}"
            lines.append([name, row["setting"], spent, validated, "", "", ""])
        for arm, said in {"none": "chosen", LONGER: "chosen, fewer steps"}.items():
            if own := one.arm(name, arm):
                means = [fmean(accuracy(row, attack) for row in own.values()) for attack in ("clean", "worst_case")]
                validated = f"{fmean(100 * robust(row) for row in own.values()):.1f}"
                spent = f"{fmean(row['training_seconds'] for row in own.values()):.0f}"
                images = str(next(iter(own.values()))["best"]["n_images"])
                figures = [spent, validated, *(f"{mean:.1f}" for mean in means), images]
                lines.append([name, f"{said}, mean of {len(own)} seeds", *figures])
    columns = ["recipe", "settings", "training, s", "validation, PGD, %", "clean, %", "worst case, %", "test images"]
    yield from table(columns, lines)


def ratio(one: Study, arm: str = "none") -> float:
    """Return the mean over seeds of the speedrun's training time over the baseline's."""
    runs = pairs(one, arm)
    return fmean(speedrun["training_seconds"] / baseline["training_seconds"] for speedrun, baseline in runs.values())


def pairs(one: Study, arm: str) -> dict[int, tuple[Any, Any]]:
    """Return {seed: (run of an arm of the speedrun, run of the baseline)}."""
    speedrun, baseline = one.arm(SPEEDRUN, arm), one.arm(BASELINE, "none")
    return {seed: (speedrun[seed], baseline[seed]) for seed in sorted(speedrun.keys() & baseline.keys())}


def minus_baseline(one: Study, arm: str) -> Contrast:
    """Return the difference of an arm's worst case from the baseline's at equal seeds, in percentage points."""
    return contrast(one.arm(SPEEDRUN, arm), one.arm(BASELINE, "none"))


def verdicts(one: Study) -> Iterator[str]:
    """Say in a paragraph each how far the plan is, and what each contrast shows of the goal."""
    planned = len(one.plan["confirm"]["seeds"])
    for arm, said in {"none": "the speedrun", LONGER: "the speedrun with fewer steps (added afterwards)"}.items():
        found = pairs(one, arm)
        if len(found) < planned:
            if arm == "none":
                yield f"{one.plan['title']}: {len(found)} of {planned} pairs of runs are complete."
            continue
        minus = minus_baseline(one, arm)
        spent = ratio(one, arm)
        reached = "reached" if spent <= GOAL and minus.low > MARGIN else "missed"
        yield (
            f"{one.plan['title']}: {said} takes {spent:.2f} of the baseline's training time (goal {GOAL}). The "
            f"difference of its worst case from the baseline's is {interval(minus.difference, minus.low, minus.high)} "
            f"points (mean over {minus.n} paired seeds, 95 % interval over seeds and images; goal: the lower end above "
            f"{MARGIN:g}). The goal is {reached}."
        )
