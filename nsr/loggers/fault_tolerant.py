"""Logger calls that cannot stop a run: a failure is logged once, a call that hangs is left to its thread."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any
from weakref import WeakSet

from nsr.errors import one_line

log = logging.getLogger(__name__)
_failed: WeakSet[Any] = WeakSet()


def _title(logger: Any) -> str:
    return getattr(type(logger), "title", type(logger).__name__)


@contextmanager
def tolerate_failures(logger: Any) -> Iterator[None]:
    """Catch whatever the logger raises in the block; warn in one line the first time."""
    try:
        yield
    except Exception as error:
        if logger not in _failed:
            _failed.add(logger)
            text = "%s failed (%s); the run continues, its files are complete without it"
            log.warning(text, _title(logger), one_line(error))


def starts(logger: Any) -> bool:
    """Return whether a logger connects to its service or opens its file; one line warns of one that does not.

    Lightning would do so in the middle of its own setup, and end the run.
    """
    try:
        getattr(logger, "experiment", None)
    except Exception as error:
        log.warning("%s failed (%s); this run continues without it", _title(logger), one_line(error))
        return False
    return True


def fault_tolerant(logger: Any) -> Any:
    """Return the logger; what the methods that Lightning calls raise is from now on reported once and tolerated."""
    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"):
        setattr(logger, name, _tolerated(logger, getattr(logger, name)))
    return logger


def _tolerated(logger: Any, method: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(method)
    def call(*arguments: Any, **settings: Any) -> None:
        with tolerate_failures(logger):
            method(*arguments, **settings)

    return call


class HangError(Exception):
    """A call that has not returned in time."""


def call_within(seconds: float, call: Callable[[], object]) -> None:
    """Run `call` in a thread that a program does not wait for at its end; HangError where it takes longer."""
    outcome: Future[object] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome.done():
        raise HangError(f"no answer within {seconds:g} s, so it is disabled")
    outcome.result()
