"""Run directories: which there are, their settings as plain values, and their status.json, written and read.

status.json has the state of a run or an evaluation (running, finished, interrupted, failed) and its command.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from nsr.errors import InputError
from nsr.run.files import SCHEMA, write_json
from nsr.run.own import remember
from nsr.run.processes import fault
from nsr.run.signals import Interrupted

HEARTBEAT_SECONDS = 60.0  # a running process touches its status.json this often
SILENT_SECONDS = 600.0  # without a heartbeat, after which a process counts as dead
LARGEST_FILE, LARGEST_YAML = 2**26, 2**22  # bytes; YAML is read a thousand times slower than JSON
MOST_VALUES = 100_000  # of a YAML file
DEEPEST = 30  # folders below a place, in which runs are looked for
UNITS = (("d", 86400), ("h", 3600), ("min", 60))
RUN_FILES = ("config.yaml", "status.json", "train.log")  # an evaluation has another log
SECTIONS = ("data", "objective", "trainer")  # without which settings are not those of a run
OWN = ("resume", "allow_changed_config")  # settings without effect on what is trained
# entries of config.yaml beside the settings
BESIDE = ("schema", "config_name", "choices", "overrides", "extended", "checkpoint_epoch")


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    """Find the run directories at or below places: directories, sweeps, or patterns such as 'runs/digits_*'.

    Errors:
        InputError: a place is missing, holds no run, or is no path; a path is not UTF-8.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not isinstance(place, (str, os.PathLike)):
            raise InputError(f"a place is a {type(place).__name__}; it must be a path; a list is given as *list")
        if not str(place).strip():  # an empty variable of a shell, not the working directory
            raise InputError("a run directory is given as ''; give its path, or . for the working directory")
        matches = [Path(place)] if Path(place).exists() else sorted(map(Path, glob(str(place))))
        if not matches:
            raise InputError(f"there is no {str(place)!r}; give run directories, the folder of a sweep, or a pattern")
        below = {path.resolve(): path for match in matches for path in _runs_below(match)}
        if not below:
            raise InputError(
                f"{str(place)!r} holds no run of train.py; give a run directory (it has a config.yaml; an evaluation "
                "is no run), the folder of a sweep, or a pattern"
            )
        odd = next((path for path in below.values() if not _is_text(path)), None)
        if odd is not None:
            raise InputError(f"the path {str(odd)!r} is not UTF-8, so that no table can hold it; rename the folder")
        found |= {resolved: path for resolved, path in below.items() if resolved not in found}
    return list(found.values())


def _is_text(path: Path) -> bool:
    with suppress(UnicodeEncodeError):
        return bool(str(path).encode())
    return False


def _runs_below(place: Path) -> Iterator[Path]:
    left: list[tuple[Path, Sequence[str]]] = [(place, RUN_FILES)]
    seen: set[Path] = set()
    while left:
        folder, marks = left.pop()
        try:
            if not folder.is_dir() or (resolved := folder.resolve()) in seen:
                continue
            seen.add(resolved)
            entries = sorted(folder.iterdir(), key=lambda entry: (len(entry.name), entry.name))  # 2 before 10
            found = is_run(folder, marks)
        except OSError:
            yield folder  # not readable for this user: listed with the reason
            continue
        if found:
            yield folder
            marks = RUN_FILES[1:]  # W&B has a config.yaml of its own in the folder of a run
        if len(folder.parts) < len(place.parts) + DEEPEST:
            named = [entry for entry in entries if entry.name != "evaluations" and not entry.name.startswith(".")]
            left += [(entry, marks) for entry in reversed(named)]


def is_run(folder: Path, marks: Sequence[str] = RUN_FILES) -> bool:
    """Return whether a folder is that of a run: it has one of the files `marks`, and none of an evaluation."""
    is_evaluation = any((folder / name).exists() for name in ("evaluate.log", "evaluation.json"))
    return not is_evaluation and any((folder / name).exists() for name in marks)


