"""Commands of the endurance tests and their results, committed beside those of the benchmarks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import RESULTS, ROOT, machine


def command(program: str, *overrides: str) -> list[str]:
    """One process of the user's own command."""
    return [sys.executable, str(ROOT / program), *overrides]


def write_rounds(name: str, seed: int, rounds: Sequence[Mapping[str, Any]]) -> int:
    """Write benchmarks/results/endurance_NAME.json and return the exit code: 1 where a round did not pass."""
    passed = sum(bool(row["passed"]) for row in rounds)
    record = {**machine(), "seed": seed, "passed": passed, "of": len(rounds), "rounds": list(rounds)}
    (RESULTS / f"endurance_{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{passed} of {len(rounds)} passed")
    return int(passed < len(rounds))


def run_main(main: Callable[[int, int], int], rounds: int) -> None:
    """Call main(seed, rounds) with the numbers of the command line, SEED (default 0) and ROUNDS."""
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*given, *(0, rounds)[len(given) :]))
