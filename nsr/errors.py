"""Input validation, with one-line messages: the argument, the value, the allowed values and the fix.

This file imports nothing heavy: the command line checks a whole configuration with it before torch is loaded, and the
library checks the arguments of its functions with the same code.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CLOSE = 0.7  # similarity from which a name is suggested


class InputError(ValueError):
    """Input that cannot be used; the message is one line that needs no traceback."""


class RunStopped(RuntimeError):
    """A run that cannot continue, such as one with a loss that is not finite; the message is one line."""


def did_you_mean(got: object, allowed: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the allowed name that is closest to `got`, "" where none is close."""
    text, names = str(got).lower(), list(allowed)
    sections = {name.rpartition(".")[0] for name in names}
    own = [name for name in names if name in sections and text.startswith(f"{name}.")]  # optimizer, of optimizer.foo
    scores = [(_closeness(text, name.lower()), -len(name), name) for name in names if name not in own]
    score, _, best = max(scores, default=(0.0, 0, ""))
    return f" (did you mean {best!r}?)" if score >= CLOSE else ""


def _closeness(got: str, name: str) -> float:
    """Return a similarity in [0, 1] without the common section: optimizer.foo is not close to optimizer.lr."""
    section = f"{got.rpartition('.')[0]}."
    if name.startswith(section):
        got, name = got.removeprefix(section), name.removeprefix(section)
    is_part = name.endswith(tuple(f"{mark}{got}" for mark in "._/-")) or got.startswith(f"{name}.")  # mnist, a tag
    if is_part or sorted(got) == sorted(name):  # pdg
        return 0.9
    return difflib.SequenceMatcher(None, name, got).ratio()


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return `value` if it is one of `allowed`, raise InputError otherwise; 1 is not True here, nor 0 False."""
    allowed = list(allowed)
    is_plain = isinstance(value, (str, bool, int, float, type(None)))
    if is_plain and any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in allowed):
        return value
    # YAML's None is a string
    hint = "" if value == "None" else did_you_mean(value, [str(choice) for choice in allowed if choice is not None])
    choices = ", ".join("None (null on the command line)" if choice is None else str(choice) for choice in allowed)
    raise InputError(f"{name} is {value!r}; it must be one of {choices}{hint}")


def check_number(
    name: str,
    value: Any,
    *,
    lowest: float | None = None,
    above: float | None = None,
    highest: float | None = None,
    whole: bool = False,
    advice: str = "",
    got: Any = None,
) -> Any:
    """Return `value`, a scalar of numpy as Python's, if it is a finite number within the bounds, or raise InputError.

    A bool is not a number here (`steps=true` is a slip, not 1), nor is text, see `fraction`. `got` is the value that
    the message shows, where `value` was computed from it.
    """
    value = _as_python(value)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if (
        not is_number
        or not _is_finite(value)
        or (lowest is not None and value < lowest)
        or (above is not None and value <= above)
        or (highest is not None and value > highest)
    ):
        limits = {"at least": lowest, "above": above, "at most": highest}
        bounds = [f"{word} {_short(bound)}" for word, bound in limits.items() if bound is not None]
        allowed = " ".join(["a whole number" if whole else "a number", " and ".join(bounds)]).strip()
        got = value if got is None else got
        raise InputError(f"{name} is {got!r}; it must be {allowed}{f'; {advice}' if advice else ''}")
    return value


def _as_python(value: Any) -> Any:
    """Return a number of numpy as Python's, anything else as it is."""
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _short(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def fraction(name: str, value: Any) -> Any:
    """Return text such as '8/255' or '0.03' as a float, and any other value unchanged."""
    if not isinstance(value, str):
        return value
    numerator, slash, denominator = value.partition("/")
    try:
        return float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name} is {value!r}; it must be a number or a fraction such as 8/255") from None


def check_epsilon(name: str, value: Any, *, norm: str, pixels: int | None = None) -> float:
    """Return the radius of the attack as a float, in units of pixels in [0, 1].

    Args:
        value: a number or a fraction as text ('8/255').
        norm: 'linf', 'l2' or 'l1'.
        pixels: channels * height * width of an image. The largest distance of two images is 1 in L-infinity,
            sqrt(pixels) in L2, pixels in L1; None: not known yet, and only L-infinity is checked.
    Errors:
        InputError: not a number, negative, or larger than that distance, as an epsilon in units of 0..255 or of
            normalized pixels is.
    """
    diameter = 1.0 if norm == "linf" else None if pixels is None else pixels**0.5 if norm == "l2" else float(pixels)
    advice = f"epsilon is in units of pixels in [0, 1] ({norm}), before any normalization: 8/255, not 8"
    number = fraction(name, value)
    return float(check_number(name, number, lowest=0, highest=diameter, got=value, advice=advice))


def check_length(name: str, value: Any, *, norm: str, epsilon: float) -> float:
    """Return the length of an attack's step or random start as a float, in the units of epsilon; 2 is a slip for 2/255.

    In L-infinity it is at most 1, the range of a pixel, or 2.5 epsilon, the longest step by default.
    """
    highest = max(1.0, 2.5 * epsilon) if norm == "linf" else None
    advice = "it is in units of pixels in [0, 1], as epsilon is: 2/255, not 2"
    number = fraction(name, value)
    return float(check_number(name, number, lowest=0, highest=highest, got=value, advice=advice))


def check_amount(name: str, value: Any, of: str = " of neurons") -> int | float:
    """Return an amount if it is a count (int) or a fraction (float), or raise InputError."""
    value = _as_python(value)
    if isinstance(value, float):
        return check_number(name, value, above=0, highest=1, advice=f"a float is a fraction, an int a count{of}")
    return check_number(name, value, lowest=1, whole=True, advice=f"an int is a count{of}, a float a fraction")


