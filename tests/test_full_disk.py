"""A disk that fills up in the middle of a run: one line, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsr.run.files import whole_rows
from tests.conftest import TINY
from tests.small_disk import remount, small_disk

ROOT = Path(__file__).parent.parent


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_the_run_resumes(tmp_path):
    with small_disk(tmp_path / "disk", "320k") as disk:
        run = disk / "run"
        settings = [setting for setting in TINY if setting != "test_attacks.pgd.steps=2"]
        done = train(tmp_path, *settings, "trainer.max_epochs=40", "test_attacks=[clean]", f"hydra.run.dir={run}")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "No space left on device" in line and "kept" in line
        written = list(whole_rows(run / "metrics.csv"))
        assert 2 < len(written) < 40
        remount(disk, "size=8m")
        done = train(tmp_path, f"resume={run}")
        assert done.returncode == 0, done.stderr
        rows = list(whole_rows(run / "metrics.csv"))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(41)]
    known = [row for row in rows if int(row["epoch"]) < len(written) - 1]
    assert known == written[: len(known)]
