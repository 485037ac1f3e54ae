"""Lightning's CSV logger, in a folder of its own: metrics.csv and sensitivity.csv of a run are nsr's own records."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger


def csv_logger(*, save_dir: str) -> CSVLogger:
    """Lightning's CSVLogger with its file in `save_dir`/csv; a resumed run, whose rows it would delete, has csv_2."""
    names = ("csv" if number == 1 else f"csv_{number}" for number in count(1))
    unused = next(name for name in names if not _is_used(Path(save_dir) / name))
    return CSVLogger(save_dir=save_dir, name=unused, version="")


def _is_used(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
