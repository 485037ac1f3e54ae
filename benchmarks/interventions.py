"""Interventions on somebody else's ResNet-20 for CIFAR-10: the raw rows.

    python -m benchmarks.interventions run WEIGHTS IMAGES    a plain state_dict, and a folder with test/CLASS/*
    python -m benchmarks.interpretation                      docs/interpretation.md and its figures from the rows

`run` is one evaluation, COMMAND below, on two cores; its rows, untouched, go to benchmarks/results/ beside a record of
commit, machine, versions and seconds.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "interventions_resnet20.csv"
RECORD = ROWS.with_suffix(".json")
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # waiting threads leave the cores to others
COMMAND = (
    *("model=resnet20", "model.variant=projection_bias", "model.normalization=none", "model.weights=WEIGHTS"),
    *("data=image_folder", "data.root=IMAGES", "limit=500", "epsilon=2/255", "sensitivity_attack.steps=20"),
    *("layers=[relu1,layer?.?]", "analyses=[interventions]", "analysis.interventions.rankings=[activation,relative]"),
    *("attacks=[clean]", "alarms.judge=false", "channels_last=true", "trainer.accelerator=cpu", "seed=0"),
)


def run(weights: str, images: str) -> None:
    """One evaluation in a process of its own; nothing is kept of one that fails."""
    commit = _commit()
    places = {"WEIGHTS": weights, "IMAGES": images}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={folder}/run"]
        for word in COMMAND:
            name, _, value = word.partition("=")
            command.append(f"{name}={places.get(value, value)}")
        loads, started = [os.getloadavg()[0]], time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, **ENVIRONMENT})
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        loads.append(os.getloadavg()[0])
        found = json.loads((Path(folder) / "run" / "interventions.json").read_text())
        figures = json.loads((Path(folder) / "run" / "evaluation.json").read_text())
        shutil.copy(Path(folder) / "run" / "interventions.csv", ROWS)
    record = {
        "command": f"python evaluate.py {' '.join(COMMAND)}",
        "commit": commit,
        "weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), **ENVIRONMENT, "load_before_after": loads},
        "versions": _versions(),
        "clean_accuracy": figures["test/clean_accuracy"],
        "images": found["images"],
        "layers": found["layers"],
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


def rows() -> list[dict[str, Any]]:
    """The committed rows, numbers as numbers."""
    with ROWS.open(newline="") as file:
        return [{name: _plain(value) for name, value in row.items()} for row in csv.DictReader(file)]


def record() -> dict[str, Any]:
    """What was run where."""
    return json.loads(RECORD.read_text())


def _plain(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value) if value else None
        except ValueError:
            continue
    return value


def _commit() -> str:
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "nsr", "conf"], cwd=ROOT, check=False).returncode
    name = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return name.stdout.strip() + ("+changes" if changed else "")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}}


def main(arguments: list[str]) -> None:
    if len(arguments) == 3 and arguments[0] == "run":
        run(*arguments[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
