"""Evaluations killed at ten drawn moments, each continued: the same, image by image, as one that was not killed.

    python -m tests.soak.evaluation [SEED]

Odd rounds are killed as soon as a drawn chunk is finished, even ones a drawn share of a chunk's time later, inside the
next. The result goes to benchmarks/results/soak_evaluation.json; exit code 1 where one differs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.soak.results import ROOT, write_rounds

ROUNDS = 10
FILES = ("evaluation.json", "evaluation.csv", "images.csv", "sensitivity.csv")
TRAIN = ("data=digits", "logger=csv", "trainer.max_epochs=2", "trainer.accelerator=cpu", "model.width=8")
EVALUATE = (
    *("attacks=[clean,fgsm,pgd,uniform]", "data.evaluation_batch_size=50", "suite.pgd.steps=200", "epsilon=0.1"),
    *("limit=300", "alarms.judge=false", "trainer.accelerator=cpu"),
)


def command(program: str, directory: Path, *overrides: str) -> list[str]:
    """One process of the user's own command."""
    return [sys.executable, str(ROOT / program), *overrides, f"hydra.run.dir={directory}"]


def chunks(folder: Path) -> list[str]:
    """The finished chunks: ATTACK-FINGERPRINT/NUMBER.json."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*/*.json"))


def killed_once(folder: Path, overrides: list[str], draws: random.Random, *, inside: bool) -> dict[str, Any]:
    """Starts the evaluation, kills it, says where it was."""
    wanted = draws.randint(1, 24)
    process = subprocess.Popen(
        command("evaluate.py", folder / "killed", *overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = time.perf_counter()
    while len(chunks(folder / "chunks")) < wanted:
        if process.poll() is not None:
            raise SystemExit("an evaluation ended before it could be killed")
        time.sleep(0.005)
    waited = draws.uniform(0, 0.5) if inside else 0.0
    time.sleep(waited)
    process.kill()
    process.wait()
    finished = chunks(folder / "chunks")
    partial = [str(path.name) for path in folder.rglob("*.partial")]
    return {
        "wanted": wanted,
        "inside": inside,
        "waited_s": round(waited, 3),
        "seconds": round(time.perf_counter() - seen, 2),
        "finished": len(finished),
        "partial": partial,
    }


def main(seed: int) -> int:
    draws = random.Random(seed)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        subprocess.run(command("train.py", run, *TRAIN), check=True, capture_output=True)
        overrides = [f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", *EVALUATE]
        subprocess.run(command("evaluate.py", folder / "whole" / "run", *overrides), check=True, capture_output=True)
        for number in range(ROUNDS):
            part = folder / f"round{number}"
            row = killed_once(part, overrides, draws, inside=number % 2 == 1)
            subprocess.run(command("evaluate.py", part / "last", *overrides), check=True, capture_output=True)
            row["equal"] = all(
                (part / "last" / file).read_bytes() == (folder / "whole" / "run" / file).read_bytes() for file in FILES
            )
            rounds.append(row)
            print(row, flush=True)
    return write_rounds("evaluation", seed, rounds, good="equal")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
