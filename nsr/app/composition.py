"""Compose and check the configuration of a command line; every error is one line.

Hydra would report a wrong name in several lines and without a guess at the right one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from nsr.app.configuration import check_complete, check_names, check_settings
from nsr.app.rules import NORMS
from nsr.errors import InputError, check_choice, did_you_mean, fraction, named_arguments
from nsr.run.commands import override
from nsr.run.directory import flat
from nsr.run.plain_text import printable
from nsr.run.processes import local_processes, machines

PACKAGE = Path(__file__).resolve().parents[1]
# a wheel holds the folder inside the package; in a checkout it stands beside it
CONFIGURATIONS = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
SEARCH_PATH = "hydra.searchpath="
GROUPS = {path.name for path in CONFIGURATIONS.iterdir() if path.is_dir()}
SINGLE = ("data", "model", "objective", "train_attack", "validation_attack", "stabilizer", "optimizer", "scheduler")
LISTS = ("test_attacks", "callbacks", "logger", "analyses")
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


def evaluation_name(checkpoint: str | None) -> str:
    """Return 'NAME best' for runs/NAME/DATE/checkpoints/best.ckpt or NAME/checkpoints/best.ckpt, else its own name."""
    path = Path(str(checkpoint or "evaluation")).absolute()  # a number is refused later, by its name
    if path.parent.name != "checkpoints":
        return path.stem
    run = path.parents[1]
    return f"{run.parent.name if re.match(r'[0-9]{4}-[0-9]{2}-[0-9]{2}_', run.name) else run.name} {path.stem}"


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


def epochs(max_epochs: Any, replays: Any) -> Any:
    """Return the epochs of the Trainer: free training replays each batch, so takes fewer (Shafahi et al. 2019)."""
    are_counts = all(isinstance(value, int) and value > 0 for value in (max_epochs, replays))
    return -(-max_epochs // replays) if are_counts else max_epochs


def sweep() -> str | None:
    """Return the name of a sweep's directory, the same for all its jobs; None for a single run."""
    return Path(HydraConfig.get().sweep.dir).absolute().name if is_sweep() else None


def chosen(*groups: str) -> ListConfig:
    """Return the choices of some groups of conf/, each name once, without groups that were left out."""
    return OmegaConf.create([*dict.fromkeys(_choices(groups))])  # --resolve fails on a plain list


def run_name(seed: int) -> str:
    """Return DATA_MODEL_OBJECTIVE_STABILIZER_seedN."""
    return "_".join([*_choices(("data", "model", "objective", "stabilizer")), f"seed{seed}"])


def _choices(groups: Sequence[str]) -> list[str]:
    choices = HydraConfig.get().runtime.choices
    return [str(choices[group]) for group in groups if choices.get(group) is not None]


for resolver in (
    *(evaluation_directory, evaluation_name, times, fraction_of, epochs, sweep, chosen, run_name),
    *(local_processes, machines),
):
    OmegaConf.register_new_resolver(f"nsr.{resolver.__name__}", resolver, replace=True)


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
            raise InputError(_explain(program, name, overrides, error)) from error
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
            raise InputError(_first_line(error)) from error
        check_settings(settings, program)
        check_names(settings, known, OmegaConf.to_yaml(config), program)
        return config


def selected_directory(config: DictConfig, name: str) -> Path:
    """Return the absolute path in hydra.run.dir or hydra.sweep.dir; InputError where it is none."""
    try:
        value = OmegaConf.select(config, name)
    except OmegaConfBaseException as error:
        raise InputError(_first_line(error)) from error
    if not str(value or "").strip():
        raise InputError(f"{name} is {value!r}; it must be a folder, such as runs/NAME")
    return Path(str(value)).absolute()


def with_folder(overrides: Sequence[str], folder: str) -> list[str]:
    """Return the overrides with the folder of --config-dir, which must exist, in Hydra's search path."""
    if not Path(folder).is_dir():
        form = "it must be a folder of configurations, such as my_conf/experiment/"
        raise InputError(f"--config-dir is {folder!r}; {form}")
    others = [row for row in overrides if not row.startswith(SEARCH_PATH)]
    return [*others, override("hydra.searchpath", [f"file://{Path(folder).absolute()}", *_folders(overrides)])]


def _folders(overrides: Sequence[str]) -> list[str]:
    """Return the folders of hydra.searchpath, [] where it is no list; Hydra says then what is wrong with it."""
    given = [OmegaConf.create(row.partition("=")[2]) for row in overrides if row.startswith(SEARCH_PATH)]
    return [str(folder) for folders in given if OmegaConf.is_list(folders) for folder in folders]


class FurtherFolders(SearchPathPlugin):
    """Let a primary configuration lie in a folder of hydra.searchpath, which Hydra reads after that configuration."""

    folders: ClassVar[list[str]] = []  # of the command

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders; Hydra calls it whenever it looks for configurations."""
        for folder in self.folders:
            search_path.append("nsr", folder)


def search_further_folders(overrides: Sequence[str]) -> None:
    """Find primary configurations in the folders that a command names, its own and those of a run it resumes."""
    FurtherFolders.folders = _folders(overrides)
    for folder in FurtherFolders.folders:
        scheme, _, path = folder.rpartition("://")
        if scheme in ("", "file") and not Path(path).is_dir():
            form = "it must name folders of configurations, such as [file:///home/me/my_conf]"
            raise InputError(f"hydra.searchpath names {folder!r}, which is no folder; {form}")
    if FurtherFolders.folders:
        Plugins.instance().register(FurtherFolders)


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
        raise InputError(_first_line(error)) from error
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


def _explain(program: str, name: str, overrides: Sequence[str], error: Exception) -> str:
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
        hint = f"; {other}.py has it" if wrong in names else did_you_mean(wrong, others)
        added = f"; +{wrong}=... adds one" if "." in wrong and not hint and others_too else ""
        return f"{wrong}: there is no such setting{hint}; `{program}.py --cfg job` prints all of them{added}"
    return _first_line(error)


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


def _first_line(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        problem = str(error.message).splitlines()[0]
        return f"{printable(error.override)}: {problem}; the form is name=value, text with spaces in quotes"
    text = str(error) or "the defaults list cannot be composed"
    if text.startswith("Error merging") and error.__cause__ is not None:
        text = f"{text}: {str(error.__cause__).partition(chr(10))[0]}"
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("object_type"))


def is_sweep() -> bool:
    """Return whether this process runs the jobs of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def without_hydra(config: DictConfig) -> DictConfig:
    """Return the settings alone, as Hydra hands them to a job."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the job's configuration as plain dicts, lists, numbers and texts, everything resolved."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
