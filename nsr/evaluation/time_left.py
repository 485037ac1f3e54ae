"""How long an evaluation will still take, from what each of its rows took so far."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


class TimeLeft:
    """Seconds to the end, each row by its own mean: attacks differ a thousandfold.

    Args:
        rows: what is measured of each chunk.
        chunks: of images.
    """

    def __init__(self, rows: Sequence[str], chunks: int):
        self.chunks = chunks
        self.finished = dict.fromkeys(rows, 0)
        self.seconds: dict[str, list[float]] = {row: [] for row in rows}

    def add(self, row: str, seconds: float | None) -> None:
        """A chunk of a row is finished; None: it was there already."""
        self.finished[row] += 1
        if seconds is not None:
            self.seconds[row].append(seconds)

    @property
    def done(self) -> int:
        """Chunks of rows."""
        return sum(self.finished.values())

    @property
    def total(self) -> int:
        """Chunks of rows, finished or not."""
        return self.chunks * len(self.finished)

    def left(self) -> float | None:
        """Seconds; None while a row that is left has not been timed."""
        seconds = 0.0
        for row, finished in self.finished.items():
            if finished < self.chunks:
                if not self.seconds[row]:
                    return None
                seconds += (self.chunks - finished) * fmean(self.seconds[row])
        return seconds
