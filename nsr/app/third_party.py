"""A run directory that another user made: its settings as overrides of this user's own command.

Its recorded command is never read. Only the resolved settings of its config.yaml are, as plain values: classes are
those of conf/ in their own group and those of nsr.app.allowlist, everything that conf/ does not have must be numbers,
and Hydra's settings, loggers, trusted names and downloads are not taken from it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from nsr.app.allowlist import admitted, check_name, on_this_machine, plain_copy, refusal, trusts
from nsr.app.composition import plain, without_hydra
from nsr.app.configuration import mappings
from nsr.app.folders import CONFIGURATIONS, GROUPS
from nsr.app.rules import PLACE
from nsr.data import DataDescription
from nsr.errors import InputError
from nsr.run.commands import name_of, override
from nsr.run.directory import BESIDE, OWN, read_settings
from nsr.run.own import trusted_names

NOT_TAKEN = {*BESIDE, *OWN, "hydra", "logger", "trusted", "class_names", "data_origin"}
KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
PARTS = ("data", "model", "objective", "stabilizer", "optimizer", "scheduler", "trainer", "train_attack")
PASSES = 2  # a setting may be derived from one that the first pass has changed
PARTIAL = ("optimizer", "scheduler")  # made late, by `_partial_`


def admitted_command(directory: Path, typed: Sequence[str]) -> list[str]:
    """Return the overrides that give the settings of another user's run, without those of groups that are typed anew.

    Errors:
        InputError: there is no run, it has links, or its settings name what is neither shipped nor trusted.
    """
    if not (directory / "config.yaml").exists():
        raise InputError(f"there is no run of train.py in {directory} (no config.yaml); resume=auto looks for one")
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            what = "a link" if path.is_symlink() else "neither a file nor a folder"
            raise InputError(f"{path} is {what}, in the directory of a run that this user did not start: refused")
    chosen = {name_of(row) for row in typed} & GROUPS
    groups = [row for row in typed if name_of(row) in {*GROUPS, "trusted", "hydra.searchpath"}]
    try:
        recorded = read_settings(directory / "config.yaml")
        choices = _choices(recorded.get("choices"))
        trusted = trusted_names(_composed(groups)["trusted"] if groups else ())
        settings = _admitted({name: value for name, value in recorded.items() if name not in NOT_TAKEN}, trusted)
    except InputError as error:
        problem = str(error).replace("the checkpoint's", "its")
        raise InputError(f"{directory} is a run that this user did not start: {problem}") from error
    rows = list(choices)
    for _ in range(PASSES):
        base = {name: value for name, value in _composed(rows).items() if name not in NOT_TAKEN}
        for name in DataDescription.__dataclass_fields__:  # written as found in the data, which describe themselves
            if base["data"].get(name) is None:
                settings["data"].pop(name, None)
                base["data"].pop(name, None)
        rows += _changes(settings, base)
    kept = [row for row in rows if name_of(row).partition(".")[0] not in chosen]
    return [*kept, *(["logger=csv"] if "logger" not in chosen else [])]


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    with initialize_config_dir(config_dir=str(CONFIGURATIONS), version_base="1.3"):
        try:
            config = compose("train", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)  # that some settings are derived from
            return plain(without_hydra(config))
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(" ".join(str(error).split())) from error


def _choices(recorded: Any) -> list[str]:
    """Return GROUP=NAME for the recorded choices that conf/ has; all else follows from the settings."""
    found = []
    for group, name in recorded.items() if isinstance(recorded, Mapping) else ():
        is_name = group in PARTS and isinstance(name, str) and KEY.fullmatch(name) is not None
        if is_name and (CONFIGURATIONS / group / f"{name}.yaml").is_file():
            found.append(f"{group}={name}")
    return found


def _admitted(settings: Mapping[str, Any], trusted: Sequence[str]) -> dict[str, Any]:
    found = plain_copy(settings, "settings")
    for part in ("model", "data"):
        own = found.get(part)
        found[part] = admitted(part, own, trusted=trusted)
        if part == "model" and "weights" in own:  # a file that is read as any checkpoint
            found[part]["weights"] = PLACE("the checkpoint's model.weights", own["weights"])
            found[part] |= {name: own.get(name) for name in ("weights_prefix", "new_head")}
    found["data"] = on_this_machine(found["data"])
    for place, mapping in mappings(found):
        if wrong := next((key for key in mapping if not KEY.fullmatch(key)), None):
            raise InputError(f"the checkpoint's {place} has the key {wrong!r}: refused; it must be a name")
    for name, value in found.items():
        if name not in ("model", "data"):
            _check(name, value, trusted, is_free=not isinstance(value, Mapping) or name == "checks")
    return found


def _check(place: str, value: Any, trusted: Sequence[str], *, is_free: bool) -> None:
    """Raise InputError where a value names a class, or is a text, that conf/ does not have at its place.

    Args:
        is_free: texts are allowed.
    """
    classes, names = _shipped()[_group(place)]
    if isinstance(value, Mapping):
        if value.get("_target_") is not None:
            check_name(place, value["_target_"])
            is_free = trusts(value["_target_"], trusted)
            if not is_free and value["_target_"] not in classes:
                fix = "else start a new run"
                raise InputError(refusal(place, value["_target_"], "classes that nsr has there", fix))
        for key, entry in value.items():
            is_partial = key == "_partial_" and entry is True and place in PARTIAL
            if key.startswith("_") and key != "_target_" and not is_partial:
                raise InputError(f"the checkpoint's {place} has {key}, which is hydra's: refused")
            _check(f"{place}.{key}", entry, trusted, is_free=is_free or key in names or key == "_target_")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check(f"{place}[{index}]", entry, trusted, is_free=is_free)
    elif isinstance(value, str) and not is_free:
        raise InputError(f"the checkpoint's {place} is {value!r}; settings that conf/ does not have must be numbers")


def _group(place: str) -> str:
    name = re.split(r"[.\[]", place)[0]
    return "attack" if name.endswith(("_attack", "_attacks")) else name


@cache
def _shipped() -> Mapping[str, tuple[set[str], set[str]]]:
    """Return {group: (classes, names of settings that may be texts)} of conf/."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for path in CONFIGURATIONS.glob("*/*.yaml"):
        classes, names = found[_group(path.parent.name)]
        for _, mapping in mappings(yaml.safe_load(path.read_text(encoding="utf-8"))):
            classes |= {name for key, name in mapping.items() if key == "_target_" and name not in (None, "???")}
            names |= {key for key, value in mapping.items() if value is None or isinstance(value, str)}
    return found


def _changes(settings: Mapping[str, Any], base: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the overrides that turn the composed configuration `base` into the settings."""
    yield from (f"~{prefix}{name}" for name in base if name not in settings)
    for name, value in settings.items():
        place, before = f"{prefix}{name}", base.get(name)
        if isinstance(value, Mapping) and value and isinstance(before, Mapping):
            yield from _changes(value, before, f"{place}.")
        elif name not in base or value != before or type(value) is not type(before):
            yield f"++{override(place, value)}"
