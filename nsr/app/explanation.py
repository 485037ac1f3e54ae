"""What is wrong with a command line that Hydra cannot compose, in one line with a guess at what was meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsr.app.folders import CONFIGURATIONS, GROUPS
from nsr.errors import InputError, did_you_mean, named_arguments
from nsr.run.directory import flat
from nsr.run.plain_text import printable

LAUNCHERS = {
    "joblib": "pip install hydra-joblib-launcher",
    **dict.fromkeys(("submitit_local", "submitit_slurm"), "pip install hydra-submitit-launcher"),
    **dict.fromkeys(("ray", "ray_aws"), "pip install hydra-ray-launcher==1.2.2"),
}


def explain(program: str, name: str, overrides: Sequence[str], error: Exception) -> str:
    """One line for a name that conf/ does not have."""
    text = str(error)
    if text.startswith("Cannot find primary config"):
        where = "conf/, the folder of --config-dir or hydra.searchpath"
        return f"--config-name is {name!r}; there is no {name}.yaml in {where}: leave it out, or name a file there"
    if isinstance(error, UnicodeDecodeError):
        return f"a file of the configuration is not UTF-8 ({error}); save it as UTF-8"
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
        settings = _settings(name, [row for row in overrides if not row.lstrip("+~").startswith(match[1])])
        target, named, others_too = _arguments(settings, wrong)
        if wrong.rpartition(".")[2] in named:
            return f"{wrong} is not set in conf/; with a plus it goes to {target}: +{wrong}=..."
        names = [*GROUPS, *(leaf for leaf, _ in flat(settings))]
        other = "evaluate" if program == "train" else "train"
        # a name of a folder of conf/ that this program takes nothing from
        others = [each for each in names if not wrong.startswith(f"{each}.")]
        is_new = settings.get(wrong.partition(".")[0], "") in (None, {})  # module, metrics: nothing in it yet
        hint = f"; {other}.py has it" if wrong in names else "" if is_new else did_you_mean(wrong, others)
        added = f"; +{wrong}=... adds one" if "." in wrong and not hint and others_too else ""
        return f"{wrong}: there is no such setting{hint}; `{program}.py --cfg job` prints all of them{added}"
    return first_line(error)


def _settings(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the composed settings, empty where they cannot be composed."""
    try:
        return OmegaConf.to_container(compose(name, list(overrides)))  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException):
        return {}


def _arguments(settings: Mapping[str, Any], name: str) -> tuple[str, Collection[str], bool]:
    """Return the `_target_` that a setting is an argument of ('': none), what it names, and whether it takes others."""
    place = name.rpartition(".")[0]
    for part in filter(None, place.split(".")):
        settings = settings.get(part) if isinstance(settings, Mapping) else None  # type: ignore[assignment]
    if not place or not isinstance(settings, Mapping) or "_target_" not in settings:
        return "", (), True
    from nsr.app.instantiation import locate  # imports torch, which an error alone waits for

    try:
        return str(settings["_target_"]), *named_arguments(locate(settings, place))
    except InputError:
        return "", (), True


def first_line(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        problem = str(error.message).splitlines()[0]
        return f"{printable(error.override)}: {problem}; the form is name=value, text with spaces in quotes"
    text = str(error) or "the defaults list cannot be composed"
    if text.startswith("Error merging") and error.__cause__ is not None:
        text = f"{text}: {str(error.__cause__).partition(chr(10))[0]}"
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("object_type"))
