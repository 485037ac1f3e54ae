"""Run the cells of a plan that have no finished row.

    python -m benchmarks.evidence PLAN                      all of them; a killed command continues where it ended
    python -m benchmarks.evidence PLAN --minutes 30 --only confirm.pgd
    python -m benchmarks.evidence PLAN --status             what is left, and the difference that the plan can detect

Any number of commands may run at a time on one machine. On several machines give each its own --machine NAME and put
their files of rows into one folder: rows are merged by cell, and contradictory ones are refused.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import ROOT, commit, installed
from benchmarks.evidence import choice, rows
from benchmarks.evidence.plan import STAGES, Cell, Plan, cells, read_plan
from nsr.errors import InputError

WORK = ROOT / "runs" / "evidence"  # of cells that run


def main() -> None:
    options = _parser().parse_args()
    plan = read_plan(options.plan)
    if options.status:
        print("\n".join([*hours(plan), *power(plan)]))
    else:
        perform(plan, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.partition("\n")[0])
    parser.add_argument("plan", help="of benchmarks/evidence_plans, or the path of a .yaml file")
    parser.add_argument("--only", default="", help=f"STAGE[.OBJECTIVE[.ARM]], stages: {', '.join(STAGES)}")
    parser.add_argument("--minutes", type=float, help="no cell is started after so many")
    parser.add_argument("--machine", default="first", help="name of this machine's file of rows")
    parser.add_argument("--keep", type=Path, help="folder for the best checkpoints of confirmed cells")
    parser.add_argument("--retry", action="store_true", help="also repeat, once, cells that ended with an error")
    parser.add_argument("--status", action="store_true", help="run nothing: print what is left")
    return parser


def selected(plan: Plan, only: str = "") -> list[Cell]:
    """Return the cells of STAGE[.OBJECTIVE[.ARM]], '': all, that need no choice or whose choice is made."""
    wanted = only.split(".") if only else []
    finished = [row for row in rows.read(plan["name"]) if row["status"] == "finished"]
    made = cells(plan, choice.choose(plan, finished))
    return [cell for cell in made if [cell.stage, cell.objective, cell.arm][: len(wanted)] == wanted]


def perform(plan: Plan, options: argparse.Namespace) -> None:
    """Run cells in their order until all are finished or the time is over."""
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    path = rows.FOLDER / plan["name"] / f"{options.machine}.jsonl"
    evidence: dict[str, Any] = {}
    tried: set[str] = set()
    while time.monotonic() < end:
        again = {cell.identity for cell in selected(plan, options.only) if options.retry} - tried
        left = [cell for cell in selected(plan, options.only) if not _is_done(plan, cell, again)]
        if not left:
            return
        for cell in left:
            with rows.claimed(WORK / f"{cell.identity}.lock") as is_ours:
                if is_ours and not _is_done(plan, cell, again):
                    tried.add(cell.identity)
                    evidence = evidence or machine()
                    _perform(cell, path, evidence, options.keep)
                    break
        else:
            time.sleep(5)  # other commands run all that is left; more may follow from their results


def _is_done(plan: Plan, cell: Cell, again: Collection[str] = ()) -> bool:
    """Whether a row, maybe another command's, says how the cell ended; an error counts unless it is tried again."""
    ends = ("finished",) if cell.identity in again else ("finished", "stopped")
    return any(row["cell"] == cell.identity and row["status"] in ends for row in rows.read(plan["name"]))


def _perform(cell: Cell, path: Path, evidence: dict[str, Any], keep: Path | None) -> None:
    from benchmarks.evidence import cell as one

    if cell.stage in ("confirm", "standard") and evidence["commit"].endswith("+changes"):
        raise InputError("nsr/, conf/ or the plans differ from the commit; commit them before a test image is used")
    one.preload()
    identity = {"cell": cell.identity, "title": cell.title, **cell.named()}
    rows.append(path, {**identity, "status": "started", **evidence})
    try:
        row = {"status": "finished", **one.run(cell, WORK / cell.identity, keep)}
    except one.CellStopped as stopped:
        row = {"status": "stopped", "reason": str(stopped)}
    rows.append(path, {"cell": cell.identity, **row})
    print(f"{cell.title}: {row.get('reason') or str(row['cpu_seconds']) + ' s'}", flush=True)


def machine() -> dict[str, Any]:
    """Return commit, processor, threads and versions."""
    models = {line.partition(":")[2].strip() for line in _processor() if line.startswith("model name")}
    packages = ("torch", "pytorch-lightning", "pyautoattack", "numpy")
    return {
        "commit": commit("benchmarks/evidence", "benchmarks/evidence_plans"),
        "machine": ", ".join(sorted(models)) or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in packages}},
    }


def _processor() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def hours(plan: Plan) -> list[str]:
    """Return the processor hours of the finished and of the missing cells, from the mean of each kind of cell."""
    finished = {row["cell"]: row for row in rows.read(plan["name"]) if row["status"] == "finished"}
    times: dict[tuple[str, str], list[float]] = {}
    for row in finished.values():
        times.setdefault((row["stage"], row["objective"]), []).append(row["cpu_seconds"])
    lines, left = [], 0.0
    known = selected(plan)
    for kind in dict.fromkeys((cell.stage, cell.objective) for cell in known):
        members = [cell for cell in known if (cell.stage, cell.objective) == kind]
        missing = sum(cell.identity not in finished for cell in members)
        mean = fmean(times[kind]) if kind in times else None
        left += missing * (mean or 0)
        each = "not timed yet" if mean is None else f"{mean:.0f} s each"
        lines.append(f"{' '.join(kind)}: {len(members) - missing} of {len(members)} finished, {each}")
    used = sum(sum(each) for each in times.values())
    return [*lines, f"used {used / 3600:.2f} h, left {left / 3600:.2f} h of one core"]


def power(plan: Plan) -> list[str]:
    """Return the smallest difference that each primary contrast detects with 80 % power."""
    arms, n = plan["confirm"]["primary"], len(plan["confirm"]["seeds"])
    finished = [row for row in rows.read(plan["name"]) if row["status"] == "finished"]
    found = choice.smallest_differences(plan, finished)
    return [f"{name}: {' minus '.join(arms)}, {n} seeds, detects {points:.1f} points" for name, points in found.items()]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