# ---------------------------------------------------------------- tensors: each check waits for the device once


def check_layers(name: str, value: Any) -> list[str]:
    """Return a layer's name or pattern, or several, as a list; raise InputError for anything else, none included."""
    entries = [value] if isinstance(value, str) else value
    if (
        not isinstance(entries, Sequence)
        or len(entries) == 0
        or not all(isinstance(each, str) and each for each in entries)
    ):
        raise InputError(f"{name} is {value!r}; it must be a layer's name or pattern or a list of them, ['layer1.*']")
    return list(entries)


def check_batch(images: Tensor, labels: Tensor, *, classes: int | None = None) -> None:
    """Raise InputError unless images are (batch, ...) floats in [0, 1] and labels (batch,) integer class numbers."""
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}; they must be floats in [0, 1], e.g. images.float() / 255")
    if images.ndim < 2 or len(images) == 0:
        raise InputError(f"images have shape {tuple(images.shape)}; they must be (batch, channel, height, width)")
    lowest, highest = images.detach().aminmax()
    if not (lowest >= 0 and highest <= 1):  # so that nan is refused too
        raise InputError(
            f"images outside [0, 1]: they range from {lowest:.4g} to {highest:.4g}; "
            "the normalization is the model's first layer, an attack works on pixels"
        )
    if labels.is_floating_point() or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be whole numbers, one an image, "
            f"({len(images)},)"
        )
    smallest, largest = labels.aminmax()
    if smallest < 0 or (classes is not None and largest >= classes):
        wrong = smallest if smallest < 0 else largest
        limit = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise InputError(f"labels contain the class {int(wrong)}; the classes are {limit}")


def check_logits(logits: Any, labels: Tensor, *, classes: int | None = None) -> None:
    """Raise InputError unless logits are (batch, class), for `classes` or, where None, at least those of the labels."""
    is_tensor = isinstance(getattr(logits, "shape", None), tuple)  # torch is not loaded for this file
    if not is_tensor or logits.ndim != 2 or len(logits) != len(labels):
        got = f"of shape {tuple(logits.shape)}" if is_tensor else f"a {type(logits).__name__}"
        raise InputError(f"the network's output is {got}; it must be logits ({len(labels)}, class)")
    if classes is not None and logits.shape[1] != classes:
        raise InputError(f"the network gives {logits.shape[1]} logits per image; the data have {classes} classes")
    if classes is None and int(labels.max()) >= logits.shape[1]:
        raise InputError(f"labels contain the class {int(labels.max())}; the network gives {logits.shape[1]} logits")


def check_finite_logits(logits: Tensor, *, places: Sequence[int] | Tensor | None = None) -> None:
    """Raise InputError where logits (batch, class) are not finite: argmax would make any class of them.

    Args:
        places: (batch,) index of each image in its data set; None: its index in the batch.
    """
    broken = ~logits.isfinite().flatten(1).all(1)
    if broken.any():
        first = int(broken.nonzero()[0])
        value = next(value for value in logits[first].flatten().tolist() if not math.isfinite(value))
        image = f"image {first} of the batch" if places is None else f"image {int(places[first])}"
        raise InputError(
            f"the network's logits of {image} hold {value}; they must be finite numbers: check its weights and its "
            "normalization"
        )


# ---------------------------------------------------------------- calls of a configuration's _target_


def named_arguments(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Return {keyword argument: whether it is required}, and whether the function takes any others too."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}, True
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {each.name: each.default is each.empty for each in parameters if each.kind in by_keyword}
    return named, any(each.kind is each.VAR_KEYWORD for each in parameters)


def call_checked(group: str, function: Callable[..., Any], settings: Mapping[str, Any], /, **offered: Any) -> Any:
    """Call the `_target_` of a configuration group with its settings.

    Args:
        offered: further values, each passed only where the signature names it and the settings do not set it.
    Errors:
        InputError: a setting that the signature does not name, a required argument that is missing, or the function's
            own error in one line.
    """
    named, takes_others = named_arguments(function)
    name = dotted_name(function)
    # null of a choice in conf/ whose _target_ was replaced: nothing that was asked for
    settings = {key: value for key, value in settings.items() if value is not None or key in named or takes_others}
    arguments = {**{key: value for key, value in offered.items() if key in named}, **settings}
    for key in settings if not takes_others else ():
        if key not in named:
            known = ", ".join(named) or "none"
            raise InputError(f"{group}.{key} is not an argument of {name}{did_you_mean(key, named)}; it takes {known}")
    if missing := [key for key, required in named.items() if required and key not in arguments]:
        raise InputError(f"{name} needs the argument {missing[0]}; set {group}.{missing[0]}")
    try:
        return function(**arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} failed: {type(error).__name__}: {one_line(error)}") from error


def dotted_name(function: Any) -> str:
    """Return module.name of a class or function, also of one inside a partial, and of its class for an object."""
    function = unwrapped(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def unwrapped(function: Any) -> Any:
    """Return the function or class inside a partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def callable_name(function: Any) -> str:
    """Return the name of a function, of a class or of an object's class."""
    function = unwrapped(function)
    return getattr(function, "__name__", type(function).__name__)


def one_line(error: BaseException) -> str:
    """Return the text of an error in one line of up to 300 characters, its class name where it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def check_fits_memory(what: str, size_bytes: float, fix: str) -> None:
    """Raise InputError where so many bytes exceed the physical memory of this machine."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return
    if size_bytes > memory:
        raise InputError(
            f"{what} takes {size_bytes / 1e9:,.0f} GB; it must fit in the {memory / 1e9:,.0f} GB of this machine's "
            f"memory; {fix}"
        )
