"""Runs side by side: `python -m nsr.compare RUN_DIR ...`, `--help` for the options; from Python:

from nsr.compare import compare, read_runs

runs = read_runs("runs/digits_pgd_sns", "runs/digits_pgd_none")   # a pandas.DataFrame, a row a run
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
    """A row a run: what it is, how it stands, its accuracies and sensitivities, as they are now.

    Args:
        places: run directories, folders of sweeps, or patterns; runs may still be running.
        allow_different: whether runs may differ in data or threat model; the column `conditions` then says in what.

    Returns:
        Columns run, method (the label that tells it from the others), objective, stabilized, adversarial (whether the
        objective trains on adversarial examples), seed, status (finished, running, failed, unfinished, no evaluation),
        detail, conditions, epoch, best_epoch, evaluation (where the accuracies come from), worst_case_of (the attacks
        of the worst case), command (that measures what is missing); ATTACK_accuracy of best.ckpt on the test set, each
        from the newest measurement that has it, as a fraction; absolute, relative and mean_activation, means over
        layers at the best epoch on validation images, of one layer as absolute/LAYER, before training as
        absolute_before.

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
    """Methods over their seeds, paired with a baseline, and how sensitivity goes with robust accuracy.

    Args:
        runs: of `read_runs`; those that have not finished count for nothing.
        baseline: the method that others are paired with at equal seeds; None: PGD training alone, else the first.
        accuracy: the attack that robustness is read from; None: of those that every finished run was measured under
            the strongest.
        labels: {method: another name for it}.
        resamples, seed: of the bootstrap over methods.

    Returns:
        Data frames `runs`, `methods` (mean, _std and _n of each figure), `differences` (paired, with t-intervals) and
        `correlations` (Spearman's, among all runs and among the adversarially trained); `notes`, a list of texts.

    Errors:
        InputError: an unknown method or attack.
    """
    from nsr.comparison import result

    return result.compare(runs, baseline=baseline, accuracy=accuracy, labels=labels, resamples=resamples, seed=seed)


class Parser(argparse.ArgumentParser):
    """Tells a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        """InputError instead of two lines and exit code 2."""
        raise InputError(f"{message}; `python -m nsr.compare --help` explains the options")


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog="python -m nsr.compare",
        description="Runs side by side: accuracy, sensitivity by layer, differences at equal seeds, and whether "
        "sensitivity goes with robustness. Reads only files of the runs, also while they run.",
    )
    option = found.add_argument
    option("places", nargs="*", metavar="RUN_DIR", help="run directories, folders of sweeps, or patterns in quotes")
    option("--output", metavar="DIR", type=Path, help="write CSV, Markdown, LaTeX and plots there")
    option("--baseline", metavar="METHOD", help="that the others are paired with; PGD training alone if not given")
    option("--accuracy", metavar="ATTACK", help="that robustness is read from; the strongest that all runs have")
    option("--label", metavar="METHOD=TEXT", action="append", default=[], help="another name for a method")
    option("--allow-different", action="store_true", help="show runs of different data or threat models together")
    option("--resamples", metavar="N", type=int, default=2000, help="of the bootstrap over methods (2000)")
    option("--seed", type=int, default=0, help="of the bootstrap (0)")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the files; what the user can mend is told in one line, exit code 1."""
    try:
        run(parser().parse_args(arguments))
    except BrokenPipeError:  # whoever reads has seen enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def run(options: Any) -> None:
    """One comparison."""
    if not options.places:
        raise InputError("nothing to compare: give run directories or the folder of a sweep, such as runs/digits_*")
    labels = [label.rpartition("=") for label in options.label]  # a method's own label may hold one
    if any(not method or not text for method, _, text in labels):
        raise InputError(f"--label is {options.label!r}; it must be METHOD=TEXT")
    try:
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise InputError(f"a comparison needs {error.name}: pip install 'nsr[run]'") from error
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
        print(f"\nwritten to  {options.output}  {', '.join(files)}", flush=True)


if __name__ == "__main__":
    main()
