"""A disk that fills up, or can only be read any more, in the middle of a run: one line, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsr.run.files import whole_rows
from tests.conftest import TINY
from tests.small_disk import remount, small_disk

ROOT = Path(__file__).parent.parent
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of 320 KB."""
    with small_disk(tmp_path / "disk", "320k") as folder:
        yield folder


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_the_run_goes_on(disk):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "trainer.max_epochs=40", "attacks=[clean]"]
    command.remove("suite.pgd.steps=2")
    command.append(f"hydra.run.dir={disk / 'run'}")
    done = subprocess.run(command, cwd=disk.parent, env=ALONE, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "No space left on device" in line and "kept" in line
    written = list(whole_rows(disk / "run" / "metrics.csv"))
    assert 2 < len(written) < 40
    remount(disk, "size=8m")
    again = [sys.executable, str(ROOT / "train.py"), f"resume={disk / 'run'}"]
    done = subprocess.run(again, cwd=disk.parent, env=ALONE, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = list(whole_rows(disk / "run" / "metrics.csv"))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(41)]
    known = [row for row in rows if int(row["epoch"]) < len(written) - 1]
    assert known == written[: len(known)]
