"""Attacks of an evaluation: by default, in bf16, as written, and AutoAttack's own script, on the same images.

    python -m benchmarks.evaluation ATTACK ROUNDS WORDS...
    python -m benchmarks.evaluation autoattack 1 checkpoint=zoo:digits_pgd evaluation.n_examples=200
    python -m benchmarks.evaluation pgd 1 model=resnet20 model.variant=projection_bias model.weights=FILE \
        model.normalization=none data=image_folder data.root=FOLDER epsilon=0.5/255 evaluation.n_examples=1000

ATTACK is one of test_attacks, WORDS are those of evaluate.py. The contenders take turns, ROUNDS times, on one thread;
times are processor time. The reference is pyautoattack as its README shows it, for other attacks performance=off.
Outcomes are compared image by image: `different` has the indices of the test images whose outcome is not the
reference's. A row is appended to benchmarks/results/evaluation.jsonl.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.common import append_row, installed
from nsr.app.composition import compose_checked, without_hydra
from nsr.app.job import Job, make_job, quiet_lightning
from nsr.app.parts import choose_images
from nsr.compare import exit_code
from nsr.evaluation.search import Batch, Search, attack_batch, classify
from nsr.modes import full_precision
from nsr.randomness import draw_seed

BATCH = 250
FAST, BF16, OFF, ORIGINAL = "nsr", "nsr, bf16", "performance=off", "original"
Outcomes = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, labels, their indices -> (image,) correctly classified


def make(words: list[str]) -> Job:
    """The parts of evaluate.py with these words, its test images chosen."""
    job = make_job(without_hydra(compose_checked("evaluate", ["checks.enabled=false", *words])), "evaluate")
    choose_images(job)
    job.module.eval()
    return job


def measured_by(job: Job, attack: str, search: Search | None) -> Outcomes:
    """An attack as the test measures it."""

    def outcomes(images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        def generators() -> list[Generator]:
            return [Generator().manual_seed(draw_seed(0, 1, place)) for place in places.tolist()]

        net = job.module.net
        clean = classify(net, images, labels, places)
        batch = Batch(net, images, labels, places, generators, search)
        return attack_batch(job.suite.attacks[attack], batch, clean)["correct"]

    return outcomes


def original(job: Job) -> Outcomes:
    """AutoAttack as its README shows it."""
    from pyautoattack import AutoAttack

    settings = job.settings["test_attacks"]["autoattack"]
    net, norm = job.module.net, {"linf": "Linf", "l2": "L2", "l1": "L1"}[settings["norm"]]

    def outcomes(images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        eps = job.suite.attacks["autoattack"].epsilon
        attack = AutoAttack(net, norm=norm, eps=eps, seed=settings["seed"], version="standard")
        adversarial = attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return classify(net, adversarial, labels, places)["correct"]

    return outcomes


def measure(attack: str, rounds: int, words: list[str]) -> dict[str, Any]:
    """A row: seconds of each round and outcomes of each contender."""
    words = [f"test_attacks=[clean,{attack}]", *words]
    fast = make([*words, "performance=auto", "channels_last=auto"])
    off = make([*words, "performance=off", "channels_last=false"])
    search = fast.suite.search
    assert search is not None
    contenders = {OFF: measured_by(off, attack, None), FAST: measured_by(fast, attack, search)}
    contenders[BF16] = measured_by(fast, attack, replace(search, precision="bf16"))
    reference = OFF
    if attack == "autoattack":
        contenders, reference = {ORIGINAL: original(off), FAST: contenders[FAST]}, ORIGINAL
    images = torch.stack([fast.data.test_set[index][0] for index in range(len(fast.data.test_set))])
    labels, chosen = fast.data.test_set.labels, fast.data.test_places
    places = torch.arange(len(labels)) if chosen is None else chosen
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    robust: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, outcomes in contenders.items():
            started, found = time.process_time(), []
            for part in torch.arange(len(images)).split(BATCH):
                found.append(outcomes(images[part], labels[part], places[part]))
            seconds[name].append(round(time.process_time() - started, 2))
            robust[name] = torch.cat(found)
            print(f"{name}: {seconds[name][-1]} s, {int(robust[name].sum())} robust", flush=True)
    different = {name: places[robust[name] != robust[reference]].tolist() for name in contenders if name != reference}
    return {
        "attack": attack,
        "title": fast.suite.attacks[attack].title,
        "network": fast.settings["checkpoint"] or os.path.basename(fast.settings["model"]["weights"]),
        "norm": fast.settings["norm"],
        "epsilon": fast.settings["epsilon"],
        "images": len(images),
        "clean": int(classify(off.module.net, images, labels, places)["correct"].sum()),
        "robust": {name: int(flags.sum()) for name, flags in robust.items()},
        "different": different,
        "processor_s": seconds,
        "ratio": {name: round(median(seconds[name]) / median(seconds[reference]), 3) for name in different},
        "load": os.getloadavg()[0],
        "pyautoattack": installed("pyautoattack"),
    }


def main(attack: str, rounds: str, *words: str) -> None:
    torch.set_num_threads(1)
    quiet_lightning()
    with full_precision(torch.device("cpu")):
        append_row("evaluation", measure(attack, int(rounds), list(words)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(*sys.argv[1:])))
