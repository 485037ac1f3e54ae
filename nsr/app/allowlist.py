"""Allowlist of the classes that a checkpoint's settings may name, applied before anything is imported.

Hydra's `instantiate` imports and calls any `_target_`, at any depth and inside lists; its own block list leaves most of
Python callable. So the settings of a checkpoint reach it only as the copy that `admitted` returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from nsr import data, models
from nsr.app.configuration import mappings
from nsr.app.instantiation import locate
from nsr.data.downloads import TorchvisionData
from nsr.errors import InputError
from nsr.models.build import torchvision_classifiers
from nsr.run.directory import MOST_VALUES
from nsr.run.own import is_trusted

DEPTH = 20  # a run of ours has 3 levels, some 150 values and the names of its classes
# arguments that fetch or read weights: a checkpoint has its own
LOADERS = {"weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path", "cache_dir"}
LOADERS |= {f"pretrained_{name}" for name in ("cfg", "cfg_overlay", "strict", "filter_fn", "model_args")}
LOADERS |= {"features_only", "weights_prefix", "new_head"}
OF_THE_CLASSIFIER = ("normalization", "output", "auxiliary")  # beside the network's own arguments
FORWARDING = ("nsr.models.timm_model", "nsr.models.torchvision_model")  # pass further arguments on to the library


def plain_copy(value: Any, place: str) -> Any:
    """Return a copy made of dicts, lists, numbers and texts alone; `place` names it in an error.

    Errors:
        InputError: it holds anything else, an interpolation, or more values than the settings of a run.
    """
    return _copied(value, place, 0, count())


def admitted(part: str, settings: Any, *, trusted: Sequence[str] = (), is_own: bool = False) -> dict[str, Any]:
    """Return a copy of a checkpoint's settings that may be instantiated.

    Allowed are, for the model, the public names of nsr.models, the builders of torchvision's image classifiers and
    timm.create_model without a hub's names, the latter two with numbers alone; for the data, the data sets of nsr.data.
    Arguments that fetch or read weights are left out. Nothing is imported that the settings name.

    Args:
        part: 'model' or 'data'.
        trusted: further names or patterns that the user allows; their arguments are left as they are.
        is_own: the settings are those of a run that this user started, which may name any class.

    Errors:
        InputError: anything else is named at any depth, or hydra's other keys (`_args_`, `_partial_`, ...) are used.
    """
    settings = plain_copy(settings, part)
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise InputError(f"the checkpoint's {part} names no class; give {part}=NAME")
    found: list[tuple[str, Any]] = list(mappings(settings, part))
    for place, mapping in found:
        for key in mapping:
            if key.startswith("_") and key != "_target_":
                raise InputError(f"the checkpoint's {place} has {key}, which is hydra's: refused; give {part}=NAME")
    named = [row for row in found if "_target_" in row[1]]
    for place, mapping in named:
        check_name(place, mapping["_target_"])
    checked = [row for row in named if not trusts(row[1]["_target_"], trusted)]
    if is_own:
        checked = [row for row in checked if _is_shipped(part, row[0], row[1]["_target_"])]
    for place, mapping in checked:
        if not _is_shipped(part, place, mapping["_target_"]):
            ours = "networks of nsr, torchvision and timm" if part == "model" else "data sets of nsr"
            raise InputError(refusal(place, mapping["_target_"], ours, f"else give {part}=NAME"))
    for place, mapping in checked:
        for key in LOADERS & mapping.keys():
            del mapping[key]
        _check_arguments(part, place, mapping)
    return settings


def on_this_machine(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the admitted data of a checkpoint without a download, with no more loader processes than cores."""
    kind = getattr(data, str(settings["_target_"]).removeprefix("nsr.data."), None)
    if isinstance(kind, type) and issubclass(kind, TorchvisionData):
        settings = {**settings, "download": False}
    if isinstance(workers := settings.get("num_workers"), int):
        settings = {**settings, "num_workers": min(workers, os.cpu_count() or 1)}
    return settings


