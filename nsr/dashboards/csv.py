"""Lightning's CSV logger, in a folder of its own: metrics.csv and sensitivity.csv of a run are nsr's own records."""

from __future__ import annotations

from pytorch_lightning.loggers import CSVLogger


def csv_logger(*, save_dir: str) -> CSVLogger:
    """Lightning's CSVLogger, its file in `save_dir`/csv."""
    return CSVLogger(save_dir=save_dir, name="csv", version="")
