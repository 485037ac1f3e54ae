"""Write the reference of every setting, from the files of conf/, the rules of nsr and the constructors they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from constructors import allowed, documented, types, written

from nsr.app.folders import CONFIGURATIONS
from nsr.app.rules import MASKING_CHECKS, NORMS, RULES, TARGET_RULES, TRAINING_CHECKS, list_of
from nsr.app.rules import choice as one_of
from nsr.errors import check_epsilon

GROUPS = {  # in the order of the page; the two commands' own settings come first
    "data": "The data set, its split and augmentation.",
    "model": "The network.",
    "objective": "The loss. Each brings a `train_attack` of its own.",
    "train_attack": "The attack that makes the images to train on.",
    "validation_attack": "The attack that measures each epoch; an evaluation takes it as `sensitivity_attack`.",
    "test_attacks": "The attacks of the test and of an evaluation, a list: `test_attacks=[clean,pgd]`.",
    "stabilizer": "The term that is added to the objective.",
    "optimizer": "The optimizer.",
    "scheduler": "The schedule of the learning rate.",
    "callbacks": "Additions to training, a list: `callbacks=[awp,ema]`.",
    "trainer": "Lightning's Trainer; any other of its flags is given with `+`, such as `+trainer.gradient_clip_val=1`.",
    "logger": "Dashboards, a list: `logger=[wandb,csv]`.",
    "analyses": "Analyses of an evaluation, a list: `analyses=[interventions]`.",
    "sweep": "Launchers and sweepers for `-m`.",
    "experiment": "Recipes: each sets the choices above.",
}
GIVEN = {"channels", "classes", "image_size", "num_classes"}  # read from the data, where a constructor names them
RADIUS = partial(check_epsilon, norm=NORMS[0])
STOP_ON = {
    command: list_of(one_of(*checks), f"[{checks[0]}]")
    for command, checks in (("train", TRAINING_CHECKS), ("evaluate", MASKING_CHECKS))
}
Leaf = tuple[str, str]  # the default as it is written, and its comment


@dataclass
class Setting:
    """A setting of one or several choices of a group."""

    defaults: dict[str, str] = field(default_factory=dict)  # {choice: default}
    comment: str = ""
    meaning: str = ""  # of the constructor's docstring
    type: str = ""
    allowed: str = ""


def head(path: Path) -> str:
    """Return the comment at the beginning of a file, without Hydra's directive."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(line for line in lines if not line.startswith("@package"))


def leaves(path: Path) -> dict[str, Leaf]:
    """Return {dotted name: (default, comment)} of a file, with what its defaults list brings from others."""
    text = path.read_text()
    root = yaml.compose(text)
    found: dict[str, Leaf] = {}
    if root is None:
        return found
    for key, value in root.value:
        if key.value == "defaults":
            found |= _inherited(path, yaml.safe_load(text)["defaults"])
        elif key.value != "hydra":
            found |= dict(_leaves(text, key.value, key, value))
    return found


def _inherited(path: Path, defaults: list[Any]) -> dict[str, Leaf]:
    """The leaves of the files of a defaults list that are placed in the same group."""
    found: dict[str, Leaf] = {}
    for entry in defaults:
        name, option = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
        place, _, package = name.partition("@")
        is_group = isinstance(entry, dict) and not package  # a choice of another group
        if name == "_self_" or is_group or "_global_" in package or place.startswith("override "):
            continue
        folder = CONFIGURATIONS if place.startswith("/") else path.parent
        prefix = "" if package in ("", "_here_") else f"{package}."
        own = leaves(folder / f"{place.lstrip('/')}{f'/{option}' if option else ''}.yaml")
        found |= {f"{prefix}{key}": leaf for key, leaf in own.items()}
    return found


def _leaves(text: str, name: str, key: yaml.Node, value: yaml.Node, above: str = "") -> Iterator[tuple[str, Leaf]]:
    """The leaves below a key; a mapping without a comment of its own hands its parent's on."""
    comment = _comment(text, key.end_mark.index) or above
    if isinstance(value, yaml.MappingNode) and value.value:
        for inner, entry in value.value:
            yield from _leaves(text, f"{name}.{inner.value}", inner, entry, comment)
    elif isinstance(value, yaml.SequenceNode) and not value.flow_style:
        yield name, (f"[{', '.join(str(entry.value) for entry in value.value)}]", comment)
    else:
        yield name, (text[value.start_mark.index : value.end_mark.index].strip(), comment)


def _comment(text: str, start: int) -> str:
    """The comment at the end of the line that `start` is in."""
    line = text[start : text.find("\n", start)]
    match = re.search(r"\s# ?(.*)$", line)
    return match[1].strip() if match else ""