def shown(path: Path) -> Path:
    """Return the path from the working directory, where it is below it; else whole."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None where the file is missing or damaged."""
    try:
        return json.loads(_text(path))
    except (OSError, ValueError, RecursionError):
        return None


class PlainLoader(yaml.SafeLoader):
    """YAML without merge keys (`<<`), which multiply a few bytes without end and which no run writes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave a merge key as it is: a key of a kind that is not constructed."""


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a YAML file, None where the file is missing or damaged."""
    try:
        content = yaml.load(_text(path, LARGEST_YAML), PlainLoader)  # a SafeLoader
    except Exception:  # PyYAML raises nearly anything for a value without the form of its tag
        return None
    return content if isinstance(content, dict) and _is_small(content) else None


def _text(path: Path, largest: int = LARGEST_FILE) -> str:
    """Return the content of a regular file of a usual size: a pipe or a device would never end."""
    if not path.is_file() or path.stat().st_size > largest:
        raise ValueError(f"{path} is not a file of a run")
    return path.read_text(encoding="utf-8")


def _is_small(content: Any) -> bool:
    """Return whether there are few values: the same list in itself, again and again, makes many of a few bytes."""
    left, count = [content], 0
    while left and count <= MOST_VALUES:
        value = left.pop()
        count += 1
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return count <= MOST_VALUES


def read_checked(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file with a schema version; a file without one is of version 1.

    Errors:
        InputError: the file is missing, damaged, or of a newer nsr.
    """
    content = (read_json if path.suffix == ".json" else read_yaml)(path)
    if not isinstance(content, dict):
        raise InputError(f"{path.name} is {'damaged' if path.exists() else 'missing'}")
    version = content.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise InputError(f"{path.name} was written by a newer nsr (schema {version}; this one reads {SCHEMA})")
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """Return a run's resolved settings; InputError where `read_checked` has one, or they are not those of a run."""
    settings = read_checked(path)
    missing = [name for name in SECTIONS if not isinstance(settings.get(name), dict)]
    if missing or not settings["objective"].get("_target_"):
        raise InputError(f"config.yaml has no {', '.join(missing or ['objective._target_'])}; not a run of train.py")
    return settings


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf; a list is a leaf."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (before, now)} of every setting that differs, but for those that make no other run."""
    ignored = {*OWN, *BESIDE, "logger", "report", "pictures", "trusted", "data.download", "data.num_workers"}
    before, now = (
        {"performance": "off"}  # of a run of before there was a choice
        | {name: value for name, value in flat(part) if not ignored & {name, name.partition(".")[0]}}
        for part in (recorded, settings)
    )
    pairs = {name: (before.get(name, "nothing"), now.get(name, "nothing")) for name in before | now}
    return {
        name: (old, new)
        for name, (old, new) in pairs.items()
        if (old != new or (old == 1 and type(old) is not type(new)))  # 1 is a count and 1.0 all, of neurons or batches
        # of data, the content alone
        and (not name.startswith("data_origin") or (".content." in name and "nothing" not in (old, new)))
    }


def run_status(
    directory: Path, progress: str, *, is_trained: bool, is_measured: bool, is_readable: bool
) -> tuple[str, str]:
    """Return (status, remark) of a run; `nsr.compare.read_runs` lists the statuses.

    Args:
        progress: how many epochs are done, in words.
        is_trained: the last epoch has ended.
        is_measured: the accuracies of the best checkpoint are there.
        is_readable: the settings and metrics.json can be read.
    """
    if is_measured and is_trained:
        recorded = read_json(directory / "status.json")
        is_stopped = isinstance(recorded, dict) and recorded.get("status") == "failed"  # such as by a check
        return "finished", str(recorded.get("reason", "")) if is_stopped else ""
    status, reason = process_status(directory / "status.json")
    if status == "running":
        return status, f"{'measuring the test set' if is_trained else progress}, last change {_age(directory)} ago"
    if is_trained and is_readable:
        return "no evaluation", reason or "trained, not tested"
    if status in ("failed", "interrupted"):
        return status, f"{reason} ({progress})"
    return ("unfinished", f"{progress}, last change {_age(directory)} ago") if is_readable else ("unreadable", "")


