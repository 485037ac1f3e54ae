"""Interventions on the networks of interventions.yaml: the raw rows.

    python -m benchmarks.interventions NAME [WEIGHTS IMAGES]   a plain state_dict, and a folder with test/CLASS/*
    python -m benchmarks.interventions NAME+attack ...         the same under another attack; NAME+split: other halves
    python -m benchmarks.interpretation                        docs/interpretation.md and its plots from the rows

One evaluation on two threads. Its rows go unchanged to benchmarks/results/, with a record of commit, machine, versions
and seconds; the record's command has the names of settings of its commit.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, ROOT, commit

NETWORKS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
CONDITIONS = {"attack": ("sensitivity_attack.loss=margin",), "split": ("seed=1",)}  # in place of cross-entropy and 0
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # waiting threads leave the cores to others


def path(name: str, suffix: str = ".csv") -> Path:
    """Return the file of a network's rows, or of its record (.json)."""
    return RESULTS / f"interventions_{name}{suffix}"


def words(name: str) -> list[str]:
    """Return the overrides of the evaluation NETWORK or NETWORK+CONDITION, the latter without further rankings."""
    network, _, condition = name.partition("+")
    found = str(NETWORKS[network]["evaluate"]).split()
    if not condition:
        return found
    other = (*CONDITIONS[condition], "analysis.interventions.rankings=[activation]")
    replaced = {word.partition("=")[0] for word in other}
    return [*(word for word in found if word.partition("=")[0] not in replaced), *other]


def run(name: str, weights: str = "", images: str = "") -> None:
    """Run one evaluation in its own process; a failed one leaves nothing."""
    places = {"WEIGHTS": weights, "IMAGES": images}
    at_commit = commit()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={directory}"]
        for word in words(name):
            key, _, value = word.partition("=")
            command.append(f"{key}={places.get(value, value)}")
        loads, started = [os.getloadavg()[0]], time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, **ENVIRONMENT})
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        loads.append(os.getloadavg()[0])
        results = json.loads((directory / "interventions.json").read_text())
        metrics = json.loads((directory / "evaluation.json").read_text())
        shutil.copy(directory / "interventions.csv", path(name))
    record = {
        "command": f"python evaluate.py {' '.join(words(name))}",
        "commit": at_commit,
        "weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest() if weights else None,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), **ENVIRONMENT, "load_before_after": loads},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
        "clean_accuracy": metrics["test/clean_accuracy"],
        "images": results["images"],
        "layers": results["layers"],
    }
    path(name, ".json").write_text(json.dumps(record, indent=2) + "\n")


def rows(name: str = "resnet20") -> list[dict[str, Any]]:
    """The committed rows, numbers as numbers."""
    with path(name).open(newline="") as file:
        return [{key: _plain(value) for key, value in row.items()} for row in csv.DictReader(file)]


def record(name: str = "resnet20") -> dict[str, Any]:
    """The committed record."""
    return json.loads(path(name, ".json").read_text())


def _plain(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value) if value else None
        except ValueError:
            continue
    return value


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


if __name__ == "__main__":
    known = [*NETWORKS, *(f"{name}+{condition}" for name in NETWORKS for condition in CONDITIONS)]
    if len(sys.argv) not in (2, 4) or sys.argv[1] not in known:
        sys.exit(__doc__)
    run(*sys.argv[1:])
