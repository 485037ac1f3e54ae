"""Whether performance=auto changes a training as rounding does: off, auto, and off from other initial weights.

    python -m benchmarks.rounding [FIRST_SEED LAST_SEED]

Each seed trains a small network on digits three times: with performance=off, with performance=auto, and, the control,
with performance=off from initial weights that are each one unit in the last place away. A row of each seed is appended
to benchmarks/results/rounding.jsonl: accuracies on the test images, and how far the weights and the outcomes of single
images under PGD are from those of performance=off.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.common import append_row

EPOCHS = 6
COMMON = (
    *("data=digits", "model.width=8", "logger=csv", "report=false", "trainer.accelerator=cpu"),
    *(f"trainer.max_epochs={EPOCHS}", "test_attacks=[clean,pgd]", "test_attacks.pgd.steps=20"),
)
ARMS = {
    "off": ("performance=off",),
    "auto": ("performance=auto",),
    "control": ("performance=off", "+callbacks.nudge._target_=benchmarks.rounding.NudgedWeights"),
}
SEEDS = (200, 205)
CONTEXT = multiprocessing.get_context("fork")  # a child inherits what this process has imported


class NudgedWeights(pl.Callback):
    """Moves each parameter one unit in the last place before training, up or down in turn."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        nudge(dict(pl_module.named_parameters()))


def nudge(parameters: Mapping[str, Tensor]) -> None:
    """Move each value one unit in the last place, in place."""
    with torch.no_grad():
        for parameter in parameters.values():
            towards = torch.full((parameter.numel(),), torch.inf)
            towards[::2] = -torch.inf
            parameter.copy_(parameter.nextafter(towards.to(parameter).view_as(parameter)))


def train(arm: str, seed: int, directory: Path) -> None:
    """Run train.py in a child process."""
    overrides = (*COMMON, *ARMS[arm], f"seed={seed}", f"hydra.run.dir={directory}")
    child = CONTEXT.Process(target=_child, args=(overrides,))
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(f"error: {arm} of seed {seed} ended with exit code {child.exitcode}")


def _child(overrides: tuple[str, ...]) -> None:
    from nsr.app import main

    sys.argv = ["train.py", *overrides]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main.train()


def outcome(directory: Path) -> tuple[dict[str, float], Tensor, pandas.DataFrame]:
    """Return test accuracies of the best epoch, all weights of the last one as one vector, and images.csv."""
    metrics = json.loads((directory / "metrics.json").read_text())
    accuracies = {name: metrics[f"test/{name}_accuracy"] for name in ("clean", "pgd")}
    state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = [
        values.double().flatten()
        for name, values in state.items()
        if name.startswith("net.") and values.is_floating_point()
    ]
    return accuracies, torch.cat(weights), pandas.read_csv(directory / "images.csv")


def compare(seed: int, folder: Path) -> dict[str, Any]:
    """Return the row of a seed."""
    for arm in ARMS:
        train(arm, seed, folder / arm)
    found = {arm: outcome(folder / arm) for arm in ARMS}
    _, weights, images = found["off"]
    row: dict[str, Any] = {"seed": seed, "epochs": EPOCHS, "images": len(images)}
    for arm, (accuracies, own, outcomes) in found.items():
        row[arm] = dict(accuracies)
        if arm != "off":
            row[arm]["weights_from_off"] = round(float((own - weights).norm() / weights.norm()), 6)
            row[arm]["outcomes_from_off"] = int((outcomes["pgd"] != images["pgd"]).sum())
    return row


def main(first: int, last: int) -> None:
    import matplotlib.backends.backend_pdf  # noqa: F401

    import nsr.app.train  # noqa: F401

    for seed in range(first, last + 1):
        with tempfile.TemporaryDirectory() as folder:
            append_row("rounding", compare(seed, Path(folder)))


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else SEEDS))
