"""Progress where standard output is no terminal (there it is Lightning's RichProgressBar): rows of text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import pytorch_lightning as pl

from nsr.run.plain_text import printable
from nsr.training.phases import ends_epoch

if TYPE_CHECKING:
    from nsr.training.module import RobustClassifier

SECONDS_BETWEEN_ROWS = 20.0  # of an evaluation


class ProgressRows(pl.Callback):
    """Prints a row per epoch: loss and its terms, clean and robust accuracy, time left; and the rows of a test."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._epoch_started = time.perf_counter()  # a resumed run may begin with a validation
        self._first = trainer.current_epoch  # epochs before this process

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        result = pl_module.result
        if trainer.state.fn != "fit" or not trainer.is_global_zero or result is None or not ends_epoch(trainer):
            return
        clean, robust = (100 * result.validation[f"validation/{kind}_accuracy"] for kind in ("clean", "robust"))
        total = trainer.max_epochs or 0
        accuracies = f"clean {clean:5.1f} %  robust {robust:5.1f} %"
        if result.epoch == 0:
            print(f"epoch 0/{total}  {accuracies}  before training", flush=True)
            return
        values = {name: value for name, value in result.train.items() if not name.endswith("_accuracy")}
        terms = [f"{name.removeprefix('train/')} {value:.3f}" for name, value in values.items()]
        loss = "".join(terms[:1]) + (f" ({', '.join(terms[1:])})" if len(terms) > 2 else "")
        took = time.perf_counter() - self._epoch_started
        left = (time.perf_counter() - self._started) / (result.epoch - self._first) * (total - result.epoch)
        print(
            f"epoch {result.epoch}/{total}  {printable(loss)}  {accuracies}  {took:.1f} s, {left:.0f} s left",
            flush=True,
        )

    def on_test_start(self, trainer: pl.Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        self._time_left = TimeLeft(pl_module.suite.work, int(trainer.num_test_batches[0]))  # type: ignore[union-attr]
        self._printed, self._estimated = time.perf_counter(), False
        pl_module.suite.finished = self._measured  # type: ignore[union-attr]

    def _measured(self, row: str, seconds: float | None) -> None:
        self._time_left.add(row, seconds)
        now, batches, left = time.perf_counter(), self._time_left.batches, self._time_left.left()
        if left is not None and not self._estimated:
            self._estimated = True
            if left >= SECONDS_BETWEEN_ROWS:
                print(f"first of {batches} batches measured: about {duration(left)} left", flush=True)
        elif now - self._printed >= SECONDS_BETWEEN_ROWS:
            self._printed = now
            done = min(self._time_left.finished[row], batches)
            print(f"measuring {printable(row)}: {done} of {batches} batches, {duration(left)} left", flush=True)


class TimeLeft:
    """Seconds to the end of an evaluation of `batches`, by the mean of each row: attacks differ a thousandfold."""

    def __init__(self, rows: Sequence[str], batches: int):
        self.batches, self.finished = batches, dict.fromkeys(rows, 0)
        self.seconds: dict[str, list[float]] = {row: [] for row in rows}

    def add(self, row: str, seconds: float | None) -> None:
        """Count a batch of a row; None: it came from the cache."""
        self.finished[row] += 1
        if seconds is not None:
            self.seconds[row].append(seconds)

    def left(self) -> float | None:
        """Return the seconds left; None while a row that is left has not been timed."""
        left = {row: self.batches - finished for row, finished in self.finished.items() if finished < self.batches}
        if not all(self.seconds[row] for row in left):
            return None
        return sum((batches * fmean(self.seconds[row]) for row, batches in left.items()), start=0.0)


def duration(seconds: float | None) -> str:
    """Format seconds as '1:02:03' or '2:03'; a question mark where they are not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
