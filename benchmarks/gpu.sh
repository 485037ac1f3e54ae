#!/usr/bin/env bash
# The tests marked gpu, then step times: OUT_DIR/step_times.json and OUT_DIR/gpu.log. Exit code 1 where one fails.
#   benchmarks/gpu.sh OUT_DIR
#   PYTHON=python3   the interpreter; torch, torchvision, pytorch-lightning, torchmetrics, scipy and pytest are enough
#   NSR_GPU_TINY=1   small networks and two steps, to try both on a CPU
set -euo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT_DIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
{
  failed=0
  # tests/conftest.py needs hydra; warnings are errors only with the pinned versions
  "${PYTHON:-python3}" -m pytest --noconftest -m gpu -W default tests/test_gpu.py || failed=1
  "${PYTHON:-python3}" -m benchmarks.step_times "$out/step_times.json" || failed=1
  exit "$failed"
} 2>&1 | tee "$out/gpu.log"
