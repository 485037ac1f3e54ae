"""All parts one after the other, or with --part one of them in this process."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.given import Given, Report, Skip, chosen_sizes
from benchmarks.gpu.runner import RESULTS, run_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh")
    parser.add_argument("out", type=Path, help="the folder that gets gpu.json")
    parser.add_argument("data", type=Path, nargs="?", help="a folder of images, or cifar10-jpeg.tar.xz")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # how the runner calls this file again
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = None if options.data is None else options.data.absolute()
    if options.part is None:
        options.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no part is left behind
        return run_all(options.out.absolute(), data)
    earlier = json.loads((options.out / RESULTS).read_text())["parts"]
    given = Given(chosen_sizes(), data=data, seconds=options.seconds, earlier=earlier)
    return measure_one(options.part, given, Report(options.report))


def measure_one(part: str, given: Given, report: Report) -> int:
    """The exit code of one part; its figures, or why there are none, are in the report."""
    try:
        import_module(f"benchmarks.gpu.{part}").measure(given, report)
    except Skip as reason:
        report("skipped", str(reason))
    except Exception as error:
        traceback.print_exc()
        report("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return int("failed" in report.figures)


if __name__ == "__main__":
    sys.exit(main())
