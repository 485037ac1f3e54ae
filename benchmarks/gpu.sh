#!/usr/bin/env bash
# What only a GPU can show, in at most nine minutes: OUT_DIR/gpu.json and OUT_DIR/gpu.log.
#   benchmarks/gpu.sh OUT_DIR [DATA_DIR]
# DATA_DIR: a folder with train/CLASS/* and test/CLASS/*, or one that holds cifar10-jpeg.tar.xz, or that file.
# Exit code 1 where a part failed; what could not be measured is skipped and says why.
#   PYTHON=python3      the interpreter: torch, torchvision, pytorch-lightning, torchmetrics and hydra-core are enough
#   NSR_GPU_SECONDS=540 for all parts together
#   NSR_GPU_PARTS=step_times,training   these alone; their names are in gpu/runner.py
#   NSR_GPU_TINY=1      small_cnn on 8x8 images: minutes on a CPU, to see that it runs
set -euo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT_DIR [DATA_DIR]}
mkdir -p "$out"
PYTHONUNBUFFERED=1 PYTHONPATH="$(cd "$(dirname "$0")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}" \
  "${PYTHON:-python3}" -m benchmarks.gpu "$@" 2>&1 | tee "$out/gpu.log"
