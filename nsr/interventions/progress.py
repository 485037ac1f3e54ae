"""Progress of a long analysis."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances by a number of `total` steps: a bar on a terminal, a row per tenth elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    task, done = bar.add_task(title, total=total), 0

    def advance(steps: int) -> None:
        nonlocal done
        tenths, done = 10 * done // total, done + steps
        bar.update(task, completed=done)
        if bar.disable and 10 * done // total > tenths:
            print(f"{title}  {100 * done // total} %", flush=True)

    with bar:
        yield advance