def targets(settings: Mapping[str, Any]) -> list[str]:
    """Return every `_target_`, at any depth."""
    return [mapping["_target_"] for _, mapping in mappings(settings) if "_target_" in mapping]


def _copied(value: Any, place: str, depth: int, counted: Iterator[int]) -> Any:
    if depth > DEPTH or next(counted) > MOST_VALUES:
        raise InputError(f"the checkpoint's {place} is deeper or larger than the settings of a run: refused")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not key.isprintable():
                raise InputError(f"the checkpoint's {place} has the key {_shown(key)}: refused; it must be plain text")
        return {str(key): _copied(entry, f"{place}.{key}", depth + 1, counted) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(entry, f"{place}[{index}]", depth + 1, counted) for index, entry in enumerate(value)]
    if value is not None and type(value) not in (bool, int, float, str):
        raise InputError(f"the checkpoint's {place} is a {type(value).__name__}: refused; settings are plain values")
    if isinstance(value, str) and ("${" in value or value == "???"):  # OmegaConf resolves or refuses these two
        raise InputError(f"the checkpoint's {place} is {_shown(value)}: settings that look something up are refused")
    return value


def check_name(place: str, target: Any) -> None:
    """Raise InputError unless a checkpoint's `_target_` is a dotted name."""
    if not isinstance(target, str) or not all(name.isidentifier() for name in target.split(".")):
        raise InputError(f"the checkpoint's {place} names {_shown(target)}, which is not a class: refused")


def trusts(target: str, trusted: Sequence[str]) -> bool:
    """Return whether the user trusts a `_target_`, by its name or by a pattern of the package that defines it.

    What a module of that package has imported is none of the package's: 'mypackage.nets.os.system'.
    """
    if target in trusted or not is_trusted(target, trusted):
        return target in trusted
    try:
        found = locate({"_target_": target}, "trusted")
    except InputError:  # neither can it be called later, where the reason is reported
        return True
    return is_trusted(f"{getattr(found, '__module__', None)}.", trusted)


def refusal(place: str, target: str, ours: str, otherwise: str) -> str:
    """Return the line that refuses a class that is neither shipped nor trusted."""
    return (
        f"the checkpoint's {place} is {target}, which is none of the {ours}, and was not imported; if you trust that "
        f"code, add trusted=[{target}], {otherwise}"
    )


def _is_shipped(part: str, place: str, target: str) -> bool:
    return _is_model(target) if part == "model" else _is_data_set(target) and place == part


def _is_model(target: str) -> bool:
    module, _, name = target.rpartition(".")
    if module == "torchvision.models":
        return name in torchvision_classifiers()
    return target == "timm.create_model" or (module == "nsr.models" and name in models.__all__)


def _is_data_set(target: str) -> bool:
    module, _, name = target.rpartition(".")
    kind = getattr(data, name) if module == "nsr.data" and name in data.__all__ else None
    is_data_set = isinstance(kind, type) and issubclass(kind, data.ImageData) and kind is not data.ImageData
    return is_data_set or target == "nsr.data.npz"


def _check_arguments(part: str, place: str, mapping: Mapping[str, Any]) -> None:
    """Allow third-party builders numbers alone: they pass other values on to code that was not reviewed."""
    target = mapping["_target_"]
    if target.startswith("nsr.") and target not in FORWARDING:
        return
    exempt = {"_target_", *(OF_THE_CLASSIFIER if place == part else ()), *(["name"] if target in FORWARDING else ())}
    for key, value in mapping.items():
        if key in exempt:
            continue
        if key == "model_name" and target == "timm.create_model":
            if not isinstance(value, str) or not value.replace(".", "_").isidentifier():
                raise InputError(f"the checkpoint's {place}.{key} is {_shown(value)}, no name of timm's own: refused")
        elif not all(isinstance(number, (int, float, type(None))) for number in _leaves(value)):
            raise InputError(
                f"the checkpoint's {place}.{key} is {_shown(value)}; arguments of {target} must be numbers; if you "
                f"trust them, add trusted=[{target}]"
            )


def _leaves(value: Any) -> list[Any]:
    return [leaf for entry in value for leaf in _leaves(entry)] if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
