"""From a command line to a checked configuration; what is wrong with it in one line.

Hydra would tell a wrong name in several lines and without a guess at the right one.
"""

from __future__ import annotations

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
from omegaconf.errors import OmegaConfBaseException

from nsr.app.configuration import check_settings, flat
from nsr.app.rules import NORMS
from nsr.errors import InputError, check_choice, did_you_mean, fraction
from nsr.run.processes import local_processes, machines

CONFIGURATIONS = Path(__file__).resolve().parents[2] / "conf"
LAUNCHERS = {
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm"), 'pip install ".[sweeps]"'),
    **dict.fromkeys(("ray", "ray_aws"), "pip install hydra-ray-launcher==1.2.2"),
}


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
    return Path(HydraConfig.get().sweep.dir).absolute().name if is_sweep() else None


def chosen(*groups: str) -> list[str]:
    """What was chosen of some groups of conf/, each name once; what was left out is left out."""
    choices = HydraConfig.get().runtime.choices
    return list(dict.fromkeys(str(choices[group]) for group in groups if choices.get(group) is not None))


for resolver in (evaluation_directory, times, share_of, sweep, chosen, local_processes, machines):
    OmegaConf.register_new_resolver(f"nsr.{resolver.__name__}", resolver, replace=True)


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


def jobs(overrides: Sequence[str]) -> list[list[str]]:
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
        if name in names:  # a folder of conf/ that this program takes nothing from
            hint = f"; {'evaluate' if config_name == 'train' else 'train'}.py has it"
        else:
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


def is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


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
