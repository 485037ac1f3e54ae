"""From a `_target_` to an object; whatever goes wrong is one line that names the place in the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from hydra import utils
from hydra.errors import InstantiationException

from nsr.errors import InputError, RunStopped, did_you_mean, named_arguments

Settings = Mapping[str, Any]
EXAMPLES = 2  # images of a trial pass


def instantiate(settings: Any, place: str, **further: Any) -> Any:
    """Make what `settings` name, lists and dicts plain; InputError in one line where that fails."""
    try:
        return utils.instantiate(settings, **further, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, RunStopped):
            raise cause from error
        raise InputError(in_place(place, cause, settings)) from error


def make_callable(settings: Settings, place: str, **further: Any) -> Any:
    """Make something that nsr calls later: an object of a class, or a function with its settings bound.

    A function is bound where it lacks arguments that have no default, as are a torch optimizer and a schedule; one
    that lacks none is called, and makes the callable.

    Args:
        place: of the settings in the configuration.
        further: arguments.
    """
    check_arguments(settings, place, fix="" if "." in place else f"; {place}=null leaves out those of the choice")
    made = instantiate(bound(settings, place, further), place, **further)
    if not callable(made):
        raise InputError(
            f"{place}._target_ is {settings['_target_']}, which gives a {type(made).__name__}; it must be callable"
        )
    return made


def check_arguments(settings: Settings, place: str, *, fix: str = "") -> None:
    """Raise InputError for a setting that the signature of the `_target_` does not name; `fix` is for one of a choice.

    Such a setting is a slip, or belongs to the choice in conf/ whose `_target_` was replaced.
    """
    named, takes_others = named_arguments(locate(settings, place))
    for name in settings:
        if not takes_others and name not in named and not name.startswith("_"):
            known, hint = ", ".join(named) or "none", did_you_mean(name, named)
            wrong = f"{place}.{name} is not an argument of {settings['_target_']}{hint}; it takes {known}"
            raise InputError(wrong if hint else f"{wrong}{fix}")


def bound(settings: Any, place: str, further: Settings | None = None) -> Any:
    """Return settings, or a list of them, marked `_partial_` where a function lacks arguments; see `make_callable`."""
    if isinstance(settings, list):
        return [bound(entry, place) for entry in settings]
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        return settings
    factory = locate(settings, place)
    needed = [entry.name for entry in parameters(factory).values() if entry.default is entry.empty]
    is_late = place in ("optimizer", "scheduler") or not isinstance(factory, type)
    is_partial = is_late and any(name not in {**settings, **(further or {})} for name in needed)
    return {**settings, "_partial_": True} if is_partial else settings


def in_place(place: str, cause: BaseException, settings: Any = None) -> str:
    """Return one line for an error at a place of the configuration."""
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, InputError):
        return reason if reason.startswith(place.partition(".")[0]) else f"{place}: {reason}"
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    return f"{place}: {target} cannot be made: {reason}" if target else f"{place}: {reason}"


def locate(settings: Settings, place: str) -> Callable[..., Any]:
    """Import the `_target_` of settings; InputError where it cannot be imported, or called."""
    target = str(settings["_target_"])
    try:
        found = _imported(target)
    except (Exception, SystemExit) as error:  # whatever a module raises as it is imported
        reason = " ".join(str(error).split())
        raise InputError(
            f"{place}._target_ is {target}; it must be importable, from an installed package or a module in the "
            f"working directory ({reason})"
        ) from error
    if not callable(found):
        raise InputError(f"{place}._target_ is {target}, a {type(found).__name__}; it must be a class or a function")
    return found


def _imported(target: str) -> Any:
    """What a dotted name leads to; Hydra's own function would print what it tries."""
    names = target.split(".")
    for count in range(len(names) - 1, 0, -1):
        module = ".".join(names[:count])
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if count > 1 and error.name is not None and f"{module}.".startswith(f"{error.name}."):
                continue  # a class whose attribute is named
            raise
        for name in names[count:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(target)


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that the signature of `factory` names, none where a builtin has no signature."""
    try:
        named = inspect.signature(factory).parameters
    except ValueError:
        return {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in named.items() if parameter.kind not in kinds}


def chosen(settings: Settings, group: str) -> Iterator[tuple[str, str, Settings]]:
    """Yield (name, place, settings) of every entry of a group such as callbacks; null leaves an entry out."""
    for name, own in (settings.get(group) or {}).items():
        if own is not None:
            yield str(name), f"{group}.{name}", own


def make_one(settings: Settings, place: str, kind: type | tuple[type, ...], what: str, **offered: Any) -> Any:
    """Make an object of some class; each offered argument is passed where the signature names it and nothing sets it.

    Errors:
        InputError: it is of another class.
    """
    check_arguments(settings, place)
    named = parameters(locate(settings, place)).keys() - settings.keys()
    made = instantiate(settings, place, **{name: value for name, value in offered.items() if name in named})
    if not isinstance(made, kind):
        raise InputError(f"{place} is a {type(made).__name__}; it must be {what}")
    return made


@contextmanager
def trial(place: str, what: str) -> Iterator[None]:
    """Turn whatever a user's own object raises in a trial into an InputError; leave global draws as they were."""
    try:
        with torch.random.fork_rng([]):
            yield
    except InputError as error:
        raise InputError(in_place(place, error)) from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{place}: {what} failed in a trial ({reason})") from error
