"""Order of a network's classes, and the output that each class of a data set belongs to."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nsr.errors import InputError, one_line

FORMS = 'it must have a class name a line, or be JSON: ["cat", ...], {"0": "cat", ...} or {"0": ["n02123045", "cat"]}'
SHOWN = 20
NUMBERED = re.compile(r"([^0-9]*)([0-9]{1,9})([^0-9]*)")
Names = tuple[str, ...]  # alternative names of one class


class Matched(NamedTuple):
    """Outputs of a data set's classes."""

    outputs: list[int] | None  # label -> output of the network; None: label k is output k
    names: tuple[str, ...]  # of all outputs
    note: str | None  # a line for the user, where labels change or cannot be compared


def read_class_order(source: str | Path | Sequence[str]) -> list[Names]:
    """Return the alternative names of each output, in order.

    Args:
        source: the names; or a file, a name a line (`n02123045 cat` is found by its first word too), or JSON such as
            ImageNet's class index.
    Errors:
        InputError: a file that cannot be read, or of another form.
    """
    if not isinstance(source, (str, Path)):
        entries: Any = list(source) if isinstance(source, Sequence) else None
    else:
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise InputError(f"data.class_order is {str(source)!r}, which cannot be read ({one_line(error)})") from None
        entries = _from_json(text) if text.lstrip()[:1] in ("[", "{") else _lines(text)
    names = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in entries] if _fits(entries) else []
    if len(names) < 2:
        got = f"the file {str(source)!r}" if isinstance(source, (str, Path)) else repr(source)
        raise InputError(f"data.class_order is {got}, which names no 2 classes; {FORMS}")
    return names


def _lines(text: str) -> list[Names]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line, line.split()[0]) if len(line.split()) > 1 else (line,) for line in lines]


def _from_json(text: str) -> Any:
    """The entries of a JSON list or mapping, in order; None where there is another content."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if isinstance(content, dict) and all(isinstance(value, int) for value in content.values()):
        content = {str(index): name for name, index in content.items()}  # {"cat": 0, ...}
    if not isinstance(content, dict):
        return content
    numbers = [str(number) for number in range(len(content))]
    return [content[number] for number in numbers] if set(numbers) == set(content) else None


def _fits(entries: Any) -> bool:
    def is_name(entry: Any) -> bool:
        return isinstance(entry, str) and bool(entry)

    return isinstance(entries, list) and all(
        is_name(entry) or (isinstance(entry, (list, tuple)) and bool(entry) and all(map(is_name, entry)))
        for entry in entries
    )


def match_classes(names: Sequence[str], order: Sequence[Names], title: str, *, ignore: bool = False) -> Matched:
    """Find the output of each class of a data set by its name.

    Args:
        names: of the data set's classes, in the order of its labels; none: label k is output k.
        order: see `read_class_order`.
        title: of the data set, in messages.
        ignore: do not compare names: label k is output k.
    Errors:
        InputError: a class that is none of the network's, or more than one.
    """
    ours = tuple(alternatives[0] for alternatives in order)
    if ignore or not names:
        is_told = not ignore and ours != tuple(map(str, range(len(ours))))
        return Matched(
            None, ours, f"{title} names no classes: label k is output k, {listed(ours)}" if is_told else None
        )
    if tuple(names) == ours:
        return Matched(None, ours, None)
    fix = "give data of those classes, their data.class_order=FILE, or data.class_names=ignore (label k is output k)"
    outputs = []
    alike = [tuple(map(_composed, alternatives)) for alternatives in order]
    for name in names:
        found = _places(_composed(name), alike)
        if len(found) != 1 or found[0] in outputs:
            got = (
                f"outputs {', '.join(map(str, found))}" if len(found) > 1 else "already another's" if found else "none"
            )
            raise InputError(
                f"{title} has the class {name!r}, which is {got} of the network's classes, {listed(ours)}; {fix}"
            )
        outputs += found
    used = dict(zip(outputs, names, strict=True))
    every = tuple(used.get(output, name) for output, name in enumerate(ours))
    if outputs == list(range(len(order))):
        return Matched(None, every, None)
    if len(outputs) < len(order):
        missing = f"{title} has {len(outputs)} of the network's {len(order)} classes"
        return Matched(outputs, every, f"{missing}; its images are scored over all {len(order)} logits")
    return Matched(outputs, every, f"labels of {title} are mapped to the network's classes by name: {listed(every)}")


def _composed(name: str) -> str:
    """Return a name whose accents are no letters of their own, as they are in the names of macOS's folders."""
    return unicodedata.normalize("NFC", name)


def _places(name: str, order: Sequence[Names]) -> list[int]:
    """The outputs that have this name, as their first name where there are such, else as a further one."""
    for is_named in (lambda alternatives: name == alternatives[0], lambda alternatives: name in alternatives):
        if found := [output for output, alternatives in enumerate(order) if is_named(alternatives)]:
            return found
    return []


def listed(names: Sequence[str]) -> str:
    """Return "0 = 'cat', 1 = 'dog'", of many names the first ones and the last."""
    pairs = [f"{output} = {name!r}" for output, name in enumerate(names)]
    return ", ".join(pairs if len(pairs) <= SHOWN else [*pairs[: SHOWN - 1], "...", pairs[-1]])


def third_party_classes(names: Sequence[str]) -> tuple[str, bool]:
    """Return a line on the classes that third-party weights are taken to have, and whether it is a warning.

    Integers, or names alike but for an integer, in another than their numeric order (0, 1, 10, 2) are a warning.
    """
    line = f"the outputs of model.weights are taken as {listed(names)}"
    numbered = [match for name in names if (match := NUMBERED.fullmatch(name))]
    is_numeric = len(numbered) == len(names) and len({(match[1], match[3]) for match in numbered}) == 1
    numbers = [int(match[2]) for match in numbered]
    if is_numeric and numbers != sorted(numbers):
        what = "numbered" if numbered[0][1] or numbered[0][3] else "integers"
        return f"{line}: {what}, but not in numeric order; data.class_order=FILE sets another order", True
    return f"{line} (data.class_order=FILE sets another order)", False


def as_names(value: Any, place: str) -> list[str] | None:
    """Return the class names that a checkpoint stores, None where it stores none; InputError for anything else."""
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise InputError(f"{place} has class_names that are not a list of texts; give data.class_order=FILE")
    return value