def process_status(path: Path) -> tuple[str, str]:
    """Return (status, reason) from a status.json; a process that is dead or silent has failed.

    A process on another machine, or whose number another one has by now, is judged by its heartbeat alone.
    """
    content = read_json(path)
    marker = content if isinstance(content, dict) else {}
    status = str(marker.get("status", ""))
    if status != "running":
        return status, str(marker.get("reason", ""))
    if marker.get("host") == socket.gethostname() and not _is_alive(marker.get("process")):
        return "failed", "its process ended without a message, killed?"
    job, recorded = job_of_slurm(), marker.get("job")
    if job is not None and isinstance(recorded, list) and recorded != job and recorded[:1] == job[:1]:
        return "failed", "its job was started again"
    with suppress(OSError):
        silent = time.time() - path.stat().st_mtime
        if silent > SILENT_SECONDS:
            return "failed", f"no heartbeat for {round(silent / 60)} min, killed?"
    return status, ""


def job_of_slurm() -> list[str] | None:
    """Return [number, restart count] of the SLURM job that this process belongs to."""
    number = os.environ.get("SLURM_JOB_ID")
    return None if number is None else [number, os.environ.get("SLURM_RESTART_COUNT", "0")]


def _is_alive(process: Any) -> bool:
    if os.name == "nt":
        return True  # signal 0 cannot ask there
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's process
    return True


def _age(directory: Path) -> str:
    """Return the time since the latest change of a file at the top of the run directory."""
    changes = [path.stat().st_mtime for path in directory.iterdir() if path.is_file()]
    seconds = max(0, round(time.time() - max(changes, default=directory.stat().st_mtime)))
    unit, size = next((pair for pair in UNITS if seconds >= 2 * pair[1]), ("s", 1))
    return f"{seconds // size} {unit}"


def check_unused(directory: Path) -> None:
    """Raise InputError where a living process other than this one writes into the directory."""
    marker = read_json(directory / "status.json") or {}
    is_own = (marker.get("process"), marker.get("host")) == (os.getpid(), socket.gethostname())
    if process_status(directory / "status.json")[0] == "running" and not is_own:
        where = f"process {marker.get('process')} on {marker.get('host')}"
        raise InputError(f"{directory} is in use by {where}; wait for its end, or end it first")


@contextmanager
def recorded_status(directory: Path, program: str, overrides: Sequence[str]) -> Iterator[None]:
    """Write status.json as the block begins and as it ends; a process killed outright leaves `running`.

    Args:
        program: 'train.py' or 'evaluate.py'.

    Errors:
        InputError: a living process writes into the directory.
    """
    path = directory / "status.json"
    check_unused(directory)
    origin = {"program": program, "overrides": list(overrides), "process": os.getpid(), "host": socket.gethostname()}
    remember([program, list(overrides)])
    write_json(path, {"status": "running", **origin, "job": job_of_slurm()})
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
    try:
        yield
    except Interrupted as interruption:
        write_json(path, {"status": "interrupted", "reason": str(interruption), **origin})
        raise
    except BaseException as error:
        reason = (fault(error) or str(error) or type(error).__name__).splitlines()[0]
        with suppress(OSError):  # a full disk is the error that is shown
            write_json(path, {"status": "failed", "reason": reason, **origin})
        raise
    else:
        write_json(path, {"status": "finished", **origin})
    finally:
        ended.set()


def _touch(path: Path, ended: threading.Event) -> None:
    """Touch the file each minute, a sign of life, until the event is set."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)
