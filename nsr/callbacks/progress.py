"""One progress line on a terminal; everywhere else a plain row an epoch, and one now and then in an evaluation."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nsr.callbacks.epochs import finished_epochs
from nsr.evaluation.time_left import TimeLeft

SECONDS_BETWEEN_ROWS = 20.0  # of an evaluation whose output goes to a file
SECONDS_BETWEEN_LOOKS = 0.5  # the figures are on the device: to read them is to wait for it


class ProgressLine(ProgressBar):
    """Loss and its terms, validated clean and robust accuracy, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._console = Console(file=sys.stderr) if sys.stdout.isatty() and sys.stderr.isatty() else None
        self._line: Progress | None = None
        self._task: Any = None
        self._looked = self._started = self._epoch_started = time.perf_counter()
        self._accuracies = ""

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._started = time.perf_counter()
        self._first = trainer.current_epoch  # epochs before this process
        if self._enabled and self._console is not None:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
            self._line = Progress(*columns, console=self._console)
            total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
            self._task = self._line.add_task("training", total=total, completed=trainer.global_step)
            self._line.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._epoch_started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._line is None or time.perf_counter() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.perf_counter()
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        terms = pl_module.training_measures.so_far()
        self._line.update(self._task, completed=done, description=self._describe(trainer, terms))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        figures = pl_module.figures["validation"]
        clean, robust = figures["validation/clean_accuracy"], figures["validation/robust_accuracy"]
        self._accuracies = f"clean {100 * clean:5.1f} %  robust {100 * robust:5.1f} %"
        epoch = finished_epochs(trainer)
        if not self._enabled or self._console is not None:
            return
        if epoch == 0:
            print(f"epoch 0/{trainer.max_epochs}  {self._accuracies}  before training", flush=True)
            return
        terms = {name.removeprefix("train/"): value for name, value in pl_module.figures["train"].items()}
        terms = {name: value for name, value in terms.items() if not name.endswith("_accuracy")}
        took = time.perf_counter() - self._epoch_started
        left = (time.perf_counter() - self._started) / (epoch - self._first) * ((trainer.max_epochs or epoch) - epoch)
        print(f"{self._describe(trainer, terms)}  {took:.1f} s, {left:.0f} s left", flush=True)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._time_left = TimeLeft(pl_module.suite.work, len(trainer.test_dataloaders))  # type: ignore[arg-type]
        self._looked = time.perf_counter()
        pl_module.suite.finished = self._measured
        if self._enabled and self._console is not None:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20))
            self._line = Progress(*columns, console=self._console)
            self._task = self._line.add_task("measuring", total=self._time_left.total)
            self._line.start()

    def _measured(self, row: str, seconds: float | None) -> None:
        self._time_left.add(row, seconds)
        now, chunks = time.perf_counter(), self._time_left.chunks
        done = min(self._time_left.finished[row], chunks)
        left = self._time_left.left()
        told = f"measuring {row}: {done} of {chunks} chunks, {_duration(left)} left"
        if self._line is not None:
            self._line.update(self._task, completed=self._time_left.done, description=told)
        elif self._enabled and self._console is None and now - self._looked >= SECONDS_BETWEEN_ROWS:
            self._looked = now
            print(told, flush=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def _describe(self, trainer: pl.Trainer, terms: dict[str, float]) -> str:
        parts = dict(terms)
        loss = parts.pop("loss", float("nan"))
        named = f" ({', '.join(f'{name} {value:.3f}' for name, value in parts.items())})" if len(parts) > 1 else ""
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.3f}{named}  {self._accuracies}"

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._line is not None:
            self._line.update(self._task, completed=self._line.tasks[0].total)
            self._line.stop()
            self._line = None


def _duration(seconds: float | None) -> str:
    """'1:02:03', '2:03'; a question mark where it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
