"""What a constructor or a rule of nsr says about a setting: meanings, types, allowed values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import yaml

from nsr.app.rules import Rule
from nsr.errors import InputError


def constructor(target: str) -> Any:
    """Return the class or function of a dotted name, None for one of a library that is not installed."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return None


def documented(target: str) -> dict[str, str]:
    """Return {parameter: meaning} of the `Args:` of a constructor and of its base classes."""
    made = constructor(target)
    found: dict[str, str] = {}
    for each in reversed(inspect.getmro(made)) if inspect.isclass(made) else (made,):
        for text in (each.__doc__, getattr(each.__init__, "__doc__", None) if inspect.isclass(each) else None):
            for names, meaning in _arguments(inspect.cleandoc(text or "")):
                found |= dict.fromkeys(names, meaning if target.startswith("nsr.") else _first_sentence(meaning))
    return found


def _arguments(text: str) -> Iterator[tuple[list[str], str]]:
    """The parameters of a docstring's `Args:`, several names before one colon included."""
    block = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, flags=re.MULTILINE)
    for entry in re.split(r"\n(?= {4}\S)", (block[1] if block else "").rstrip()):
        names, colon, meaning = entry.strip().partition(":")
        if colon:  # torch's names have their type in parentheses
            names = re.sub(r"\(.*", "", names)
            yield [name.strip(" *") for name in names.split(",")], " ".join(meaning.split())


def _first_sentence(text: str) -> str:
    """The first sentence of another library's docstring, without its markup."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
    return re.split(r"(?<=\.)\s|\s*Default:", text)[0].strip()


def types(target: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor."""
    made = constructor(target)
    if made is None:
        return {}
    found: dict[str, inspect.Parameter] = {}
    for each in reversed(inspect.getmro(made)) if inspect.isclass(made) else (made,):
        try:
            found |= inspect.signature(each).parameters
        except (TypeError, ValueError):  # object, and what is written in C
            continue
    return found


def written(annotation: Any, default: str) -> str:
    """Return a type in words, from an annotation or, without one, the default."""
    if annotation is inspect.Parameter.empty or annotation is Any or annotation is None:
        value = yaml.safe_load(default) if "${" not in default and default != "???" else None
        return "mapping" if isinstance(value, dict) else "" if value is None else type(value).__name__
    is_class = isinstance(annotation, type) and "[" not in str(annotation)
    text = annotation if isinstance(annotation, str) else annotation.__name__ if is_class else str(annotation)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).strip("'\"")
    if match := re.fullmatch(r"(?:Optional|Union)\[(.*)\]", text):
        text = " | ".join(_parts(match[1], ",")) + " | None" * text.startswith("Optional")
    names = {"None": "null", "NoneType": "null"}
    return " or ".join(dict.fromkeys(names.get(part.strip(), part.strip()) for part in _parts(text, "|")))


def _parts(text: str, mark: str) -> list[str]:
    """The parts of a text between marks that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == mark and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def allowed(rule: Rule | None) -> str:
    """Return what a rule allows, in the words of its own refusal."""
    found = []
    for value in (Nothing(), [Nothing()]) if rule is not None else ():
        try:
            rule("", value)
        except InputError as error:
            found.append(re.sub(r"^it must be ", "", str(error).partition("; ")[2]))
        except (TypeError, AttributeError):  # a list, to a rule of single values
            continue
    if len(set(found)) == 2 and found[0].startswith("a list"):
        return f"{found[0]}, each {found[1]}"
    return found[0] if found else ""


class Nothing:
    """A value that no rule allows."""
