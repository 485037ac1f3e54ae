"""Check the command line within a second or two: Hydra is loaded, torch is not.

`check_command_line` composes the configuration before Hydra's own main does, which would make a run directory before a
wrong value is found. In a sweep every value is checked before the first job starts. What only the network or the data
can say (a layer pattern, a missing folder) comes next, from `nsr.app.preflight`, still before anything is made.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from nsr.app.composition import compose_checked, jobs, run_directory, selected_directory, without_null
from nsr.app.folders import search_further_folders, with_folder
from nsr.app.resolvers import is_sweep
from nsr.compat import hydra_argument_parser
from nsr.errors import InputError, RunStopped, check_number, one_line
from nsr.run.commands import command, override
from nsr.run.plain_text import lines, printable
from nsr.run.processes import (
    DISK_ERRORS,
    PACKAGE_PARENT,
    fault,
    global_rank,
    hand_over,
    is_started_from_outside,
    make_importable,
    slurm_directory,
)
from nsr.run.resumption import (
    AUTO,
    check_sweep,
    configuration_name,
    newest_unfinished,
    override_value,
    resumed_command,
)
from nsr.run.signals import REQUEUE, Interrupted, requeue

log = logging.getLogger(__name__)
FAILED: list[str] = []  # the jobs of this process's sweep
ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")
QUESTIONS = ("help", "hydra_help", "cfg", "info", "shell_completion", "version", "run_only")


def check_command_line(program: str, arguments: Sequence[str] | None = None) -> None:
    """End the program with one line where the command cannot work; make nothing.

    Args:
        program: 'train' or 'evaluate'.
        arguments: None: those of the process, which are replaced by what Hydra is to read.
    """
    make_importable()
    parser = hydra_argument_parser()
    parser.error = partial(_fail_at_a_flag, program)  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)  # flags anywhere, where Hydra's own way has them first or last
    if len(given := [name for name in ONE_OF if getattr(options, name)]) > 1:
        parser.error(f"--{' and --'.join(given)} cannot be given together")
    if options.package is not None and not options.cfg:
        parser.error("--package is given without --cfg, whose output it limits")
    if options.resolve and not (options.cfg or options.help):
        parser.error("--resolve is given without --cfg, whose output it completes")
    if options.experimental_rerun is not None:
        parser.error("--experimental-rerun is not supported; resume=RUN resumes a run, with its settings")
    if options.config_name is not None and not options.config_name.strip():
        parser.error("--config-name is ''; it must be the name of a file in conf/ or in the folder of --config-dir")
    if options.config_path is not None:
        parser.error("--config-path is not supported; --config-dir adds a folder of configurations")
    overrides = without_null(options.overrides)
    asks = any(getattr(options, name, None) for name in QUESTIONS)  # Hydra answers these
    repeats = global_rank() != 0 and not is_started_from_outside()  # a further process, a command that was checked
    with one_line_errors():
        if options.config_dir is not None:
            overrides = with_folder(overrides, options.config_dir)
        search_further_folders(overrides)
        recorded = None
        if not asks and not repeats:
            if program == "train" and options.config_name is None:
                options.config_name = recorded = configuration_name(overrides)
            overrides = _checked(program, overrides, options)
    if arguments is None:
        flags = [argument for argument in sys.argv[1:] if argument not in options.overrides]
        sys.argv[1:] = [*flags, *(["--config-name", recorded] if recorded is not None else []), *overrides]


def _checked(program: str, overrides: list[str], options: Namespace) -> list[str]:
    """Complete the overrides by what resumption and several processes ask for; InputError where they cannot work."""
    if program == "train":
        overrides = resumed_command(overrides, _admitted)
        search_further_folders(overrides)
    if options.multirun:
        check_sweep(overrides)
    else:
        overrides = overrides + _agreed_directory(program, overrides, options.config_name)
    if global_rank() == 0:
        configurations = [
            compose_checked(program, row, options.config_name) for row in jobs(overrides, is_sweep=options.multirun)
        ]
        if options.multirun:
            _check_sweeper(configurations[0], overrides)
        from nsr.app.preflight import preflight  # torch is loaded here

        preflight(configurations[0], program, is_sweep=options.multirun)
    return overrides


def _admitted(directory: Path, typed: Sequence[str]) -> list[str]:
    from nsr.app.third_party import admitted_command  # torch is loaded here

    return admitted_command(directory, typed)


def _fail_at_a_flag(program: str, message: str) -> NoReturn:
    """Replace argparse's page of usage."""
    settings = f"settings are given as name=value, `{command(program, '--help')}` has the choices"
    print(f"error: {printable(message)}; {settings}", file=sys.stderr)
    sys.exit(2)


