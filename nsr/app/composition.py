"""From a command line to a checked configuration; what is wrong with it in one line.

Hydra would report a wrong name in several lines and without a guess at the right one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from nsr.app.configuration import check_complete, check_names, check_settings
from nsr.app.rules import NORMS
from nsr.errors import InputError, check_choice, did_you_mean, fraction
from nsr.run.commands import override
from nsr.run.processes import local_processes, machines
from nsr.run.settings import flat

PACKAGE = Path(__file__).resolve().parents[1]
# a wheel holds the folder inside the package; in a checkout it stands beside it
CONFIGURATIONS = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
LAUNCHERS = {
    "joblib": "pip install hydra-joblib-launcher",
    **dict.fromkeys(("submitit_local", "submitit_slurm"), "pip install hydra-submitit-launcher"),
    **dict.fromkeys(("ray", "ray_aws"), "pip install hydra-ray-launcher==1.2.2"),
}


def evaluation_directory(checkpoint: str | None) -> str:
    """Return RUN/evaluations beside RUN/checkpoints/X.ckpt, else runs/evaluations."""
    if checkpoint and (folder := Path(checkpoint).absolute().parent).name == "checkpoints":
        return str(folder.parent / "evaluations")
    return "runs/evaluations"


def times(factor: float, value: Any) -> Any:
    """Return a multiple of a number or a fraction such as 8/255; anything else unchanged, to be refused by its name."""
    try:
        number = fraction("", value)
    except InputError:
        return value
    return factor * number if isinstance(number, (int, float)) and not isinstance(number, bool) else value


def fraction_of(part: float, epochs: int) -> Any:
    """Return the epoch at that fraction of the training, at least 1."""
    return max(1, round(part * epochs)) if isinstance(epochs, int) else epochs


def sweep() -> str | None:
    """Return the name of a sweep's directory, the same for all its jobs; None for a single run."""
    return Path(HydraConfig.get().sweep.dir).absolute().name if is_sweep() else None


def chosen(*groups: str) -> list[str]:
    """Return what was chosen of some groups of conf/, each name once; what was left out is left out."""
    return list(dict.fromkeys(chosen_each(*groups)))


def run_name(seed: int) -> str:
    """Return DATA_MODEL_OBJECTIVE_STABILIZER_seedN from what was chosen."""
    return "_".join([*chosen_each("data", "model", "objective", "stabilizer"), f"seed{seed}"])


def chosen_each(*groups: str) -> list[str]:
    """Return what was chosen of some groups of conf/; what was left out is left out."""
    choices = HydraConfig.get().runtime.choices
    return [str(choices[group]) for group in groups if choices.get(group) is not None]


for resolver in (evaluation_directory, times, fraction_of, sweep, chosen, run_name, local_processes, machines):
    OmegaConf.register_new_resolver(f"nsr.{resolver.__name__}", resolver, replace=True)


@functools.cache
def _known(program: str) -> dict[str, Any]:
    """Return the names of a program's settings, composed once a process."""
    return {str(key): None for key in compose(program)}


def compose_checked(program: str, overrides: Sequence[str], config_name: str | None = None) -> DictConfig:
    """Compose and check a configuration, Hydra's own settings among it.

    Args:
        program: 'train' or 'evaluate'.
        overrides: of the command line.
        config_name: of the primary configuration; None: the program's.

    Errors:
        InputError: in one line.
    """
    name = config_name or program
    with initialize_config_dir(config_dir=str(CONFIGURATIONS), version_base="1.3"):
        try:
            config = compose(name, list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, TypeError, ValueError, AssertionError) as error:
            raise InputError(_explain(program, name, overrides, error)) from error
        HydraConfig.instance().set_config(config)
        check_complete(config, program)
        check_choice("norm", config.norm, (*NORMS, None))  # other settings are looked up with it
        try:
            OmegaConf.select(config, "epsilon")
        except InterpolationResolutionError as error:
            raise InputError(
                f"epsilon is not given, and data.epsilon has none for norm={config.norm}; give a radius: epsilon=8/255"
            ) from error
        try:
            # a missing value stays '???' in the container, and is reported as missing
            settings = plain(without_hydra(config))
            known = _known(program)
        except OmegaConfBaseException as error:
            raise InputError(_first_line(error)) from error
        check_settings(settings, program)
        check_names(settings, known, OmegaConf.to_yaml(config), program)
        _check_directory(config)
        return config


