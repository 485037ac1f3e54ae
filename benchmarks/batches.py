"""What filling up PGD's batches would gain in evaluations: the sizes they shrink to, the time of an image by size.

    python -m benchmarks.batches ROUNDS WORDS...        such as 5 checkpoint=zoo:digits_pgd

WORDS are those of evaluate.py. With performance=auto PGD drops the images that have fallen from their batch. Other
images in their place would leave the number of image passes as it is: they can gain only what an image costs less in a
full batch. That cost is measured, a forward and a backward pass with BatchNorm folded, sizes taking turns in each of
ROUNDS rounds, processor time of one thread. `gain` is the fraction of the time of all passes that full batches would
save; `bound` that of the best size for all.
A row is appended to benchmarks/results/batches.jsonl.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import append_row
from benchmarks.evaluation import BATCH, make, measured_by
from benchmarks.step_times import CPU, spread
from nsr.app.job import Job, quiet_lightning
from nsr.app.machine import keep_freed_memory
from nsr.attacks.folding import foldable_pairs
from nsr.compare import exit_code
from nsr.evaluation.search import Search
from nsr.modes import frozen_parameters, full_precision

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, BATCH)
TOGETHER = 64  # images that are timed at once, at least


def attacked(job: Job, images: Tensor, labels: Tensor, places: Tensor) -> tuple[list[int], int]:
    """Sizes of the batches of the search's passes with gradients, and the number of robust images."""
    sizes: list[int] = []

    def note(module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(arguments[0]))

    handle, robust = job.module.net.register_forward_pre_hook(note), 0
    outcomes = measured_by(job, "pgd", job.suite.search)
    for part in torch.arange(len(images)).split(BATCH):
        robust += int(outcomes(images[part], labels[part], places[part]).sum())
    handle.remove()
    return sizes, robust


def image_costs(net: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> dict[int, dict[str, float]]:
    """{batch size: milliseconds of an image's forward and backward pass}."""
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    with Search(foldable_pairs(net, images[:2])).passes(net), frozen_parameters(net):
        for number in range(rounds + 1):  # the first one warms up
            for size in SIZES:
                repeats, started = -(-TOGETHER // size), time.process_time()
                for _ in range(repeats):
                    leaf = images[:size].clone().requires_grad_()
                    torch.autograd.grad(cross_entropy(net(leaf), labels[:size], reduction="sum"), leaf)
                if number:
                    times[size].append(1000 * (time.process_time() - started) / (repeats * size))
    return {size: spread(values) for size, values in times.items()}


def gains(sizes: Sequence[int], costs: dict[int, dict[str, float]]) -> dict[str, float]:
    """Fractions of the time of passes over `sizes` images that full batches, and those of the best size, would save."""
    middle = [costs[size]["median"] for size in SIZES]
    shrunk = np.dot(sizes, np.interp(np.log(sizes), np.log(SIZES), middle)) / np.sum(sizes)
    return {"gain": round(float(1 - middle[-1] / shrunk), 3), "bound": round(float(1 - min(middle) / shrunk), 3)}


def measure(rounds: int, words: list[str]) -> dict[str, Any]:
    """A row: the sizes of batches, the costs of an image and the gains by network."""
    job = make(["test_attacks=[clean,pgd]", *words, "performance=auto", "channels_last=auto"])
    data, attack = job.data.test_set, job.suite.attacks["pgd"]
    images = torch.stack([data[index][0] for index in range(len(data))])
    labels, chosen = data.labels, job.data.test_places
    sizes, robust = attacked(job, images, labels, torch.arange(len(labels)) if chosen is None else chosen)
    costs = image_costs(job.module.net, images, labels, rounds)
    return {
        "network": job.settings["checkpoint"],
        "title": attack.title,
        "epsilon": job.settings["epsilon"],
        "images": len(images),
        "robust": robust,
        "batch_sizes": sizes,
        "image_ms": costs,
        **gains(sizes, costs),
        "load": os.getloadavg()[0],
    }


def main(rounds: str, *words: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as performance=auto
    quiet_lightning()
    with full_precision(CPU):
        append_row("batches", measure(int(rounds), list(words)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(*sys.argv[1:])))
