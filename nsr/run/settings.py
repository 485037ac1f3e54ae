"""A run's settings as plain values: flattened, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SCHEMA = 1  # of config.yaml, metrics.json and checkpoints; raised when a reader must know of a change
OWN = ("resume", "allow_changed_config")  # settings that say nothing of what is trained
BESIDE = ("schema", "choices", "overrides", "extended")  # entries of config.yaml beside the settings
MISSING = "nothing"


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf; a list is a leaf."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def changes(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (before, now)} of every setting that differs; another logger makes no other run."""
    ignored = {*OWN, *BESIDE, "logger"}
    before, now = (
        {name: value for name, value in flat(part) if name.partition(".")[0] not in ignored}
        for part in (recorded, settings)
    )
    names = [*before, *(name for name in now if name not in before)]
    pairs = {name: (before.get(name, MISSING), now.get(name, MISSING)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
