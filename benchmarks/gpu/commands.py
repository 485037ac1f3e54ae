"""Commands that run side by side, and are ended when one fails or the time is up."""

from __future__ import annotations

import csv
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.given import ROOT

PATIENCE_SECONDS = 15.0  # for the others after one has failed: whoever waits for it would wait for ever
GRACE_SECONDS = 5.0


class Finished(NamedTuple):
    """How a command ended."""

    code: int | None  # None: it was ended, because the time was up or because another had failed
    seconds: float
    last_line: str


def run_side_by_side(
    commands: Mapping[str, Sequence[str]], folder: Path, *, seconds: float, variables: Mapping[str, str] | None = None
) -> dict[str, Finished]:
    """Runs {name: command} in the repository at the same time; their outputs are printed one after the other.

    Args:
        folder: for the outputs, NAME.txt.
        seconds: after which those that still run are ended.
        variables: of the environment, beside what there is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **(variables or {})}
    started = time.monotonic()
    outputs = {name: (folder / f"{name}.txt").open("w") for name in commands}
    processes = {
        name: subprocess.Popen(command, cwd=ROOT, env=environment, stdout=outputs[name], stderr=subprocess.STDOUT)
        for name, command in commands.items()
    }
    took: dict[str, float] = {}
    deadline = started + seconds
    try:
        while len(took) < len(processes) and time.monotonic() < deadline:
            for name, process in processes.items():
                if name not in took and process.poll() is not None:
                    took[name] = time.monotonic() - started
                    if process.returncode != 0:
                        deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            time.sleep(0.1)
        codes = {name: process.poll() for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for output in outputs.values():
            output.close()
    finished = {}
    for name in commands:
        text = (folder / f"{name}.txt").read_text(errors="replace")
        print(f"-- {name}\n{text}", flush=True)
        lines = text.split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        finished[name] = Finished(codes[name], round(took.get(name, time.monotonic() - started), 1), last[:500])
    return finished


def what_failed(finished: Mapping[str, Finished]) -> str | None:
    """In a line, None where all ended with exit code 0."""
    told = [
        f"{name} {'was ended' if row.code is None else f'ended with exit code {row.code}'}"
        f" after {row.seconds:.0f} s: {row.last_line}"
        for name, row in finished.items()
        if row.code != 0
    ]
    return "; ".join(told) or None


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """A row an epoch of a run's metrics.csv: loss and validated accuracies; no rows where there is no file yet."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    names = {
        "loss": "train/loss",
        "clean_accuracy": "validation/clean_accuracy",
        "robust_accuracy": "validation/robust_accuracy",
    }
    with path.open(newline="") as file:
        return [
            {"epoch": int(row["epoch"])}
            | {name: float(row[column]) if row[column] else None for name, column in names.items()}
            for row in csv.DictReader(file)
        ]
