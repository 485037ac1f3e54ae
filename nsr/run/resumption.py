"""Going on with a run that ended too early, or not at all with one that is finished. No torch here.

`resume=DIRECTORY` takes the command that the run recorded, `resume=auto` the newest unfinished run of the same
command. Either way it goes on in its own directory, from last.ckpt, else from previous.ckpt, else from the beginning.
"""

from __future__ import annotations

import os
import socket
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nsr.app.configuration import flat
from nsr.errors import InputError
from nsr.run.directory import marked, read_json, read_yaml
from nsr.run.processes import is_started_from_outside

AUTO = "auto"
NAMED = 5  # differences in one line
OWN = ("resume", "resume_changed")  # settings that say nothing of what is trained
MADE = ("metrics.csv", "sensitivity.csv", "layers.csv", "alarms.json", "timing.json")  # by a run that begins anew


class Earlier(NamedTuple):
    """What a run directory holds already."""

    checkpoint: Path | None  # to go on from
    results: dict[str, Any] | None  # of a run that is finished


def earlier_run(directory: Path, settings: Mapping[str, Any], *, resume: Any, changed: bool) -> Earlier | None:
    """What there is of the run of these settings; None where there is no run.

    Errors:
        InputError: another run's directory, one that is in use, one that is not finished and not to be resumed.
    """
    recorded = read_yaml(directory / "config.yaml")
    if recorded is None:
        return None
    check_unused(directory)
    different = differences(recorded, settings)
    results = read_json(directory / "metrics.json")
    if len(different) > NAMED + 1:
        different[NAMED:] = [f"{len(different) - NAMED} more"]
    if different and (results is not None or not (resume and changed)):
        way = "give resume_changed=true to go on all the same, or" if resume and results is None else "set"
        raise InputError(
            f"{directory} holds a run of other settings: {'; '.join(different)}; {way} hydra.run.dir to another"
        )
    if results is None and not resume:
        raise InputError(
            f"{directory} holds a run that is not finished; resume={directory} goes on with it, or set hydra.run.dir "
            "to another"
        )
    return Earlier(None if results else readable_checkpoint(directory), results)


def check_unused(directory: Path) -> None:
    """InputError where a living process, and another than this one, writes into the directory."""
    marker = read_json(directory / "status.json") or {}
    is_own = (marker.get("process"), marker.get("host")) == (os.getpid(), socket.gethostname())
    if marked(directory / "status.json")[0] == "running" and not is_own:
        where = f"process {marker.get('process')} on {marker.get('host')}"
        raise InputError(f"{directory} is in use by {where}; wait for its end, or end it first")


def differences(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """'NAME was X and is Y' of every setting that differs; another dashboard is no other run."""
    before, now = (
        {name: value for name, value in flat(part) if name not in OWN and not name.startswith("logger.")}
        for part in (recorded, settings)
    )
    names = [*before, *(name for name in now if name not in before)]
    missing = "nothing"
    return [
        f"{name} was {before.get(name, missing)} and is {now.get(name, missing)}"
        for name in names
        if before.get(name, missing) != now.get(name, missing)
    ]


def readable_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    for name in ("last.ckpt", "previous.ckpt"):
        path = directory / "checkpoints" / name
        if path.exists() and zipfile.is_zipfile(path):
            return path
    return None


def begin_anew(directory: Path) -> None:
    """Takes away the records of a run that wrote no checkpoint."""
    for name in MADE:
        (directory / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- the command


def resumed_command(overrides: Sequence[str]) -> list[str]:
    """The command with `resume=DIRECTORY` put into words: what the run recorded, and what the user changes of it."""
    resume = override_value(overrides, "resume")
    if resume in (None, "null", "false", AUTO):
        return list(overrides)
    directory = Path(str(resume)).expanduser().absolute()
    marker = read_json(directory / "status.json")
    if marker is None or marker.get("program") != "train.py":
        raise InputError(f"resume={resume}: there is no run of train.py in {directory}; resume=auto looks for one")
    own = [override for override in overrides if _name(override) not in ("resume", "hydra.run.dir")]
    changed = {_name(override) for override in own}
    recorded = [override for override in marker.get("overrides", []) if _name(override) not in {*changed, *OWN}]
    return [*recorded, *own, f"resume='{directory}'", f"hydra.run.dir='{directory}'"]


def check_sweep(overrides: Sequence[str]) -> None:
    """InputError where a sweep cannot be resumed, or is started by several processes."""
    resume, folder = override_value(overrides, "resume"), override_value(overrides, "hydra.sweep.dir")
    if is_started_from_outside():
        raise InputError("a sweep is started by one process; start it without torchrun and srun, see docs/scale.md")
    if resume not in (None, "null", "false", AUTO):
        raise InputError(f"resume={resume} is one run; a sweep goes on with resume=auto hydra.sweep.dir=ITS_FOLDER")
    if resume == AUTO and folder is None:
        raise InputError("resume=auto of a sweep needs its folder: hydra.sweep.dir=runs/NAME/DATE of the first command")


def newest_unfinished(folder: Path, overrides: Sequence[str]) -> Path | None:
    """The newest run of this very command below `folder` that is neither finished nor running."""
    wanted = _told(overrides)
    found = []
    for path in folder.glob("*/status.json"):
        marker = read_json(path) or {}
        is_it = marker.get("program") == "train.py" and _told(marker.get("overrides", [])) == wanted
        if is_it and not (path.parent / "metrics.json").exists() and marked(path)[0] != "running":
            found.append(path.parent)
    return max(found, key=lambda directory: directory.name, default=None)


def _told(overrides: Sequence[str]) -> set[str]:
    return {str(override) for override in overrides if _name(override) not in OWN and not override.startswith("hydra")}


def override_value(overrides: Sequence[str], name: str) -> str | None:
    """The last `name=value` among the overrides of a command line, without its quotes."""
    values = [override.partition("=")[2].strip("'\"") for override in overrides if _name(override) == name]
    return values[-1] if values else None


def _name(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
