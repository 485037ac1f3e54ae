"""Compare runs: `python -m nsr.compare RUN_DIR ...` or `nsr-compare`, `--help` for the options; from Python:

from nsr.compare import compare, read_runs

runs = read_runs("runs/digits_pgd_sns", "runs/digits_pgd_none")   # a pandas.DataFrame, one row per run
result = compare(runs, baseline="pgd")                            # methods, differences, correlations
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nsr.errors import InputError, check_number
from nsr.run.plain_text import printable

if TYPE_CHECKING:
    from nsr.comparison.frames import read_runs
    from nsr.comparison.statistics import compare

__all__ = ["compare", "main", "read_runs"]


def __getattr__(name: str) -> Any:
    """Import the functions on first use: pandas and scipy would slow down `--help`."""
    if name in ("compare", "read_runs"):
        from nsr.comparison import frames, statistics

        return {"compare": statistics.compare, "read_runs": frames.read_runs}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing two lines and exiting with code 2."""
        raise InputError(f"{message}; `{self.prog} --help` lists the options")


def output_path(text: str) -> Path:
    """Return the path that `--output` names; '' is refused, which would be the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


def parser() -> Parser:
    """Build the parser of the command line."""
    is_script = Path(sys.argv[0]).stem == "nsr-compare"
    found = Parser(
        prog="nsr-compare" if is_script else "python -m nsr.compare",
        description="Compare runs: accuracy, sensitivity by layer, differences at equal seeds, correlation of "
        "sensitivity with robustness. Only reads files of the runs, also while they run.",
    )
    option = found.add_argument
    option("places", nargs="*", metavar="RUN_DIR", help="run directories, folders of sweeps, or patterns in quotes")
    option("--output", metavar="DIR", type=output_path, help="write CSV, Markdown, LaTeX and plots to this folder")
    option("--baseline", metavar="METHOD", help="compare all others with this method (default: PGD training alone)")
    option("--accuracy", metavar="ATTACK", help="measure robustness by this attack (default: strongest in all runs)")
    option("--label", metavar="METHOD=TEXT", action="append", default=[], help="rename a method in the output")
    option("--allow-different", action="store_true", help="show runs of different data or threat models together")
    option("--resamples", metavar="N", type=int, default=2000, help="bootstrap resamples over methods (default: 2000)")
    option("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and write the files; return the exit code, 1 after bad input, which is reported in one line."""
    return exit_code(lambda: run(parser().parse_args(arguments)))


def exit_code(action: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0, 130 if interrupted, 1 after bad input, reported in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not a caller's own stream
        sys.stdout.reconfigure(errors="backslashreplace")  # a dagger where only ASCII is shown
    try:
        action()
    except BrokenPipeError:  # the reader has seen enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (InputError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    return 0


def run(options: Any) -> None:
    """Compare the runs that the command line names."""
    if not options.places:
        raise InputError("nothing to compare: give run directories or the folder of a sweep, such as runs/digits_*")
    check_number("--seed", options.seed, lowest=0, whole=True)
    labels = [label.rpartition("=") for label in options.label]  # METHOD may contain '=' itself
    if any(not method or not text for method, _, text in labels):
        raise InputError(f"--label is {options.label!r}; it must be METHOD=TEXT")
    from nsr.comparison.frames import read_runs
    from nsr.comparison.names import method_names
    from nsr.comparison.statistics import compare
    from nsr.comparison.writing import show, write

    runs = read_runs(*options.places, allow_different=options.allow_different)
    names = method_names(runs)
    by_name = {name: method for method, name in names.items()}  # either may be given
    result = compare(
        runs,
        baseline=by_name.get(options.baseline, options.baseline),
        accuracy=options.accuracy,
        labels=names | {by_name.get(method, method): text for method, _, text in labels},
        resamples=options.resamples,
        seed=options.seed,
    )
    files: list[str] = []
    if options.output is not None:
        from nsr.comparison.plots import write_plots

        try:
            files = [*write(result, options.output), *write_plots(result, options.output)]
        except OSError as error:
            reason = f"--output: {options.output} cannot be written ({error.strerror}); give another folder"
            raise InputError(reason) from error
    show(result)
    if files:
        print(f"\nwritten to  {printable(options.output)}: {', '.join(files)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
