"""What the user typed, checked and answered within a second or two: hydra is loaded, torch is not.

`check_command_line` composes the configuration before hydra's own main does, for hydra would tell a wrong name in
several lines and without a guess at the right one, and would make a run directory before a wrong value is found. In a
sweep every value is checked before the first job starts. What only the network or the data can tell (a layer
pattern, a missing folder) comes next, from `nsr.app.preflight`, still before anything is made.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from nsr.app.composition import compose_checked, is_sweep, jobs, plain_value
from nsr.errors import InputError, RunStopped
from nsr.run.processes import (
    PROGRAMS,
    agreed,
    global_rank,
    is_started_from_outside,
    remember_devices,
    slurm_directory,
)
from nsr.run.resumption import AUTO, check_sweep, newest_unfinished, override_value, resumed_command
from nsr.run.signals import REQUEUE, Interrupted, requeue

DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # full, read-only, beyond one's quota
FAILED: list[str] = []  # the jobs of this process's sweep
ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")
ASKS_ONLY = ("help", "hydra_help", "cfg", "info", "shell_completion", "version", "run_only")


def check_command_line(config_name: str, arguments: Sequence[str] | None = None) -> None:
    """Ends the program with one line where the command cannot work; makes nothing.

    Args:
        config_name: 'train' or 'evaluate'.
        arguments: None: those of the program.
    """
    parser = get_args_parser()
    parser.error = partial(_fail_at_a_flag, config_name)  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)  # flags anywhere, where hydra's own way has them first or last
    if len(given := [name for name in ONE_OF if getattr(options, name)]) > 1:
        parser.error(f"--{' and --'.join(given)} cannot be given together")
    overrides = list(options.overrides)
    asks = any(getattr(options, name, None) for name in ASKS_ONLY)  # hydra answers questions
    repeats = global_rank() != 0 and not is_started_from_outside()  # a further process, a command that was checked
    if not asks and not repeats:
        with one_line_errors():
            overrides = _checked(config_name, overrides, is_sweep=options.multirun)
    if arguments is None:  # as hydra is to read it
        sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in options.overrides] + overrides


def _checked(config_name: str, overrides: list[str], *, is_sweep: bool) -> list[str]:
    """The overrides, completed by what resumption and several processes ask for; InputError where they cannot work."""
    if config_name == "train":
        overrides = resumed_command(overrides)
    if is_sweep:
        check_sweep(overrides)
        remember_devices()
        # a launcher's processes begin elsewhere than in this folder, and have to find this package
        os.environ["PYTHONPATH"] = os.pathsep.join([str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])])
    else:
        overrides = overrides + _agreed_directory(config_name, overrides)
    if global_rank() == 0:
        configurations = [compose_checked(config_name, row) for row in jobs(overrides)]
        if is_sweep:
            _check_optuna(configurations[0], overrides)
        from nsr.app.preflight import rehearse  # torch is loaded here

        rehearse(configurations[0], is_sweep=is_sweep)
    return overrides


def _fail_at_a_flag(config_name: str, message: str) -> NoReturn:
    """In place of argparse's page of usage."""
    print(
        f"error: {message}; settings are given as name=value, `python {config_name}.py --help` has the choices",
        file=sys.stderr,
    )
    sys.exit(2)


def _check_optuna(config: DictConfig, overrides: Sequence[str]) -> None:
    """InputError where Optuna has nothing to draw, or nothing to judge by."""
    sweeper = config.hydra.sweeper
    if "optuna" not in str(sweeper._target_):
        return
    directions = [str(entry).rpartition(".")[2] for entry in _as_list(sweeper.direction)]
    if len(directions) != len(config.get("optimize", ())) or "minimize" in directions:
        raise InputError(
            f"hydra.sweeper.direction is {', '.join(directions)} for optimize={list(config.get('optimize', ()))}: each "
            "accuracy is maximised; sweep=optuna and sweep=optuna_two set both"
        )
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if not (sweeper.params or sweeper.search_space or any(override.is_sweep_override() for override in parsed)):
        raise InputError("Optuna has nothing to draw: name settings, such as 'optimizer.lr=interval(0.001,0.01)'")


def _as_list(value: Any) -> list[Any]:
    value = plain_value(value)
    return value if isinstance(value, list) else [value]


def _agreed_directory(config_name: str, overrides: Sequence[str]) -> list[str]:
    """['hydra.run.dir=...'] where it is not simply a new one: that of a run to resume, or one that processes share."""
    is_given = override_value(overrides, "hydra.run.dir") is not None
    resumes = override_value(overrides, "resume") == AUTO and not is_given
    of_slurm = None if is_given else slurm_directory()
    by_torchrun = is_started_from_outside() and slurm_directory() is None
    if not (resumes or of_slurm or by_torchrun):
        return []

    def first() -> str:
        new = Path(str(compose_checked(config_name, overrides).hydra.run.dir)).absolute()
        if of_slurm is not None:
            return str(new.parent / of_slurm)
        found = newest_unfinished(new.parent, overrides) if resumes else None
        if resumes and found is None:
            print(f"no unfinished run of this command in {new.parent}: a new one begins", file=sys.stderr)
        return str(found or new)

    directory = agreed(first) if by_torchrun else first()
    return [f"hydra.run.dir='{directory}'"]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can mend is told in one line on stderr, exit code 1; HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        yield
    except (InputError, RunStopped) as error:
        if isinstance(error, RunStopped) and global_rank() != 0:
            sys.exit(0)  # the first process has stopped for the same reason, and tells it
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        _fail(str(error), error)
    except OSError as error:
        if error.errno not in DISK_ERRORS or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        told = f"{error.strerror}: {error.filename or run_directory()}; what was written before is kept"
        _fail(told + _way_on(), error)
    except Interrupted as interruption:
        if global_rank() != 0:
            sys.exit(0)
        print(f"{interruption}{_way_on()}", file=sys.stderr)
        if interruption.number == REQUEUE:
            requeue()
        sys.exit(interruption.exit_code)


def _fail(told: str, error: Exception) -> NoReturn:
    """Ends the command, or this job of a sweep."""
    if is_sweep():
        FAILED.append(told)
        raise CompactHydraException(told) from error  # hydra goes on with the other jobs
    print(f"error: {told}", file=sys.stderr)
    sys.exit(1)


def _way_on() -> str:
    """How an interrupted job goes on."""
    if not HydraConfig.initialized() or not HydraConfig.get().runtime.output_dir:
        return ""
    if HydraConfig.get().job.config_name != "train":
        return "; the same command goes on with what is left"
    return f"; python train.py resume={run_directory()} goes on"


def end_of_sweep() -> None:
    """Exit code 1 where a job of the sweep failed and the sweeper, as Optuna's, went on without a word."""
    if FAILED:
        print(f"error: {len(FAILED)} jobs of the sweep failed, the last: {FAILED[-1]}", file=sys.stderr)
        sys.exit(1)


class RelevantWarnings(logging.Filter):
    """Keeps off the screen what libraries say to each other; the log file has it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != "py.warnings"


def run_directory() -> Path:
    """The directory hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)
