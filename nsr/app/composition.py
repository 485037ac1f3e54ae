"""Compose and check the configuration of a command line; every error is one line.

Hydra would report a wrong name in several lines and without a guess at the right one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from nsr.app import resolvers
from nsr.app.configuration import check_complete, check_names, check_settings
from nsr.app.explanation import explain, first_line
from nsr.app.folders import CONFIGURATIONS, GROUPS
from nsr.app.rules import NORMS
from nsr.errors import InputError, check_choice

SINGLE = ("data", "model", "objective", "train_attack", "validation_attack", "stabilizer", "optimizer", "scheduler")
LISTS = ("test_attacks", "callbacks", "logger", "analyses")

resolvers.register()


@functools.cache
def _known_settings(program: str) -> tuple[str, ...]:
    """Return the names of a program's settings, composed once a process."""
    return tuple(map(str, compose(program)))


def compose_checked(program: str, overrides: Sequence[str], config_name: str | None = None) -> DictConfig:
    """Compose and check a configuration, including Hydra's own settings; InputError in one line.

    Args:
        program: 'train' or 'evaluate'.
        config_name: of the primary configuration; None: the program's.
    """
    name = config_name or program
    with initialize_config_dir(config_dir=str(CONFIGURATIONS), version_base="1.3"):
        try:
            config = compose(name, list(overrides), return_hydra_config=True)
        except RecursionError as error:
            raise InputError("a file of the configuration has itself among its defaults; take it out there") from error
        except (HydraException, OmegaConfBaseException, YAMLError, TypeError, ValueError, AssertionError) as error:
            raise InputError(explain(program, name, overrides, error)) from error
        HydraConfig.instance().set_config(config)
        check_complete(config, program)
        check_choice("norm", config.norm, (*NORMS, None))  # other settings are looked up with it
        try:
            OmegaConf.select(config, "epsilon")
        except InterpolationResolutionError as error:
            why = f"epsilon is not given, and data.epsilon has none for norm={config.norm}"
            raise InputError(f"{why}; give a radius: epsilon=8/255") from error
        try:
            settings = plain(without_hydra(config))  # a missing value stays '???', and is reported as missing
            known = _known_settings(program)
        except OmegaConfBaseException as error:
            raise InputError(first_line(error)) from error
        check_settings(settings, program)
        check_names(settings, known, OmegaConf.to_yaml(config), program)
        return config


def selected_directory(config: DictConfig, name: str) -> Path:
    """Return the absolute path in hydra.run.dir or hydra.sweep.dir; InputError where it is none."""
    try:
        value = OmegaConf.select(config, name)
    except OmegaConfBaseException as error:
        raise InputError(first_line(error)) from error
    if not str(value or "").strip():
        raise InputError(f"{name} is {value!r}; it must be a folder, such as runs/NAME")
    return Path(str(value)).absolute()


def run_directory() -> Path:
    """Return the directory that Hydra made for this job."""
    return Path(HydraConfig.get().runtime.output_dir)


def without_null(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ~GROUP, or GROUP=[], for GROUP=null, which Hydra does not accept."""
    null = {f"{group}=null": f"{group}=[]" if group in LISTS else f"~{group}" for group in GROUPS}
    return [null.get(row, row) for row in overrides]


def jobs(overrides: Sequence[str], *, is_sweep: bool) -> list[list[str]]:
    """Return the command itself or, for a sweep, a row for each value, with all others at their first.

    Errors:
        InputError: an override that cannot be read, or has several values in a command that is no sweep.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(first_line(error)) from error
    _check_choices(parsed)
    several = next((row.input_line for row in parsed if row.is_sweep_override()), None)
    if several is not None and not is_sweep:
        raise InputError(f"{several} has several values; give -m too, for a run of each, or a list: NAME=[...]")
    values = [row for row in map(_values, parsed) if row]
    first = [row[0] for row in values]
    others = [(position, value) for position, row in enumerate(values) for value in row[1:]]
    return [first, *([*first[:position], value, *first[position + 1 :]] for position, value in others)]


def _check_choices(parsed: Sequence[Override]) -> None:
    """A choice is a name or a list of names; Hydra's own error says less."""
    for row in parsed:
        name = row.key_or_group
        if name in GROUPS and not row.is_sweep_override() and not row.is_delete():
            value = row.value()
            if isinstance(value, list) and name in SINGLE:
                raise InputError(f"{row.input_line}: {name} takes one choice, {name}=NAME")
            if not all(isinstance(entry, str) for entry in (value if isinstance(value, list) else [value])):
                form = (
                    f"{name}=NAME or {name}=[NAME]; your own is +{name}._target_=mine.NAME, with {name}=null before it"
                )
                raise InputError(f"{row.input_line}: a choice is a name or a list of names, {form}")


def _values(row: Override) -> list[str]:
    """The overrides that a sweep makes of one; none where a sweeper draws from an interval or a pattern."""
    if not row.is_sweep_override():
        return [row.input_line or ""]
    if row.value_type is ValueType.GLOB_CHOICE_SWEEP:
        if row.key_or_group not in GROUPS:
            raise InputError(f"{row.input_line}: a pattern is for choices, such as model=glob(resnet*)")
    elif row.is_choice_sweep() or row.is_range_sweep():
        values = [f"{row.get_key_element()}={value}" for value in row.sweep_string_iterator()]
        if not values:
            raise InputError(f"{row.input_line} has no value; a sweep needs at least one")
        return values
    return []


def without_hydra(config: DictConfig) -> DictConfig:
    """Return the settings alone, as Hydra hands them to a job."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the job's configuration as plain dicts, lists, numbers and texts, everything resolved."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
