"""What the user typed, checked and answered within a second or two: hydra is loaded, torch is not.

`check_command_line` composes the configuration before hydra's own main does, for hydra would tell a wrong name in
several lines and without a guess at the right one, and would make a run directory before a wrong value is found. In a
sweep every value is checked before the first job starts. What only the network or the data can tell (a layer
pattern, a missing folder) comes next, from `nsr.rehearsal`, still before anything is made.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsr.configuration import NORMS, check_settings, flat
from nsr.errors import InputError, RunStopped, check_choice, did_you_mean, fraction
from nsr.interruption import REQUEUE, Interrupted, requeue
from nsr.processes import (
    PROGRAMS,
    agreed,
    global_rank,
    is_started_from_outside,
    local_processes,
    machines,
    slurm_directory,
)
from nsr.resumption import AUTO, check_sweep, newest_unfinished, override_value, resumed_command

CONFIGURATIONS = Path(__file__).resolve().parent.parent / "conf"
LAUNCHERS = {
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm"), 'pip install ".[sweeps]"'),
    **dict.fromkeys(("ray", "ray_aws"), "pip install hydra-ray-launcher==1.2.2"),
}
DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # full, read-only, beyond one's quota
FAILED: list[str] = []  # the jobs of this process's sweep
ASKS_ONLY = ("help", "hydra_help", "cfg", "info", "shell_completion", "version", "run_only")


def evaluation_directory(checkpoint: str | None) -> str:
    """Where an evaluation goes: RUN/evaluations beside RUN/checkpoints/X.ckpt, else runs/evaluations."""
    if checkpoint and (folder := Path(checkpoint).absolute().parent).name == "checkpoints":
        return str(folder.parent / "evaluations")
    return "runs/evaluations"


def times(factor: float, value: Any) -> Any:
    """A multiple of a number or fraction such as 8/255; what is neither is handed on, to be told by its own name."""
    try:
        number = fraction("", value)
    except InputError:
        return value
    return factor * number if isinstance(number, (int, float)) and not isinstance(number, bool) else value


def share_of(share: float, epochs: int) -> Any:
    """The epoch at that share of the training, at least 1."""
    return max(1, round(share * epochs)) if isinstance(epochs, int) else epochs


def sweep() -> str | None:
    """The name of a sweep's directory, the same for all its jobs; None for a single run."""
    return Path(HydraConfig.get().sweep.dir).absolute().name if _is_sweep() else None


def chosen(*groups: str) -> list[str]:
    """What was chosen of some groups of conf/, each name once; what was left out is left out."""
    choices = HydraConfig.get().runtime.choices
    return list(dict.fromkeys(str(choices[group]) for group in groups if choices.get(group) is not None))


for resolver in (evaluation_directory, times, share_of, sweep, chosen, local_processes, machines):
    OmegaConf.register_new_resolver(f"nsr.{resolver.__name__}", resolver, replace=True)


def check_command_line(config_name: str, arguments: Sequence[str] | None = None) -> None:
    """Ends the program with one line where the command cannot work; makes nothing.

    Args:
        config_name: 'train' or 'evaluate'.
        arguments: None: those of the program.
    """
    options = get_args_parser().parse_args(arguments)
    if any(getattr(options, name, None) for name in ASKS_ONLY):
        return  # hydra answers questions
    if global_rank() != 0 and not is_started_from_outside():
        return  # a further process of a run repeats a checked command
    with one_line_errors():
        overrides = resumed_command(options.overrides) if config_name == "train" else list(options.overrides)
        if options.multirun:
            check_sweep(overrides)
            # a launcher's processes begin elsewhere than in this folder, and have to find this package
            os.environ["PYTHONPATH"] = os.pathsep.join([str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])])
        else:
            overrides += _agreed_directory(config_name, overrides)
        if global_rank() == 0:
            configurations = [compose_checked(config_name, row) for row in _jobs(overrides)]
            if options.multirun:
                _check_optuna(configurations[0], overrides)
            from nsr.rehearsal import rehearse  # torch is loaded here

            rehearse(configurations[0], is_sweep=options.multirun)
    if arguments is None:  # as hydra is to read it
        sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in options.overrides] + overrides


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


def compose_checked(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The composed and checked configuration, hydra's own settings among it."""
    with initialize_config_dir(config_dir=str(CONFIGURATIONS), version_base="1.3"):
        try:
            config = compose(config_name, list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(_explain(config_name, overrides, error)) from error
        HydraConfig.instance().set_config(config)
        check_choice("norm", config.norm, (*NORMS, None))  # other settings are looked up with it
        try:
            # a missing value stays '???' in the container, and is told as missing
            check_settings(plain(without_hydra(config)))
        except OmegaConfBaseException as error:
            raise InputError(_first_line(error)) from error
        return config


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
    if _is_sweep():
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


def _is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The command itself or, for a sweep, a row for each value: all others at their first, so that each is checked."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(_first_line(error)) from error
    values = [_values(override) for override in parsed]
    first = [row[0] for row in values if row]
    rows = [first]
    position = 0
    for row in values:
        if row:
            rows += [[*first[:position], value, *first[position + 1 :]] for value in row[1:]]
            position += 1
    return rows


def _values(override: Override) -> list[str]:
    """The overrides that a sweep makes of one; none where a sweeper draws from an interval or a pattern."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if override.is_choice_sweep() or override.is_range_sweep():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return []


def _explain(config_name: str, overrides: Sequence[str], error: Exception) -> str:
    """One line for a name that conf/ does not have."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, got = str(error.missing_cfg_file).rpartition("/")
        options = [str(option) for option in error.options]
        if group == "hydra/launcher" and got in LAUNCHERS:
            return f"hydra/launcher={got} is not installed; {LAUNCHERS[got]} brings it"
        hint = did_you_mean(got, options)
        return f"{group}={got}: there is no such choice{hint}; {group} is one of {', '.join(options)}"
    if match := re.search(r"Could not load '([^']+)/([^'/]+)'", text):  # in a list of choices
        options = sorted(path.stem for path in (CONFIGURATIONS / match[1]).glob("*.yaml"))
        hint = did_you_mean(match[2], options)
        return f"{match[1]}=[{match[2]}]: there is no such choice{hint}; {match[1]} are {', '.join(options)}"
    if match := re.search(r"Could not (?:override|append to config|delete) '([^']+)'", text):
        name = match[1].partition("@")[0]
        names = _known_names(config_name, [row for row in overrides if not row.lstrip("+~").startswith(match[1])])
        hint = did_you_mean(name, names)
        return f"{name}: there is no such setting{hint}; `python {config_name}.py --cfg job` prints all of them"
    return _first_line(error)


def _known_names(config_name: str, overrides: Sequence[str]) -> list[str]:
    groups = [path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()]
    try:
        config = compose(config_name, list(overrides))
    except (HydraException, OmegaConfBaseException):
        return groups
    names = [name for name, _ in flat(OmegaConf.to_container(config, resolve=False))]  # type: ignore[arg-type]
    return groups + names


def _first_line(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        problem = str(error.message).splitlines()[0]
        return f"{error.override}: {problem}; the form is name=value, text with spaces in quotes"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("object_type"))


class RelevantWarnings(logging.Filter):
    """Keeps off the screen what libraries say to each other; the log file has it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != "py.warnings"


def run_directory() -> Path:
    """The directory hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)


def without_hydra(config: DictConfig) -> DictConfig:
    """The settings alone, as hydra hands them to a job."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """The job's configuration as plain dicts, lists, numbers and texts, everything resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def plain_value(value: Any) -> Any:
    """A setting as a plain list where it is a list."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
