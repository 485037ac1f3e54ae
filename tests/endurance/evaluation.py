"""Evaluations killed at drawn moments and repeated: the same, image by image, as one that was not killed.

    python -m tests.endurance.evaluation [SEED] [ROUNDS]

Even rounds are killed as soon as a drawn part is in the result cache, odd ones up to half a second later, inside the
next part. The result goes to benchmarks/results/endurance_evaluation.json; exit code 1 where one differs.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.endurance.results import command, run_main, write_rounds

ROUNDS = 10
FILES = ("evaluation.json", "evaluation.csv", "images.csv", "sensitivity.csv")
TRAIN = ("data=digits", "logger=csv", "trainer.max_epochs=2", "trainer.accelerator=cpu", "model.width=8")
EVALUATE = (
    *("test_attacks=[clean,fgsm,pgd,uniform]", "test_attacks.pgd.steps=200", "data.evaluation_batch_size=50"),
    *("epsilon=0.1", "evaluation.n_examples=300", "checks.enabled=false", "trainer.accelerator=cpu"),
)
PARTS = 30  # of the evaluation: 6 batches of 4 attacks and the sensitivity


def run(program: str, directory: Path, *overrides: str) -> None:
    subprocess.run(command(program, *overrides, f"hydra.run.dir={directory}"), check=True, capture_output=True)


def kill_once(directory: Path, cache: Path, overrides: list[str], draws: random.Random, *, inside: bool) -> dict:
    """Start the evaluation, kill it after a drawn part and describe where it was."""
    wanted, wait = draws.randint(1, PARTS - 6), draws.uniform(0, 0.5) if inside else 0.0
    words = command("evaluate.py", *overrides, f"hydra.run.dir={directory}")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(cache.rglob("*/*.json"))) < wanted:
        if process.poll() is not None:
            raise SystemExit("an evaluation ended before it could be killed")
        time.sleep(0.005)
    time.sleep(wait)
    process.kill()
    process.wait()
    finished, partial = (len(list(cache.rglob(pattern))) for pattern in ("*/*.json", "*.partial"))
    return {"wanted": wanted, "waited_s": round(wait, 3), "finished": finished, "partial": partial}


def main(seed: int, rounds: int) -> int:
    draws = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("train.py", folder / "run", *TRAIN)
        overrides = [f"checkpoint={folder / 'run' / 'checkpoints' / 'best.ckpt'}", *EVALUATE]
        run("evaluate.py", folder / "whole", *overrides, f"evaluation.cache={folder / 'whole_cache'}")
        for number in range(rounds):
            part, cache = folder / f"round{number}", folder / f"cache{number}"
            cached = [*overrides, f"evaluation.cache={cache}"]
            row = kill_once(part / "killed", cache, cached, draws, inside=number % 2 == 1)
            run("evaluate.py", part / "last", *cached)
            equal = [(part / "last" / file).read_bytes() == (folder / "whole" / file).read_bytes() for file in FILES]
            rows.append({**row, "passed": all(equal)})
            print(rows[-1], flush=True)
    return write_rounds("evaluation", seed, rows)


if __name__ == "__main__":
    run_main(main, ROUNDS)
