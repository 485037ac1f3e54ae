"""benchmarks/gpu.sh, with small networks on a CPU and without the packages that such a machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT = """
from importlib.machinery import PathFinder

MISSING = ("hydra", "omegaconf", "wandb", "foolbox", "pyautoattack", "sklearn", "tensorboard", "pandas", "hypothesis")
find_spec = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in MISSING else find_spec(name, *rest)
)
"""


@pytest.mark.slow
def test_the_script_on_a_cpu(tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path / "without")}
    environment |= {"NSR_GPU_TINY": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "out"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-5000:]
    assert (tmp_path / "out" / "gpu.log").read_text() == done.stdout
    assert " passed" in done.stdout
    record = json.loads((tmp_path / "out" / "step_times.json").read_text())
    variants = [row for row in record.values() if isinstance(row, dict) and "step_ms" in row]
    assert len(variants) == 4
    assert all(row["step_ms"]["n"] == 2 and row["ratio_to_floor"] > 0 for row in variants)
