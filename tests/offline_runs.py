"""Offline runs of Weights & Biases, read back with its own tool and compared with the run's CSV."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import rows

WANDB = str(Path(sys.executable).with_name("wandb"))


def offline_run(run: Path) -> Path:
    """The one offline run in a run directory."""
    (offline,) = (run / "wandb").glob("offline-run-*")
    return offline


def offline_records(offline: Path, kind: str) -> list[dict]:
    """The records of one type: history, config, summary, run, exit."""
    command = [WANDB, "leet", "inspect", "--json", str(offline)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [record[kind] for record in map(json.loads, lines) if record["type"] == kind]


def offline_history(offline: Path) -> list[dict]:
    """The rows that were logged."""
    return [record["item"] for record in offline_records(offline, "history")]


def assert_sensitivities(history: list[dict], run: Path) -> set[int]:
    """Means over layers and histograms are those of the run's own CSV files; the epochs, none of which is missing."""
    logged = {int(row["epoch"]): row for row in history if "sensitivity/absolute" in row}
    layers, neurons = rows(run / "layers.csv"), rows(run / "sensitivity.csv")
    assert logged.keys() == {int(row["epoch"]) for row in layers}
    for epoch, row in logged.items():
        for name in ("absolute", "relative", "mean_activation"):
            expected = np.mean([float(layer[name]) for layer in layers if int(layer["epoch"]) == epoch])
            assert row[f"sensitivity/{name}"] == pytest.approx(expected, rel=1e-9)
        values = [min(float(neuron["relative"]), 1.0) for neuron in neurons if int(neuron["epoch"]) == epoch]
        edges = np.arange(65) / 64 * max(values)
        assert row["sensitivity/histogram.bins"] == edges.tolist()
        assert row["sensitivity/histogram.values"] == np.histogram(values, bins=edges)[0].tolist()
    return set(logged)


def children(parent: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found += [int(status.parent.name), *children(int(status.parent.name))]
    return found
