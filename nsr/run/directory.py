"""Which run directories there are, and how a run stands: finished, running, failed."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from nsr.errors import InputError

SIGN_SECONDS = 60.0  # between two signs of life of a run
SILENT_SECONDS = 600.0  # without a sign, after which its process is taken for dead
MARKS = ("config.yaml", "status.json", "train.log")  # of a run; an evaluation has its own log beside them
PARTS = ("data", "objective", "attack", "suite", "trainer")  # of a run's settings


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    """The run directories at or below places: directories, sweeps, or patterns such as 'runs/digits_*'.

    Errors:
        InputError: a place is missing, or holds no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        matches = [Path(place)] if Path(place).exists() else sorted(map(Path, glob(str(place))))
        if not matches:
            raise InputError(f"there is no {str(place)!r}; give run directories, the folder of a sweep, or a pattern")
        below = {path.resolve(): path for match in matches for path in _runs_below(match, set())}
        if not below:
            raise InputError(f"{str(place)!r} holds no run; a run directory of train.py has a config.yaml")
        found |= {resolved: path for resolved, path in below.items() if resolved not in found}
    return list(found.values())


def _runs_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if folder.resolve() in seen or not folder.is_dir():
        return
    seen.add(folder.resolve())
    if _is_run(folder):
        yield folder
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: (len(entry.name), entry.name)):  # 2 before 10
        if entry.name != "evaluations" and not entry.name.startswith("."):
            yield from _runs_below(entry, seen)


def _is_run(folder: Path) -> bool:
    if any((folder / name).exists() for name in ("evaluate.log", "evaluation.json")):
        return False
    return any((folder / mark).exists() for mark in MARKS)


def read_json(path: Path) -> Any:
    """None where the file is missing or not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_yaml(path: Path) -> dict[str, Any] | None:
    """None where the file is missing or not whole."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def read_settings(directory: Path) -> dict[str, Any] | None:
    """A run's resolved settings; None while they are not there, or where they are another program's."""
    settings = read_yaml(directory / "config.yaml") or {}
    is_run = all(isinstance(settings.get(name), dict) for name in PARTS) and {"norm", "epsilon"} <= set(settings)
    return settings if is_run and "_target_" in settings["objective"] else None


def standing(
    directory: Path, settings: Mapping[str, Any] | None, epochs: list[dict[str, str]], *, is_measured: bool
) -> tuple[str, str]:
    """(status, what there is to say of it), see Run.

    Args:
        epochs: the rows of its metrics.csv.
        is_measured: whether the accuracies of its best checkpoint are there.
    """
    trained = (directory / "timing.json").exists()  # written as the last epoch ends
    if is_measured and (trained or (directory / "metrics.json").exists()):
        return "finished", ""
    status, reason = marked(directory / "status.json")
    progress = _progress(settings, epochs)
    if status == "running":
        return status, f"{'measuring the test set' if trained else progress}, last change {_age(directory)} ago"
    if trained and settings is not None:
        return "no evaluation", reason or "trained, not tested"
    if status in ("failed", "interrupted"):
        return status, f"{reason} ({progress})"
    return "unfinished", f"{progress}, last change {_age(directory)} ago"


def marked(path: Path) -> tuple[str, str]:
    """(status, reason) by a status.json; of a process that is gone without a word, or gives no sign, that it failed.

    A process on another machine, or whose number another one has by now, is known by its signs alone: it touches the
    file each minute. An earlier start of this very job of SLURM is over, whatever it left.
    """
    marker = read_json(path) or {}
    status = str(marker.get("status", ""))
    if status != "running":
        return status, str(marker.get("reason", ""))
    if marker.get("host") == socket.gethostname() and not _is_alive(marker.get("process")):
        return "failed", "its process ended without a word, killed?"
    job = job_of_slurm()
    if job is not None and marker.get("job") not in (None, job) and marker["job"][0] == job[0]:
        return "failed", "its job was started again"
    try:
        silent = time.time() - path.stat().st_mtime
    except OSError:
        silent = 0.0
    if silent > SILENT_SECONDS:
        return "failed", f"no sign of its process for {round(silent / 60)} min, killed?"
    return status, ""


def job_of_slurm() -> list[str] | None:
    """[its number, how often it was started again] of the job of SLURM that this process belongs to."""
    number = os.environ.get("SLURM_JOB_ID")
    return None if number is None else [number, os.environ.get("SLURM_RESTART_COUNT", "0")]


def _is_alive(process: Any) -> bool:
    if os.name == "nt":
        return True  # signal 0 is no question there
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _progress(settings: Mapping[str, Any] | None, epochs: list[dict[str, str]]) -> str:
    if settings is None:
        return "no settings of a run in config.yaml"
    wanted = -(-settings["trainer"]["max_epochs"] // settings["objective"].get("replays", 1))
    return f"epoch {epochs[-1]['epoch'] if epochs else 0} of {wanted}"


def _age(directory: Path) -> str:
    """Since the latest change of a file at the top of the run directory."""
    changes = [path.stat().st_mtime for path in directory.iterdir() if path.is_file()]
    seconds = max(0, round(time.time() - max(changes, default=directory.stat().st_mtime)))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
