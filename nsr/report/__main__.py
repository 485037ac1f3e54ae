"""Write the report of runs as one HTML file: `python -m nsr.report RUN_DIR` or `nsr-report`; `--help` for the options.

A finished, running or failed run, or an evaluation, gives a page of its own; several runs give their comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nsr.compare import Parser, exit_code
from nsr.errors import InputError
from nsr.run.plain_text import printable


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    is_script = Path(sys.argv[0]).stem == "nsr-report"
    found = Parser(
        prog="nsr-report" if is_script else "python -m nsr.report",
        description="Write the report of a run, finished, running or failed, or of an evaluation, as one HTML file "
        "that opens without a network; several runs: their comparison. Reads files only.",
    )
    option = found.add_argument
    option("places", nargs="*", metavar="RUN_DIR", help="run directories, folders of sweeps, or patterns in quotes")
    option("--output", metavar="FILE", type=Path, help="the file (default: RUN_DIR/report.html, or ./comparison.html)")
    option("--allow-different", action="store_true", help="compare runs of different data or threat models")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code, 1 after bad input, which is reported in one line."""
    return exit_code(lambda: print(f"written to  {printable(run(parser().parse_args(arguments)))}", flush=True))


def run(options: argparse.Namespace) -> Path:
    """Write the page that the command line asks for, and return its path.

    Errors:
        InputError: no run, or a file that cannot be written.
    """
    from nsr.report.files import is_evaluation
    from nsr.run.directory import find_runs

    if not options.places:
        raise InputError("nothing to report: give a run directory, such as runs/digits_small_cnn_pgd_sns_seed0/DATE")
    places = [Path(place) for place in options.places]
    found = places if len(places) == 1 and is_evaluation(places[0]) else find_runs(options.places)
    try:
        if len(found) == 1:
            from nsr.report.page import write_report

            return write_report(found[0], options.output)
        from nsr.report.comparison import write_comparison

        output = options.output or Path("comparison.html")
        return write_comparison(found, output, allow_different=options.allow_different)
    except OSError as error:
        target = options.output or (found[0] if len(found) == 1 else Path.cwd())
        why = error.strerror or str(error)
        raise InputError(f"{target} cannot be written ({why}); give another file: --output FILE") from error


if __name__ == "__main__":
    sys.exit(main())
