"""Twenty starts of two machines that train one run: two nodes of torchrun, on this machine's loopback.

    python -m tests.soak.machines [SEED] [STARTS]

The seed draws which node comes first and how long before the other. Each start must end in time and without an error,
in one run directory, with two processes in the run. The result goes to benchmarks/results/soak_machines.json; exit code
1 where one does not.
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

from tests.soak.results import ROOT, write_rounds

STARTS = 20
SECONDS = 300.0  # that a start may take
SETTINGS = (
    *("trainer=ddp_cpu", "data=digits", "logger=csv", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
    *("model.width=4", "attack.steps=1", "validation_attack.steps=1", "attacks=[clean]"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(number: int, port: int, folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """A machine with one process, that has the folder with the other."""
    with (folder / f"node{number}.txt").open("w") as told:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                *(f"--node-rank={number}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *(str(ROOT / "train.py"), *overrides),
            ],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=told,
            stderr=subprocess.STDOUT,
        )


def two_machines(folder: Path, *overrides: str, first: int = 0, apart: float = 0.0) -> dict[str, Any]:
    """One start in a folder, that is made for it: {"right": ..., and what else is to be known}."""
    started, port = time.perf_counter(), free_port()
    folder.mkdir()
    nodes = [start_node(first, port, folder, *overrides)]
    time.sleep(apart)
    nodes.append(start_node(1 - first, port, folder, *overrides))
    in_time = True
    for node in nodes:
        try:
            node.wait(max(1.0, SECONDS - (time.perf_counter() - started)))
        except subprocess.TimeoutExpired:
            in_time = False
            node.terminate()  # torchrun ends its processes with itself
            node.wait(60)
    sizes = [_world_size(directory) for directory in directories(folder)]
    exit_codes = [node.poll() for node in nodes]
    right = in_time and exit_codes == [0, 0] and sizes == [2]
    return {
        "first": first,
        "apart_s": round(apart, 2),
        "exit_codes": exit_codes,
        "in_time": in_time,
        "world_sizes": sizes,  # one for each run directory
        "right": right,
        "told": [] if right else [path.read_text()[-2000:] for path in sorted(folder.glob("node*.txt"))],
        "seconds": round(time.perf_counter() - started, 1),
    }


def directories(folder: Path) -> list[Path]:
    """The run directories that were made."""
    return sorted(folder.glob("runs/*/*"))


def _world_size(directory: Path) -> int | None:
    """As the run itself has recorded it: None for a directory that is no finished run."""
    if not (directory / "metrics.json").exists() or not (directory / "config.yaml").exists():
        return None
    trainer = yaml.safe_load((directory / "config.yaml").read_text())["trainer"]
    return int(trainer["devices"]) * int(trainer["num_nodes"])


def main(seed: int, starts: int) -> int:
    draws = random.Random(seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(starts):
            first, apart = draws.randrange(2), draws.uniform(0, 5)
            rows.append(two_machines(Path(name) / str(number), *SETTINGS, first=first, apart=apart))
            print(rows[-1], flush=True)
    return write_rounds("machines", seed, rows, good="right")


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0] if given else 0, given[1] if len(given) > 1 else STARTS))
