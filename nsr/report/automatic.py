"""The report at the end of a training or an evaluation, which costs them nothing where it fails."""

from __future__ import annotations

import logging
from pathlib import Path

from nsr.errors import one_line
from nsr.run.directory import read_yaml, shown
from nsr.run.plain_text import printable

log = logging.getLogger(__name__)


def write_or_warn(directory: Path) -> None:
    """Write the report and print its path, or log in one line why there is none.

    It is that of the run, also after an evaluation of its best.ckpt; any other evaluation gets one of its own.
    """
    try:
        from nsr.report.page import write_report  # pandas and matplotlib are loaded only now

        run, settings = directory.parent.parent, read_yaml(directory / "config.yaml") or {}
        is_of_run = directory.parent.name == "evaluations" and (run / "config.yaml").exists()
        of_best = Path(str(settings.get("checkpoint"))).name == "best.ckpt"
        path = write_report(run if is_of_run and of_best else directory)
        print(f"report         {printable(shown(path))}", flush=True)
    except Exception as error:
        log.warning(f"no report.html: {type(error).__name__}: {printable(one_line(error))}")
