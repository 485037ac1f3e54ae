"""Find the weights of a network in whatever mappings a file nests them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from nsr.compat import versions_of, with_versions
from nsr.errors import InputError

LEVELS = 4  # of mappings in mappings
COMPILED = "_orig_mod."  # torch.compile's, in front of a network's names or inside them
BATCH_COUNTER = ".num_batches_tracked"  # of BatchNorm, younger than many weight files
LARGEST = 4  # channels of an image, at most

State = dict[str, Tensor]


def flat(content: Any, levels: int = LEVELS, seen: set[int] | None = None) -> State:
    """Return {dotted name: tensor} of mappings in mappings, each once, with the versions of the modules."""
    found: State = {}
    seen = set() if seen is None else seen
    versions: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor) and isinstance(key, str):
            found[key] = value
        elif isinstance(key, str) and levels and id(value) not in seen:
            seen.add(id(value))  # a small file can name one mapping very often
            inner = flat(value, levels - 1, seen)
            found |= {f"{key}.{name}": tensor for name, tensor in inner.items()}
            versions |= {f"{key}.{module}".removesuffix("."): each for module, each in versions_of(inner).items()}
    return with_versions(found, versions | dict(versions_of(content)))


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the entries whose names begin with `prefix`, without it, and the versions of their modules."""
    found = {key[len(prefix) :]: tensor for key, tensor in state.items() if str(key).startswith(prefix)}
    versions = versions_of(state).items()
    return with_versions(found, {key[len(prefix) :]: each for key, each in versions if f"{key}.".startswith(prefix)})


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> State:
    """Return the entries, and the versions of their modules, with each part of a name in `names` replaced, in order."""

    def new(key: str) -> str:
        for old, name in names.items():
            key = key.replace(old, name)
        return key

    versions = {new(f"{key}.")[:-1]: each for key, each in versions_of(state).items()}
    return with_versions({new(key): tensor for key, tensor in state.items()}, versions)


def prefixes(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes under which most of the expected names are stored, if possible in the same shapes.

    Prefixes whose tensors are equal count once.
    """
    counts: Counter[str] = Counter()
    for key in stored:
        for start in (0, *(place + 1 for place, character in enumerate(key) if character == ".")):
            counts[key[:start]] += key[start:] in expected and not key.endswith(BATCH_COUNTER)
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most] if most else [""]
    of = {prefix: {key: stored[prefix + key] for key in expected if prefix + key in stored} for prefix in best}
    fitting = [p for p in best if all(tensor.shape == expected[key].shape for key, tensor in of[p].items())] or best
    return [p for place, p in enumerate(fitting) if not any(_equal(of[p], of[before]) for before in fitting[:place])]


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def choose_prefix(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], name: str) -> str:
    """Return the one prefix of the weights in the file called `name`; InputError where several fit."""
    first, *others = prefixes(expected, stored)
    if others:
        fitting = ", ".join(repr(prefix or ".") for prefix in (first, *others))
        fix = f"choose with model.weights_prefix={others[0].removesuffix('.')}"
        raise InputError(f"{name} holds different weights that fit, under {fitting}; {fix}")
    return first


def similarity(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    """Return the fraction of names, and of names with shapes, that two state_dicts have in common, under any prefix."""
    state = below(stored, prefixes(expected, stored)[0])
    ours, theirs = ({*each, *((key, tensor.shape) for key, tensor in each.items())} for each in (expected, state))
    return len(ours & theirs) / len(ours | theirs)


def constants(state: Mapping[str, Tensor], names: Collection[str]) -> list[tuple[str, str]]:
    """Return pairs of names that look like a mean and a standard deviation for each channel.

    A pair are the only two of the names in their module, of one shape, with 1 to 4 numbers each, the second positive.
    By name, for safetensors keeps no order: mean stands before std as mu does before sigma.
    """
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    pairs = [(first, second) for first, second in map(sorted, (each for each in modules.values() if len(each) == 2))]
    return [(mean, std) for mean, std in pairs if _are_constants(state[mean], state[std])]


def _are_constants(mean: Tensor, std: Tensor) -> bool:
    is_small = mean.shape == std.shape and mean.ndim > 0 and 1 <= mean.numel() <= LARGEST
    return is_small and std.is_floating_point() and not std.is_meta and bool((std > 0).all())