def settings_of(group: str) -> dict[str, Setting]:
    """Return the settings of a group, those of its choices merged by name."""
    found: dict[str, Setting] = {}
    for path in sorted((CONFIGURATIONS / group).glob("*.yaml")):
        prefix, values = _prefix(path), leaves(path)
        target = values.get("_target_", ("", ""))[0]
        meanings, parameters = (documented(target), types(target)) if "." in target else ({}, {})
        rules = TARGET_RULES.get(target, {})
        for name, (default, comment) in values.items():
            if name.rpartition(".")[2] in ("_target_", "_partial_"):
                continue
            root, parameter = name.partition(".")[0], parameters.get(name.partition(".")[0])
            setting = found.setdefault(f"{prefix}{name}", Setting())
            setting.defaults[path.stem] = default
            setting.comment = setting.comment or comment
            setting.meaning = setting.meaning or meanings.get(root, "")
            kind = written(parameter.annotation if parameter and root == name else None, default)
            setting.type = setting.type or kind
            rule = rules.get(name) or RULES.get(f"{prefix}{name}")
            rule = rule or (RADIUS if "epsilon" in name.split(".") else None)
            setting.allowed = setting.allowed or allowed(rule)
        for name, parameter in parameters.items() if target.startswith("nsr.") else ():
            if name in meanings and name not in values | dict.fromkeys(GIVEN) and not _takes_no_text(parameter):
                default = "" if parameter.default is inspect.Parameter.empty else _yaml(parameter.default)
                setting = found.setdefault(f"+{prefix}{name}", Setting())
                setting.defaults[path.stem] = default
                setting.meaning, setting.type = meanings[name], written(parameter.annotation, default or "null")
    return {name: entry for name, entry in found.items() if f"{name.lstrip('+')}" not in found or name[0] != "+"}


def _prefix(path: Path) -> str:
    """How the settings of a file are named on the command line, NAME for the choice where several may be chosen."""
    package = re.search(r"^# @package (\S+)", path.read_text())
    place = package[1] if package else path.parent.name
    return re.sub(rf"\.{path.stem}$", ".NAME", place) + "."


def _takes_no_text(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is no setting: an object, or all further arguments."""
    if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
        return True
    plain = (bool, int, float, str, list, tuple, type(None))
    is_plain = parameter.default is parameter.empty or isinstance(parameter.default, plain)
    return not is_plain or any(word in str(parameter.annotation) for word in ("Tensor", "Callable", "Module"))


def _yaml(value: Any) -> str:
    """A value as it is written in a file of conf/."""
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def settings_of_command(name: str) -> dict[str, Setting]:
    """Return the settings of a command that belong to no group."""
    found = {}
    for key, (default, comment) in leaves(CONFIGURATIONS / f"{name}.yaml").items():
        if key.startswith("sensitivity_attack."):  # of the group validation_attack
            continue
        rule = STOP_ON[name] if key == "checks.stop_on" else RADIUS if key == "epsilon" else RULES.get(key)
        found[key] = Setting({name: default}, comment, type=written(None, default), allowed=allowed(rule))
    return found


def table(settings: Mapping[str, Setting], choices: int) -> str:
    """Return a Markdown table with a row for each setting."""
    rows = ["| setting | default | type, allowed values | meaning |", "|---|---|---|---|"]
    for name, entry in settings.items():
        meaning = max(entry.comment, entry.meaning, key=len)  # the file's comment is often the docstring, shorter
        kinds = ": ".join(text for text in (entry.type, entry.allowed) if text)
        cells = (f"`{name}`", _default(entry.defaults, choices), _as_yaml(kinds), _as_yaml(meaning))
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _default(defaults: Mapping[str, str], choices: int) -> str:
    """The most frequent default, then those of other choices by name."""
    by_value: dict[str, list[str]] = {}
    for name, value in defaults.items():
        by_value.setdefault(value, []).append(name)
    most = max(by_value, key=lambda value: len(by_value[value]))
    everywhere = len(defaults) == choices
    shown = []
    for value in sorted(by_value, key=lambda value: value != most):
        text = {"???": "required", "": "-"}.get(value, f"`{value}`")
        is_alone = len(by_value) == 1 and everywhere
        usual = value == most and everywhere and len(by_value[value]) > 1
        shown.append(text if is_alone or usual else f"{text} ({', '.join(by_value[value])})")
    return "; ".join(shown)


def _as_yaml(text: str) -> str:
    """Python's constants as they are typed in a setting."""
    text = text.replace("None (null on the command line)", "null")
    for python, typed in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", typed, text)
    return text


def _cell(text: str) -> str:
    """A cell of a Markdown table: no markup but code spans."""
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    plain = [part if part.startswith("`") else re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts]
    return "".join(plain).replace("|", "\\|")


def page() -> str:
    """Return the reference page."""
    lines = [
        '<div class="settings" markdown>',
        "",
        "# Settings",
        "",
        "Every setting of `python train.py` and `python evaluate.py`, made from `conf/` and the code when this page",
        "was built. `SETTING=VALUE` sets one, `GROUP=NAME` chooses a file of a group. A setting marked with `+` is not",
        "in the files: type the `+` too. `null` is YAML's None, `${norm}` the value of another setting, `NAME` the",
        "name of the choice, as in `test_attacks.pgd.steps`. `--cfg job` prints the settings of a command.",
    ]
    for command in ("train", "evaluate"):
        lines += ["", f"## {command}.py", "", table(settings_of_command(command), 1)]
    for group, what in GROUPS.items():
        paths = sorted((CONFIGURATIONS / group).glob("*.yaml"))
        lines += ["", f"## {group}", "", what, "", f"| `{group}=` | |", "|---|---|"]
        lines += [f"| `{path.stem}` | {_cell(head(path))} |" for path in paths]
        own = {} if group in ("sweep", "experiment") else settings_of(group)
        lines += ["", table(own, len(paths))] if own else []
    text = "\n".join([*lines, "", "</div>", ""])
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[docs/\1](../\1)", text)


if __name__ == "__main__":
    print(page())
