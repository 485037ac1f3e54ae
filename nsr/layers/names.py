"""Names of layers: patterns, numbers of calls, axes, and the errors of names that match nothing."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Sequence

from torch import nn

from nsr.compat import without_compilation
from nsr.errors import InputError, did_you_mean

NAMES_SHOWN = 4


def call_name(module: str, call: int) -> str:
    """('relu', 2) -> 'relu#2'; ('relu', 1) -> 'relu'"""
    return module if call == 1 else f"{module}#{call}"


def call_pattern(entry: str) -> str:
    """'relu#2' -> 'relu#2'; 'relu', which as a pattern means all calls -> 'relu#1'"""
    return entry if "#" in entry else f"{entry}#1"


def name_and_call(entry: str) -> tuple[str, int | None]:
    """'relu#2' -> ('relu', 2); 'relu' -> ('relu', None)"""
    name, _, call = entry.partition("#")
    if call and not call.isdecimal():
        raise InputError(f"layer {entry!r}: what follows # is the number of the call in a pass, as in 'relu#2'")
    return name, int(call) if call else None


def name_and_axis(entry: str) -> tuple[str, int | None]:
    """'rnn@2' -> ('rnn', 2); 'rnn' -> ('rnn', None)"""
    name, mark, axis = entry.partition("@")
    if mark and not re.fullmatch(r"-?\d+", axis):
        raise InputError(f"layer {entry!r}: what follows @ is the axis of the neurons, an integer as in 'rnn@2'")
    return name, int(axis) if mark else None


def calls_matching(pattern: str, entries: Sequence[str]) -> list[str]:
    """Return the entries that a pattern means: one call of a module (`relu#2`), or all calls where it names none."""
    of_module, call = name_and_call(pattern)
    parts = [(entry, *name_and_call(entry)) for entry in entries]
    return [
        entry for entry, name, number in parts if fnmatch.fnmatchcase(name, of_module) and call in (None, number or 1)
    ]


def matching_names(setting: str, patterns: Sequence[str] | None, hooked: Sequence[str]) -> list[str]:
    """Return the hooked layers that the patterns of a setting mean, in their order; None: all of them."""
    for pattern in patterns or ():
        if not calls_matching(pattern, hooked):
            raise InputError(
                f"{setting} has {pattern!r}, which matches no hooked layer{did_you_mean(pattern, hooked)}; hooked are "
                f"{', '.join(hooked)}; layers=[...] hooks others"
            )
    chosen = hooked if patterns is None else {name for each in patterns for name in calls_matching(each, hooked)}
    return [name for name in hooked if name in chosen]


def no_match(pattern: str, names: Sequence[str], net: nn.Module) -> InputError:
    """Return the error of a pattern that matches none of `names`."""
    return InputError(
        f"no layer matches {pattern!r} in {type(without_compilation(net)).__name__}{did_you_mean(pattern, names)}; it "
        f"has {some_names(names)}; layers takes names and patterns such as 'layer1.*'"
    )


def some_names(names: Collection[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f", ... ({len(names) - NAMES_SHOWN} more)" if len(names) > NAMES_SHOWN else ""
    return ", ".join(repr(name) for name in list(names)[:NAMES_SHOWN]) + more
