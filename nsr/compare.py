"""Compare runs: `python -m nsr.compare RUN_DIR ...` or `nsr-compare`, `--help` for the options; from Python:

from nsr.compare import compare, read_runs

runs = read_runs("runs/digits_pgd_sns", "runs/digits_pgd_none")   # a pandas.DataFrame, one row per run
result = compare(runs, baseline="pgd")                            # methods, differences, correlations
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nsr.errors import InputError

if TYPE_CHECKING:
    import pandas

    from nsr.comparison.result import Comparison


def read_runs(*places: str | Path, allow_different: bool = False) -> pandas.DataFrame:
    """Read one row per run: its method, status, accuracies and sensitivities, as they are now.

    Args:
        places: run directories, folders of sweeps, or patterns; runs may still be running.
        allow_different: whether runs may differ in data or threat model; the column `conditions` then lists how.

    Returns:
        Columns run, method (a label, the same for runs that differ in their seed alone), objective, stabilized,
        adversarial (whether the objective trains on adversarial examples), seed, status (finished, running, failed,
        interrupted, unfinished, no evaluation, unreadable), detail (the reason), conditions, epoch, best_epoch,
        evaluation (where the accuracies come from), worst_case_of (the attacks of the worst case), command (that
        finishes what is missing); ATTACK_accuracy of best.ckpt on the test set, each from the newest measurement that
        has it, as a fraction; absolute, relative and mean_activation, means over layers at the best epoch on
        validation images, absolute/LAYER for one layer, absolute_before before training.

    Errors:
        InputError: a place is missing or holds no run; runs differ in data or threat model.
    """
    from nsr.comparison import frames

    return frames.read_runs(places, allow_different=allow_different)


def compare(
    runs: pandas.DataFrame,
    *,
    baseline: str | None = None,
    accuracy: str | None = None,
    labels: Mapping[str, str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare methods over their seeds, paired with a baseline, and correlate sensitivity with robust accuracy.

    Args:
        runs: from `read_runs`; unfinished ones are left out.
        baseline: the method that others are paired with at equal seeds; None: PGD training alone, else the first.
        accuracy: the attack that robustness is read from; None: the strongest that every finished run has.
        labels: {method: another name for it}.
        resamples, seed: of the bootstrap over methods.

    Returns:
        Data frames `runs`, `methods` (mean, _std and _n of each metric), `differences` (paired, with t-intervals) and
        `correlations` (Spearman's, among all runs and among the adversarially trained); `notes`, a list of texts.

    Errors:
        InputError: an unknown method or attack.
    """
    from nsr.comparison import result

    return result.compare(runs, baseline=baseline, accuracy=accuracy, labels=labels, resamples=resamples, seed=seed)


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing two lines and exiting with code 2."""
        raise InputError(f"{message}; `{self.prog} --help` lists the options")


def parser() -> Parser:
    """Build the parser of the command line."""
    is_script = Path(sys.argv[0]).stem == "nsr-compare"
    found = Parser(
        prog="nsr-compare" if is_script else "python -m nsr.compare",
        description="Compare runs: accuracy, sensitivity by layer, differences at equal seeds, correlation of "
        "sensitivity with robustness. Reads files of the runs only, also while they run.",
    )
    option = found.add_argument
    option("places", nargs="*", metavar="RUN_DIR", help="run directories, folders of sweeps, or patterns in quotes")
    option("--output", metavar="DIR", type=Path, help="write CSV, Markdown, LaTeX and plots there")
    option("--baseline", metavar="METHOD", help="compare the others with this one (default: PGD training alone)")
    option("--accuracy", metavar="ATTACK", help="read robustness from it (default: the strongest that all runs have)")
    option("--label", metavar="METHOD=TEXT", action="append", default=[], help="rename a method in the output")
    option("--allow-different", action="store_true", help="show runs of different data or threat models together")
    option("--resamples", metavar="N", type=int, default=2000, help="resamples of the bootstrap over methods (2000)")
    option("--seed", type=int, default=0, help="seed of the bootstrap (0)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and write the files; return the exit code, 1 after bad input, which is reported in one line."""
    try:
        run(parser().parse_args(arguments))
    except BrokenPipeError:  # the reader has seen enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (InputError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: Any) -> None:
    """Compare the runs that the command line names."""
    if not options.places:
        raise InputError("nothing to compare: give run directories or the folder of a sweep, such as runs/digits_*")
    labels = [label.rpartition("=") for label in options.label]  # METHOD may contain '=' itself
    if any(not method or not text for method, _, text in labels):
        raise InputError(f"--label is {options.label!r}; it must be METHOD=TEXT")
    from nsr.comparison.writing import show, write

    result = compare(
        read_runs(*options.places, allow_different=options.allow_different),
        baseline=options.baseline,
        accuracy=options.accuracy,
        labels={method: text for method, _, text in labels},
        resamples=options.resamples,
        seed=options.seed,
    )
    files: list[str] = []
    if options.output is not None:
        from nsr.comparison.plots import write_plots

        files = [*write(result, options.output), *write_plots(result, options.output)]
    show(result)
    if files:
        print(f"\nwritten to  {options.output}: {', '.join(files)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