def _check_sweeper(config: DictConfig, overrides: Sequence[str]) -> None:
    """InputError where Optuna has nothing to draw, or nothing to optimize, and for an interval without it."""
    sweeper, parsed = config.hydra.sweeper, OverridesParser.create().parse_overrides(list(overrides))
    if not str(sweeper._target_).startswith("hydra_plugins.hydra_optuna_sweeper."):
        interval = next((row.input_line for row in parsed if row.is_interval_sweep()), None)
        if interval is not None and str(sweeper._target_).endswith(".BasicSweeper"):
            raise InputError(f"{interval} is an interval, from which Optuna alone draws: sweep=optuna")
        return
    given = sweeper.direction if OmegaConf.is_list(sweeper.direction) else [sweeper.direction]
    directions = [str(entry).rpartition(".")[2] for entry in given]
    metrics = list(config.get("sweep_metrics", ()))
    if len(directions) != len(metrics) or "minimize" in directions:
        raise InputError(
            f"hydra.sweeper.direction is {', '.join(directions)} for sweep_metrics={metrics}: each accuracy is "
            "maximized; sweep=optuna and sweep=optuna_multi set both"
        )
    check_number("hydra.sweeper.n_trials", sweeper.n_trials, lowest=1, whole=True)
    for row in (row for row in parsed if row.is_interval_sweep()):
        bounds: Any = row.value()
        if not bounds.start < bounds.end:
            raise InputError(f"{row.input_line} is empty; its first number must be below its second")
    _check_storage(sweeper.storage)
    if not (sweeper.params or sweeper.search_space or any(row.is_sweep_override() for row in parsed)):
        raise InputError("Optuna has nothing to draw: name settings, such as 'optimizer.lr=interval(0.001,0.01)'")


def _check_storage(storage: Any) -> None:
    """Raise InputError where Optuna cannot keep its study: no database URL, or an SQLite file in no folder."""
    if storage is None:
        return
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    form = "it must be null, or a database such as sqlite:///FILE.db"
    try:
        url = make_url(storage)
        url.get_dialect()
    except (SQLAlchemyError, TypeError, ImportError) as error:
        raise InputError(f"hydra.sweeper.storage is {storage!r}; {form} ({one_line(error)})") from error
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        path = Path(str(url.database)).absolute()
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"hydra.sweeper.storage is {storage!r}; {path} cannot be written: {form}")
        if path.exists() and path.stat().st_size and not path.read_bytes().startswith(b"SQLite format 3\0"):
            raise InputError(f"hydra.sweeper.storage is {storage!r}; {path} is not an SQLite file: {form}")


