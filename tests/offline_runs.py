"""What a run has left for Weights & Biases, read back with W&B's own tool and held against the run's CSV."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

WANDB = str(Path(sys.executable).with_name("wandb"))


def offline_run(run: Path) -> Path:
    """The one offline run in a run directory."""
    (offline,) = (run / "wandb").glob("offline-run-*")
    return offline


def offline_records(offline: Path) -> list[dict]:
    """All records of an offline run."""
    command = [WANDB, "leet", "inspect", "--json", str(offline)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def offline_history(offline: Path) -> list[dict]:
    """The rows that were logged."""
    return [record["history"]["item"] for record in offline_records(offline) if record["type"] == "history"]


def sensitivities(run: Path) -> dict[tuple[int, str], list[float]]:
    """{(epoch, layer): absolute sensitivity by neuron} of a sensitivity.csv."""
    found: dict[tuple[int, str], list[float]] = {}
    with (run / "sensitivity.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = int(row["epoch"]), row["layer"]
            assert int(row["neuron"]) == len(found.setdefault(key, []))
            found[key].append(float(row["absolute"]))
    return found


def assert_histograms(history: list[dict], run: Path) -> set[tuple[int, str]]:
    """Every logged histogram is that of the run's own sensitivity.csv, and none is missing: {(epoch, layer)}."""
    expected = sensitivities(run)
    seen = set()
    for record in history:
        for name in record:
            if name.startswith("sensitivity/histogram/") and name.endswith(".values"):
                layer = name.removeprefix("sensitivity/histogram/").removesuffix(".values")
                values = expected[int(record["epoch"]), layer]
                edges = np.arange(65) / 64 * max(values)
                counts, _ = np.histogram(values, bins=edges)
                assert record[name] == counts.tolist()
                assert record[f"sensitivity/histogram/{layer}.bins"] == edges.tolist()
                assert sum(record[name]) == len(values)
                seen.add((int(record["epoch"]), layer))
    assert seen == set(expected)
    return seen
