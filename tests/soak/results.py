"""What a soak has found, with what it was found on: committed beside the figures of the benchmarks."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def write_rounds(name: str, seed: int, rounds: Sequence[Mapping[str, Any]], *, good: str) -> int:
    """benchmarks/results/soak_NAME.json; gives the exit code.

    Args:
        good: the entry of each round that says whether it held.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    held = sum(bool(row[good]) for row in rounds)
    found = {
        "commit": commit.strip(),
        "seed": seed,
        "machine": platform.processor() or platform.machine(),
        good: held,
        "of": len(rounds),
        "rounds": list(rounds),
    }
    (ROOT / "benchmarks" / "results" / f"soak_{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"{held} of {len(rounds)} {good}")
    return int(held < len(rounds))