def _check_directory(config: DictConfig) -> None:
    for name in ("hydra.run.dir", "hydra.sweep.dir"):
        try:
            value = OmegaConf.select(config, name)
        except OmegaConfBaseException as error:
            raise InputError(_first_line(error)) from error
        if not str(value or "").strip():
            raise InputError(f"{name} is {value!r}; it must be a folder, such as runs/NAME")


def with_folder(overrides: Sequence[str], folder: str) -> list[str]:
    """Return the overrides with a further folder of configurations, as --config-dir names it.

    Errors:
        InputError: there is no such folder.
    """
    path = Path(folder).absolute()
    if not path.is_dir():
        raise InputError(
            f"--config-dir is {folder!r}; it must be a folder of configurations, such as my_conf/experiment/"
        )
    given = [row for row in overrides if row.startswith("hydra.searchpath=")]
    folders = [f"file://{path}"]
    for row in given:
        folders += [str(entry) for entry in OmegaConf.create(row.partition("=")[2])]
    return [*(row for row in overrides if row not in given), override("hydra.searchpath", folders)]


def without_null(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ~GROUP for GROUP=null, which Hydra's own reading of a choice does not take."""
    groups = {path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()}
    return [
        f"~{name}" if value == "null" and name in groups else row
        for row in overrides
        for name, _, value in [row.partition("=")]
    ]


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the command itself or, for a sweep, a row for each value, all others at their first: each is checked."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(_first_line(error)) from error
    _check_choices(parsed)
    values = [_values(row) for row in parsed]
    first = [row[0] for row in values if row]
    rows = [first]
    position = 0
    for row in values:
        if row:
            rows += [[*first[:position], value, *first[position + 1 :]] for value in row[1:]]
            position += 1
    return rows


def _check_choices(parsed: Sequence[Override]) -> None:
    """A choice is a name or a list of names; Hydra's own error says less."""
    groups = {path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()}
    for row in parsed:
        if row.key_or_group in groups and not row.is_sweep_override() and not row.is_delete():
            chosen = row.value()
            entries = chosen if isinstance(chosen, list) else [chosen]
            if not all(isinstance(entry, str) for entry in entries):
                name = row.key_or_group
                raise InputError(
                    f"{row.input_line}: a choice is a name or a list of names, {name}=NAME or {name}=[NAME]"
                )


def _values(row: Override) -> list[str]:
    """The overrides that a sweep makes of one; none where a sweeper draws from an interval or a pattern."""
    if not row.is_sweep_override():
        return [row.input_line or ""]
    if row.is_choice_sweep() or row.is_range_sweep():
        return [f"{row.get_key_element()}={value}" for value in row.sweep_string_iterator()]
    return []


def _explain(program: str, name: str, overrides: Sequence[str], error: Exception) -> str:
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
        wrong = match[1].partition("@")[0]
        others = [row for row in overrides if not row.lstrip("+~").startswith(match[1])]
        names = _known_names(name, others)
        if wrong in names:  # a folder of conf/ that this program takes nothing from
            hint = f"; {'evaluate' if program == 'train' else 'train'}.py has it"
        else:
            hint = did_you_mean(wrong, names)
        return f"{wrong}: there is no such setting{hint}; `{program}.py --cfg job` prints all of them"
    return _first_line(error)


def _known_names(name: str, overrides: Sequence[str]) -> list[str]:
    groups = [path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()]
    try:
        config = compose(name, list(overrides))
    except (HydraException, OmegaConfBaseException):
        return groups
    return groups + [leaf for leaf, _ in flat(OmegaConf.to_container(config, resolve=False))]  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        problem = str(error.message).splitlines()[0]
        return f"{error.override}: {problem}; the form is name=value, text with spaces in quotes"
    lines = [
        line.strip() for line in (str(error) or "the defaults list cannot be composed").splitlines() if line.strip()
    ]
    return " ".join(line for line in lines if not line.startswith("object_type"))


def is_sweep() -> bool:
    """Return whether this process runs the jobs of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def without_hydra(config: DictConfig) -> DictConfig:
    """Return the settings alone, as Hydra hands them to a job."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the job's configuration as plain dicts, lists, numbers and texts, everything resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
