"""Starts of two machines that train one run: two nodes of torchrun, on this machine's loopback.

    python -m tests.endurance.machines [SEED] [ROUNDS]

The seed draws which node comes first and how long before the other. Each start must end in time and without an error,
in one run directory, with two processes in the run. The result goes to benchmarks/results/endurance_machines.json;
exit code 1 where one does not.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.endurance.results import ROOT, run_main, write_rounds

ROUNDS = 20
SECONDS = 300.0  # that a start may take
SETTINGS = (
    *("trainer=ddp_cpu", "data=digits", "logger=csv", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
    *("model.width=4", "train_attack.steps=1", "validation_attack.steps=1", "test_attacks=[clean]"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(number: int, port: int, folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start a machine with one process, in the folder that it has in common with the other."""
    with (folder / f"node{number}.txt").open("w") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                *(f"--node-rank={number}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *(str(ROOT / "train.py"), *overrides, "hydra.run.dir=runs/machines/run"),
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def two_machines(folder: Path, *overrides: str, first: int = 0, apart: float = 0.0) -> dict[str, Any]:
    """Start both in a new folder: {"passed": ..., and what else helps to find a mistake}."""
    started, port = time.perf_counter(), free_port()
    folder.mkdir()
    nodes = [start_node(first, port, folder, *overrides)]
    time.sleep(apart)
    nodes.append(start_node(1 - first, port, folder, *overrides))
    for node in nodes:
        try:
            node.wait(max(1.0, SECONDS - (time.perf_counter() - started)))
        except subprocess.TimeoutExpired:
            node.terminate()  # torchrun ends its processes with itself
            node.wait(60)
    exit_codes, sizes = [node.returncode for node in nodes], [world_size(run) for run in directories(folder)]
    passed = exit_codes == [0, 0] and sizes == [2]
    return {
        "first": first,
        "apart_s": round(apart, 2),
        "exit_codes": exit_codes,
        "world_sizes": sizes,  # one for each run directory
        "passed": passed,
        "output": [] if passed else [path.read_text()[-2000:] for path in sorted(folder.glob("node*.txt"))],
        "seconds": round(time.perf_counter() - started, 1),
    }


def directories(folder: Path) -> list[Path]:
    """The run directories in a folder."""
    return sorted(folder.glob("runs/*/*"))


def world_size(directory: Path) -> int | None:
    """The number of processes that a run has recorded; None for a directory without a finished run."""
    if not (directory / "metrics.json").exists() or not (directory / "config.yaml").exists():
        return None
    trainer = yaml.safe_load((directory / "config.yaml").read_text())["trainer"]
    return int(trainer["devices"]) * int(trainer["num_nodes"])


def main(seed: int, rounds: int) -> int:
    draws = random.Random(seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            first, apart = draws.randrange(2), draws.uniform(0, 5)
            rows.append(two_machines(Path(name) / str(number), *SETTINGS, first=first, apart=apart))
            print(rows[-1], flush=True)
    return write_rounds("machines", seed, rows)


if __name__ == "__main__":
    run_main(main, ROUNDS)
