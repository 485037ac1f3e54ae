"""What the settings of a dashboard may be: the limits of Weights & Biases, told before a run is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nsr.errors import InputError, check_choice


def mode(name: str, value: Any) -> Any:
    """online, offline or null."""
    return check_choice(name, value, ("online", "offline", None))


def text(name: str, value: Any, *, longest: int = 128, without: str = "") -> str:
    """A text of 1 to `longest` characters, none of them in `without`; `1` typed on the command line is one too."""
    is_text = isinstance(value, (str, int)) and not isinstance(value, bool)
    if not is_text or not 0 < len(str(value)) <= longest or set(str(value)) & set(without):
        further = f", without any of {' '.join(without)}" if without else ""
        raise InputError(f"{name} is {value!r}; it must be a text of 1 to {longest} characters{further}")
    return str(value)


def project(name: str, value: Any) -> str:
    """A name that W&B allows for a project."""
    return text(name, value, without="/\\#?%:")


def label(name: str, value: Any) -> str | None:
    """A text or null."""
    return None if value is None else text(name, value)


def tags(name: str, value: Any) -> list[str]:
    """A list of different texts, each short enough for W&B."""
    if not isinstance(value, list) or len(set(map(str, value))) < len(value):
        raise InputError(f"{name} is {value!r}; it must be a list of different texts, such as [paper]")
    return [text(f"{name} entry", entry, longest=64) for entry in value]


DASHBOARD_RULES: dict[str, Callable[[str, Any], Any]] = {
    "logger.mode": mode,
    "logger.project": project,
    "logger.name": label,
    "logger.group": label,
    "logger.job_type": label,
    "logger.tags": tags,
}
