"""Training killed at twenty drawn points, each run continued: the records and weights of one that was not killed.

    python -m tests.soak.training [SEED] [ROUNDS]

The five kinds of points take turns; where in the run, the seed draws. tests/soak/killed.py ends itself there with
SIGKILL, `python train.py resume=DIRECTORY` goes on. The result goes to benchmarks/results/soak_training.json; exit code
1 where a point was not hit or a run differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.soak.killed import ROOT, Point
from tests.soak.results import write_rounds

ROUNDS = 20
EPOCHS, STEPS, GRADIENT_STEPS = 3, 8, 4
VALIDATION_BATCHES = 4
SETTINGS = (
    *("data=digits", "data.augmentation=crop_flip", "data.validation_images=200", "data.evaluation_batch_size=50"),
    *("logger=csv", "trainer.accelerator=cpu", f"trainer.max_epochs={EPOCHS}", f"trainer.limit_train_batches={STEPS}"),
    *("model.width=8", "callbacks=[ema]", "callbacks.ema.decay=0.7", f"attack.steps={GRADIENT_STEPS}"),
    *("validation_attack.steps=2", "suite.pgd.steps=2"),
)
RECORDS = ("metrics.csv", "sensitivity.csv", "layers.csv", "metrics.json", "alarms.json", "images.csv")
OF_A_CHECKPOINT = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "nsr_place")
SECONDS = 600.0  # that a process may take


def command(program: str, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / program), *overrides]


def environment(point: Point | None = None) -> dict[str, str]:
    """One thread: sums in the same order wherever they are made."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **(point.to_environment() if point else {})}


def run(*overrides: str, point: Point | None = None) -> subprocess.CompletedProcess[str]:
    """train.py to its end, or killed.py to its point."""
    program = "train.py" if point is None else "tests/soak/killed.py"
    return subprocess.run(
        command(program, *overrides),
        env=environment(point),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def drawn(kind: str, draws: random.Random, log: Path) -> Point:
    """A point of this kind, each place of the run as likely as another."""
    epoch, step, moment = draws.randint(1, EPOCHS), 0, ""
    if kind == "inside an attack":
        step, moment = draws.randrange(STEPS), f"gradient step {draws.randint(1, GRADIENT_STEPS)}"
    elif kind == "between backward and optimizer step":
        step = draws.randrange(STEPS)
    elif kind == "while a checkpoint file is open":
        further = "best.ckpt" if epoch == 1 else "previous.ckpt"  # the first epoch is the best so far
        moments = ("half written", "written", f"before {further}", f"{further} linked", "before last.ckpt")
        moment = draws.choice(moments)
    elif kind == "in validation":
        epoch, step = draws.randint(0, EPOCHS), draws.randrange(VALIDATION_BATCHES)
    else:
        parts = ("half written", "written")
        moments = (*(f"{name} {part}" for name in RECORDS[:3] for part in parts), "recorded")
        moment = draws.choice(moments)
    return Point(kind, epoch, step, moment, log=str(log))


SOAKED = (
    "inside an attack",
    "between backward and optimizer step",
    "while a checkpoint file is open",
    "in validation",
    "at an epoch's end",
)


def contents(directory: Path) -> dict[str, str]:
    """{file, or part of a checkpoint: checksum of its bytes}."""
    told = {name: _checksum([(directory / name).read_bytes()]) for name in RECORDS}
    for name in ("best.ckpt", "last.ckpt"):
        saved = torch.load(directory / "checkpoints" / name, weights_only=True)
        told |= {f"{name} {part}": _checksum(_bytes(saved[part])) for part in OF_A_CHECKPOINT}
    return told


def _bytes(content: Any) -> Iterator[bytes]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield repr(key).encode()
            yield from _bytes(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _bytes(value)
    elif isinstance(content, torch.Tensor):
        yield f"{content.dtype} {list(content.shape)}".encode()
        yield content.contiguous().numpy().tobytes()
    else:
        yield repr(content).encode()


def _checksum(parts: Any) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def hits(point: Point) -> list[dict[str, Any]]:
    """The points that its process has reached."""
    log = Path(point.log)
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def killed_and_continued(point: Point, directory: Path, expected: dict[str, str], *overrides: str) -> dict[str, Any]:
    """One round: {"hit": ..., "equal": ..., and what else is to be known of it}."""
    started = time.perf_counter()
    first = run(*SETTINGS, *overrides, f"hydra.run.dir={directory}", point=point)
    row = {"kind": point.kind, "epoch": point.epoch, "step": point.step, "moment": point.moment}
    hit = first.returncode == -9 and hits(point) == [row]
    second = run(f"resume={directory}")
    told = [line for line in second.stdout.splitlines() if line.startswith(("going on", "beginning"))]
    different = [second.stderr.strip()[-500:] or "did not finish"]
    if second.returncode == 0:
        found = contents(directory)
        different = [name for name, checksum in expected.items() if found[name] != checksum]
    return {
        **row,
        "hit": hit,
        "went_on_from": told[0].split()[-1] if told and told[0].startswith("going on") else "the beginning",
        "equal": hit and not different,
        "different": different,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(seed: int, rounds: int) -> int:
    draws = random.Random(seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = run(*SETTINGS, f"hydra.run.dir={folder / 'whole'}")
        if whole.returncode != 0:
            raise SystemExit(f"the run that nothing interrupts failed: {whole.stderr}")
        expected = contents(folder / "whole")
        for number in range(rounds):
            point = drawn(SOAKED[number % len(SOAKED)], draws, folder / f"hit{number}.txt")
            rows.append(killed_and_continued(point, folder / f"run{number}", expected))
            print(rows[-1], flush=True)
    return write_rounds("training", seed, rows, good="equal")


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0] if given else 0, given[1] if len(given) > 1 else ROUNDS))
