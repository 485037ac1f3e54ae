"""Paths, evidence (machine, versions, commit), result files and number formats of the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"


def commit(*more: str) -> str:
    """The commit, with '+changes' where nsr/, conf/ or `more` folders differ from it."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "nsr", "conf", *more]
    changed = subprocess.run(command, cwd=ROOT, check=False).returncode
    name = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    return name.stdout.decode().strip() + ("+changes" if changed else "")


def machine() -> dict[str, Any]:
    """Hardware, versions and commit."""
    import torch

    command = ["git", "rev-parse", "HEAD"]
    return {
        "commit": subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def installed(package: str) -> str | None:
    """The version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def append_row(name: str, row: Mapping[str, Any]) -> None:
    """Print a row with its machine and append it to benchmarks/results/NAME.jsonl."""
    row = {**row, **machine()}
    append(RESULTS / f"{name}.jsonl", row)
    print(json.dumps(row, indent=2), flush=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" if cells else "|---" * len(headings) + "|" for cells in (headings, (), *rows)]


def interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """'+1.25 [-0.50, +3.00]'"""
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def wrapped(text: str) -> list[str]:
    """The lines of a paragraph."""
    return textwrap.wrap(text, 112, break_on_hyphens=False)


def bullet(text: str) -> list[str]:
    """The lines of a paragraph of a list."""
    return textwrap.wrap(f"* {text}", 112, subsequent_indent="  ", break_on_hyphens=False)


def names(chosen: Iterable[str]) -> str:
    """'a, b', or 'none'."""
    return ", ".join(chosen) or "none"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation; nothing for no values."""
    if not values:
        return ""
    return f"{fmean(values):.{digits}f}" + (f" +- {stdev(values):.{digits}f}" if len(values) > 1 else "")
