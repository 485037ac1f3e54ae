"""The result of one check of a training or an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from nsr.errors import RunStopped


class Check(NamedTuple):
    """One check with its evidence."""

    name: str  # as in checks.stop_on
    title: str
    triggered: bool | None  # None: not evaluated, its rows were not measured
    evidence: str
    meaning: str

    def in_one_line(self) -> str:
        """Return title, evidence and usual meaning."""
        return f"{self.title} (check {self.name}), {self.evidence}; {self.meaning}"


def stop_where_triggered(checks: Iterable[Check], stop_on: Collection[str]) -> None:
    """Raise RunStopped, in one line, where a check of `stop_on` was triggered."""
    ending = [check.in_one_line() for check in checks if check.triggered and check.name in stop_on]
    if ending:
        raise RunStopped(f"checks.stop_on: {' | '.join(ending)}")
