"""Write the report of runs as one HTML file: `python -m nsr.report RUN_DIR` or `nsr-report`; `--help` for the options.

A finished, running or failed run, or an evaluation, gives a page of its own; several runs give their comparison.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nsr.compare import Parser, exit_code, output_path
from nsr.errors import InputError
from nsr.run.plain_text import printable
from nsr.run.processes import make_importable


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    is_script = Path(sys.argv[0]).stem == "nsr-report"
    found = Parser(
        prog="nsr-report" if is_script else "python -m nsr.report",
        description="Write the report of a run (finished, running or failed) or of an evaluation as one HTML file that "
        "opens offline; for several runs, their comparison. Without --full it only reads files.",
    )
    option = found.add_argument
    option("places", nargs="*", metavar="RUN_DIR", help="run directories, folders of sweeps, or patterns in quotes")
    option(
        "--output",
        metavar="FILE",
        type=output_path,
        help="file to write (default: RUN_DIR/report.html, or ./comparison.html)",
    )
    option("--full", action="store_true", help="add optimized inputs and the loss over the weights; loads best.ckpt")
    option("--trusted", action="append", default=[], metavar="CLASS", help="with --full: class the checkpoint may use")
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
    from nsr.run.directory import find_runs, is_run

    if not options.places:
        raise InputError("nothing to report: give a run directory, such as runs/digits_small_cnn_pgd_sns_seed0/DATE")
    if options.output is not None and options.output.is_dir():
        raise InputError(
            f"--output is {options.output}, a directory; give a file, such as {options.output / 'report.html'}"
        )
    places = [Path(place) for place in options.places]
    is_one = len(places) == 1 and (is_evaluation(places[0]) or is_run(places[0]))  # even with others inside
    found = places if is_one else find_runs(options.places)
    try:
        if options.full:
            write_full_pictures(found, options.trusted)
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


def write_full_pictures(runs: Sequence[Path], trusted: Sequence[str]) -> None:
    """Write RUN/pictures_full of one run, in a process that loads its checkpoint as evaluate.py does.

    Errors:
        InputError: not one run, none with a best.ckpt, or one that cannot be written.
        SystemExit: the process has failed and reported why in one line.
    """
    if len(runs) != 1:
        raise InputError(f"--full is for one run, and {len(runs)} are given; leave it out, or give one run")
    if not (runs[0] / "checkpoints" / "best.ckpt").is_file():
        raise InputError(f"{runs[0]} has no checkpoints/best.ckpt, which --full needs; leave it out")
    if not os.access(runs[0], os.W_OK):
        raise InputError(f"--full writes into {runs[0]}, which cannot be written; leave it out, or give a copy")
    make_importable()
    done = subprocess.run([sys.executable, "-m", "nsr.app.full", str(runs[0]), *trusted])
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