def _agreed_directory(program: str, overrides: Sequence[str], config_name: str | None) -> list[str]:
    """Return ['hydra.run.dir=...'] for a run to resume and for the tasks of a SLURM job; [] for a new one."""
    if override_value(overrides, "hydra.run.dir") is not None:
        return []
    of_slurm = slurm_directory()
    if is_started_from_outside() and of_slurm is None:
        why = "the processes of torchrun need it to share one"
        raise InputError(f"hydra.run.dir is not given; {why}: hydra.run.dir=FOLDER")
    if override_value(overrides, "resume") != AUTO and of_slurm is None:
        return []
    new = selected_directory(compose_checked(program, overrides, config_name), "hydra.run.dir")
    if of_slurm is not None:
        return [override("hydra.run.dir", str(new.parent / of_slurm))]
    found = newest_unfinished(new.parent, overrides)
    if found is None:
        print(f"no unfinished run of this command in {printable(new.parent)}: a new one starts", file=sys.stderr)
    return [override("hydra.run.dir", str(found or new))]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error in one line on stderr, exit code 1; HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        yield
    except (InputError, RunStopped) as error:
        if isinstance(error, RunStopped) and global_rank() != 0 and is_started_from_outside():
            sys.exit(0)  # the first process has stopped for the same reason, and reports it
        _fail(str(error), error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            place = error.filename or run_directory()
            _fail(f"{error.strerror}: {place}; what was written before is kept{_how_to_resume()}", error)
        if isinstance(error, OSError) and HydraConfig.initialized() and not run_directory().exists():
            _fail(f"the run directory {run_directory()} was deleted while the run wrote to it", error)
        if type(error).__name__ == "MisconfigurationException":  # Lightning's, which is not loaded yet
            _fail(f"trainer: {one_line(error)}", error)
        if isinstance(error, RuntimeError) and (reason := fault(error)) is not None:
            if global_rank() != 0:
                sys.exit(1)  # the first process reports it
            _fail(f"{reason}{_how_to_resume()}", error)
        log.info("the traceback of the error that ends this job", exc_info=error)  # in its log file, not on the screen
        _fail(f"{_with_place(error)}; HYDRA_FULL_ERROR=1 shows the traceback{_how_to_resume()}", error)
    except Interrupted as interruption:
        if global_rank() != 0:
            sys.exit(0)
        print(f"{interruption}{_how_to_resume()}", file=sys.stderr)
        if interruption.number == REQUEUE:
            requeue()
        sys.exit(interruption.exit_code)


@contextmanager
def one_line_interruption() -> Iterator[None]:
    """End with one line and exit code 130 at Ctrl-C outside a job: in the checks, or waiting for those of a sweep."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted by SIGINT", file=sys.stderr)
        sys.exit(130)


def _fail(message: str, error: Exception) -> NoReturn:
    """End the command, or this job of a sweep; HYDRA_FULL_ERROR=1 raises the error itself."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if global_rank() != 0 and not is_started_from_outside() and HydraConfig.initialized():
        hand_over(run_directory(), message)
        sys.exit(1)
    if is_sweep():
        FAILED.append(message)
        # now: Hydra reports the first failure alone, and after the last job
        print(f"error: job {HydraConfig.get().job.num}: {printable(message)}", file=sys.stderr, flush=True)
        raise CompactHydraException(message) from error  # Hydra runs the other jobs
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(1)


def _with_place(error: Exception) -> str:
    """Return the error in one line with the innermost line of code of the user, else of anybody, that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    shipped = (str(PACKAGE_PARENT / "nsr"), *libraries)
    own = [frame for frame in frames if not frame.filename.startswith((*shipped, "<"))]
    place = (own or frames)[-1]
    kind, text = type(error).__name__, one_line(error)
    return f"{kind if text == kind else f'{kind}: {text}'} ({place.filename}, line {place.lineno}, in {place.name})"


def _how_to_resume() -> str:
    """Say how to resume an interrupted job."""
    if not HydraConfig.initialized() or not HydraConfig.get().runtime.output_dir or global_rank() != 0:
        return ""  # of several processes the first one says it
    if HydraConfig.get().job.name.startswith("evaluate"):
        return "; the same command continues with what is left"
    return f"; {command('train', override('resume', str(run_directory())))} resumes it"


def end_of_sweep() -> None:
    """Set exit code 1 where a job failed and the sweeper, such as Optuna's, ran the others without reporting it."""
    if FAILED:
        print(f"error: {len(FAILED)} jobs of the sweep failed, the last: {printable(FAILED[-1])}", file=sys.stderr)
        sys.exit(1)


class RelevantWarnings(logging.Filter):
    """Keeps libraries' warnings to developers off the screen; the log file has them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != "py.warnings"


class PlainFormatter(logging.Formatter):
    """Formats without control characters, which names in a message may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))
