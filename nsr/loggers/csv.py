"""Lightning's CSV logger, in a folder of its own: metrics.csv and sensitivity.csv of a run are nsr's own records."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger


def csv_logger(*, save_dir: str) -> CSVLogger:
    """Lightning's CSVLogger, its file in `save_dir`/csv; of a resumed run in csv_2: it deletes what it finds."""
    names = ("csv" if number == 1 else f"csv_{number}" for number in count(1))
    free = next(name for name in names if not _is_used(Path(save_dir) / name))
    return CSVLogger(save_dir=save_dir, name=free, version="")


def _is_used(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
