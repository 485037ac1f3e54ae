"""Training killed at drawn points and resumed: the records and weights of a run that was not killed.

    python -m tests.endurance.training [SEED] [ROUNDS]

Five kinds of points take turns; where in the run, the seed draws. The run ends itself there with SIGKILL and `python
train.py resume=DIRECTORY` resumes it. The result goes to benchmarks/results/endurance_training.json; exit code 1 where
a point was not hit or a run differs.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.endurance.points import ATTACK, CHECKPOINT, EPOCH_END, OPTIMIZER, VALIDATION, Point
from tests.endurance.results import command, run_main, write_rounds

ROUNDS = 20
EPOCHS, STEPS, GRADIENT_STEPS = 3, 8, 4
VALIDATION_BATCHES, VALIDATION_GRADIENT_STEPS = 4, 2
SETTINGS = (
    *("data=digits", "data.augmentation=crop_flip", "data.validation_images=200", "data.evaluation_batch_size=50"),
    *("logger=csv", "trainer.accelerator=cpu", f"trainer.max_epochs={EPOCHS}", f"trainer.limit_train_batches={STEPS}"),
    *("model.width=8", "callbacks=[ema]", "callbacks.ema.decay=0.7", f"train_attack.steps={GRADIENT_STEPS}"),
    *(f"validation_attack.steps={VALIDATION_GRADIENT_STEPS}", "test_attacks.pgd.steps=2", "pictures=false"),
)
RECORDS = ("metrics.csv", "sensitivity.csv", "layers.csv", "metrics.json", "checks.json", "images.csv")
CHECKPOINT_PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "nsr_place", "callbacks")
SECONDS = 600.0  # that a process may take
KINDS = (ATTACK, OPTIMIZER, CHECKPOINT, VALIDATION, EPOCH_END)


def environment(point: Point | None = None) -> dict[str, str]:
    """One thread, so that sums are in the same order wherever they are made."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **(point.environment() if point else {})}


def run(*overrides: str, point: Point | None = None) -> subprocess.CompletedProcess[str]:
    """Run train.py to its end, or to its point."""
    words, settings = command("train.py", *overrides), {"env": environment(point), "timeout": SECONDS}
    return subprocess.run(words, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]


def draw(kind: str, draws: random.Random, log: Path) -> Point:
    """A point of this kind, each place of the run as likely as another."""
    epoch, step, moment = draws.randint(1, EPOCHS), 0, ""
    if kind == ATTACK:
        step, moment = draws.randrange(STEPS), f"gradient step {draws.randint(1, GRADIENT_STEPS)}"
    elif kind == OPTIMIZER:
        step = draws.randrange(STEPS)
    elif kind == CHECKPOINT:
        name = "best.ckpt" if epoch == 1 else "previous.ckpt"  # the first epoch is the best so far
        moment = draws.choice(("half written", "written", f"before {name}", f"{name} linked", "before last.ckpt"))
    elif kind == VALIDATION:
        epoch, step = draws.randint(0, EPOCHS), draws.randrange(VALIDATION_BATCHES)
        moment = f"gradient step {draws.randint(1, VALIDATION_GRADIENT_STEPS)}"
    else:
        parts = [f"{name} {part}" for name in RECORDS[:3] for part in ("half written", "written")]
        moment = draws.choice((*parts, "recorded"))
    return Point(kind, epoch, step, moment, log=str(log))


def contents(directory: Path) -> dict[str, str]:
    """{file, or part of a checkpoint: checksum of its bytes}."""
    found = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in RECORDS}
    for name in ("best.ckpt", "last.ckpt"):
        saved = torch.load(directory / "checkpoints" / name, weights_only=True)
        saved["callbacks"].pop("RunRecords", None)  # seconds
        for part in CHECKPOINT_PARTS:
            found[f"{name} {part}"] = hashlib.sha256(b"".join(_bytes(saved.get(part)))).hexdigest()
    return found


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


def kill_and_resume(point: Point, directory: Path, expected: dict[str, str]) -> dict[str, Any]:
    """One round: {"hit": ..., "passed": ..., and what else helps to find a mistake}."""
    started = time.perf_counter()
    first = run(*SETTINGS, f"hydra.run.dir={directory}", point=point)
    hit = first.returncode == -9 and point.hits() == [point.place]
    second = run(f"resume={directory}")
    different = [second.stderr.strip()[-500:] or "did not finish"]
    if second.returncode == 0:
        found = contents(directory)
        different = [name for name, checksum in expected.items() if found[name] != checksum]
    seconds = round(time.perf_counter() - started, 1)
    return {**point.place, "hit": hit, "passed": hit and not different, "different": different, "seconds": seconds}


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
            point = draw(KINDS[number % len(KINDS)], draws, folder / f"hit{number}.txt")
            rows.append(kill_and_resume(point, folder / f"run{number}", expected))
            print(rows[-1], flush=True)
    return write_rounds("training", seed, rows)


if __name__ == "__main__":
    run_main(main, ROUNDS)
