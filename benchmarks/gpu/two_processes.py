"""Two processes on one GPU, with bf16, compilation and SNS, beside one process: the same global batches, no hang.

NCCL refuses two processes on one device, so they speak through gloo. Lightning gives each process of a machine a device
of its own; here each process is a machine of its own to torchrun, and both find device 0.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from benchmarks.gpu.commands import epochs_of, run_side_by_side, what_failed
from benchmarks.gpu.given import ROOT, Given, Report, Sizes, check_packages

PACKAGES = ("hydra", "omegaconf", "rich", "scipy", "matplotlib")
CLASSES = 4
EPOCHS = 2

Commands = dict[str, list[str]]  # {name: command}
# images, folder in which the runs one_process and two_processes are made, whether on a GPU -> what is run
CommandsOf = Callable[[Path, Path, bool], Commands]


def measure(given: Given, report: Report, commands_of: CommandsOf | None = None) -> None:
    check_packages(*PACKAGES)
    on_gpu = torch.cuda.is_available()
    if commands_of is None:
        commands_of = training_commands
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", given.sizes)
        commands = commands_of(folder / "images", folder, on_gpu)
        # all at once: it is asked whether they finish and where they arrive, not how fast
        finished = run_side_by_side(
            commands,
            folder / "outputs",
            seconds=given.left() - 15,
            variables={"GLOO_SOCKET_IFNAME": "lo"},  # a machine without network may not find its own name
        )
        report("seconds_of", {name: row.seconds for name, row in finished.items()})
        runs = {run: epochs_of(folder / run) for run in ("one_process", "two_processes")}
        for run, epochs in runs.items():
            report(run, epochs)
    if (failed := what_failed(finished)) is not None:
        report("failed", failed)
        return
    report("largest_differences", largest_differences(runs["one_process"], runs["two_processes"]))
    if len(runs["two_processes"]) != len(runs["one_process"]) or not runs["two_processes"]:
        report("failed", "the runs have not the same epochs in their metrics.csv")


def training_commands(images: Path, folder: Path, on_gpu: bool) -> Commands:
    """One run as it is, and the two nodes of another: the same settings but for the trainer."""
    shared = shared_overrides(images, on_gpu)
    # gloo on a GPU is no default of anybody's: Lightning would take nccl
    trainer = ["trainer=ddp", "trainer.strategy.process_group_backend=gloo"] if on_gpu else ["trainer=ddp_cpu"]
    alone = [] if on_gpu else ["trainer.accelerator=cpu"]
    program = str(ROOT / "train.py")
    one = [sys.executable, program, *shared, *alone, f"hydra.run.dir={folder / 'one_process'}"]
    return {"one_process": one, **nodes([program, *trainer, *shared, f"hydra.run.dir={folder / 'two_processes'}"])}


def shared_overrides(images: Path, on_gpu: bool) -> list[str]:
    """What both runs have; data.batch_size is that of all processes together."""
    return [
        *("data=image_folder", f"data.root={images}", "data.batch_size=16", "data.validation_images=0.25"),
        *("data.evaluation_batch_size=32", "data.augmentation=none", "model=small_cnn", "model.width=16"),
        *("objective=pgd", "stabilizer=sns", "attack.steps=3", "attack.random_start=false", "attacks=[clean]"),
        *("validation_attack.steps=3", f"trainer.max_epochs={EPOCHS}", "logger=csv"),
        *(("trainer.precision=bf16-mixed", "compile=true") if on_gpu else ()),
    ]


def nodes(program: list[str]) -> Commands:
    """torchrun's two nodes of one process each, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=0"]
    torchrun += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    return {f"two_processes_node{rank}": [*torchrun, f"--node-rank={rank}", *program] for rank in range(2)}


def write_images(root: Path, sizes: Sizes) -> None:
    """An image folder of coloured noise, whose classes can be told apart."""
    draws = numpy.random.default_rng(0)
    colours = draws.integers(60, 196, (CLASSES, 3))
    for split, count in (("train", sizes.process_images), ("test", sizes.process_images // 4)):
        for number in range(count):
            label = number % CLASSES
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = draws.integers(-60, 60, (sizes.image_size, sizes.image_size, 3))
            Image.fromarray((colours[label] + noise).astype(numpy.uint8)).save(folder / f"{number:04}.png")


def largest_differences(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> dict[str, float]:
    """{figure: the largest difference over the epochs that both have}."""
    pairs = list(zip(one, two, strict=False))
    return {
        name: max((abs(a[name] - b[name]) for a, b in pairs if None not in (a[name], b[name])), default=0.0)
        for name in ("loss", "clean_accuracy", "robust_accuracy")
    }
