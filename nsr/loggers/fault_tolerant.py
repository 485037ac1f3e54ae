"""A dashboard that fails is told of once and never stops a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

log = logging.getLogger(__name__)
_told: WeakSet[Any] = WeakSet()


@contextmanager
def steadily(logger: Any, name: str) -> Iterator[None]:
    """Whatever the dashboard raises in the block ends there; one warning a logger, in one line.

    Args:
        name: how the dashboard is called on the screen.
    """
    try:
        yield
    except Exception as error:
        if logger not in _told:
            _told.add(logger)
            log.warning("%s has failed (%s); the run goes on, its files are complete without it", name, reason(error))


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
