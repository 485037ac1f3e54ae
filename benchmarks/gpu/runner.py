"""Runs the parts, each in a process and within a limit of its own, and keeps gpu.json up to date."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.given import ROOT
from nsr import __version__
from nsr.run.files import write_json

RESULTS = "gpu.json"
TOTAL_SECONDS = 540.0
# the most a part may take; together more than the total, for few take so long, and the last takes what is left
LIMITS = {
    "gpu_tests": 90.0,
    "sensitivities": 60.0,
    "compiled_taps": 90.0,
    "two_processes": 110.0,
    "step_times": 150.0,
    "training": 400.0,
}
LEAST_SECONDS = 10.0  # a part is not begun with less
GRACE_SECONDS = 10.0  # torchrun ends its processes when it is asked to, not when it is killed
VERSIONS = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "numpy")
OPTIONAL = ("wandb", "foolbox", "pyautoattack", "sklearn", "pytest", "hypothesis", "matplotlib", "pandas", "timm")

# part, seconds it has, its report -> command
CommandOf = Callable[[str, float, Path], Sequence[str]]


def run_all(
    out: Path, data: Path | None, *, limits: Mapping[str, float] = LIMITS, command_of: CommandOf | None = None
) -> int:
    """1 where a part failed, else 0; OUT/gpu.json is whole and up to date after each part.

    Args:
        limits: {part: the most seconds it may take}, in the order they are run.
        command_of: what is run for a part; None: this program with --part.
    """
    started = time.monotonic()
    total = float(os.environ.get("NSR_GPU_SECONDS", TOTAL_SECONDS))
    chosen = os.environ.get("NSR_GPU_PARTS", ",".join(limits)).split(",")
    if unknown := [part for part in chosen if part not in limits]:
        sys.exit(f"NSR_GPU_PARTS has {', '.join(unknown)}; the parts are {', '.join(limits)}")
    record: dict[str, Any] = {"machine": machine(), "tiny": os.environ.get("NSR_GPU_TINY") == "1", "parts": {}}

    def write() -> None:
        record["total_seconds"] = round(time.monotonic() - started, 1)
        write_json(out / RESULTS, record)

    def own_command(part: str, seconds: float, report: Path) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu", str(out), *([str(data)] if data else [])]
        return [*command, f"--part={part}", f"--seconds={seconds:.0f}", f"--report={report}"]

    write()
    for part, limit in limits.items():
        left = total - (time.monotonic() - started)
        if part not in chosen:
            record["parts"][part] = {"skipped": "not among NSR_GPU_PARTS", "seconds": 0.0}
        elif left < LEAST_SECONDS:
            record["parts"][part] = {"skipped": f"no time is left of {total:.0f} s", "seconds": 0.0}
        else:
            print(f"\n== {part}", flush=True)
            record["parts"][part] = run_part(part, min(limit, left), command_of or own_command)
        write()
        print(f"{part}: {told(record['parts'][part])}", flush=True)
    print(f"\n{out / RESULTS}, {record['total_seconds']} s")
    return int(any("failed" in figures for figures in record["parts"].values()))


def run_part(part: str, limit: float, command_of: CommandOf) -> dict[str, Any]:
    """The figures that the part left, its seconds, and `failed` with the reason where it did not end well."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        process = subprocess.Popen(command_of(part, limit, report), start_new_session=True)
        failed = None
        try:
            code = process.wait(limit)
            failed = None if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            failed = f"ran past its {limit:.0f} s"
        finally:
            end_session(process)
        figures: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    if failed is not None:
        figures.setdefault("failed", failed)
    return {**figures, "seconds": round(time.monotonic() - started, 1)}


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Asks the process and all it started to end, and kills what does not."""
    for sign, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + seconds
        if _sent(process, sign):
            while time.monotonic() < deadline and _sent(process, 0):
                time.sleep(0.1)


def _sent(process: subprocess.Popen[bytes], sign: int) -> bool:
    """Whether the session of `process` had anybody to take the signal; 0 only asks."""
    process.poll()  # else it would stay as a zombie once it has ended
    try:
        os.killpg(process.pid, sign)
    except ProcessLookupError:
        return False
    return True


def told(figures: Mapping[str, Any]) -> str:
    """One line."""
    state = next((f"{name}: {figures[name]}" for name in ("failed", "skipped") if name in figures), "measured")
    return f"{state}, {figures['seconds']} s"


def machine() -> dict[str, Any]:
    """Where this was measured, and with what; None for what is not known."""
    import torch

    has_gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if has_gpu else None
    return {
        "gpu": None if properties is None else properties.name,
        "gpu_memory_gib": None if properties is None else round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if has_gpu else None,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in VERSIONS},
        "not_installed": [name for name in OPTIONAL if find_spec(name) is None],
        "cores": len(os.sched_getaffinity(0)),
        "commit": _commit(),
        "nsr": __version__,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
