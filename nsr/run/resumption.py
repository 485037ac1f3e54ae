"""Resuming a run that ended too early, and extending one that is finished. No torch here.

`resume=DIRECTORY` takes the command of a run that this user started, of another's run its admitted settings;
`resume=auto` takes the newest unfinished run of the same command. Either way it resumes in its own directory, from
last.ckpt, else from previous.ckpt, else from the beginning.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nsr.errors import InputError
from nsr.run.commands import name_of, override, parse_value
from nsr.run.directory import OWN, changes, check_unused, process_status, read_json, read_yaml
from nsr.run.files import COMPRESSED, SENSITIVITIES, damaged_part, regular
from nsr.run.own import is_own
from nsr.run.processes import is_started_from_outside

AUTO = "auto"
NAMED = 5  # differences in one line
RECORDS = ("metrics.csv", SENSITIVITIES, COMPRESSED, "layers.csv", "checks.json", "timing.json")  # of a restart
LIMITS = {"trainer.max_epochs", "trainer.max_time", "trainer.max_steps"}
HORIZON = ("T_max", "total_steps", "epochs")  # settings of a schedule that is not defined beyond its end


class Earlier(NamedTuple):
    """What a run directory holds already."""

    checkpoint: Path | None  # to resume from
    results: dict[str, Any] | None = None  # of a run that is finished
    extended_from: int | None = None  # epochs of a finished run that gets more
    new_schedule: bool = False  # the further epochs have a schedule of their own


def earlier_run(
    directory: Path, settings: Mapping[str, Any], *, resume: Any, changed: bool, overrides: Sequence[str] = ()
) -> Earlier | None:
    """Return what the directory holds of the run of a command's settings and overrides; None where it holds no run.

    Args:
        resume, changed: config.resume, config.allow_changed_config.

    Errors:
        InputError: another run's directory, one in use, one that is not finished and not to be resumed, a schedule
            that ends before the further epochs.
    """
    recorded = read_yaml(directory / "config.yaml")
    if recorded is None:
        if any((directory / name).exists() for name in ("metrics.json", "metrics.csv", "checkpoints")):
            state = "damaged" if (directory / "config.yaml").exists() else "missing"
            raise InputError(f"{directory} holds a run whose config.yaml is {state}; set hydra.run.dir to another")
        return None
    check_unused(directory)
    linked = next((path for path in sorted(directory.iterdir()) if path.is_symlink() and not path.is_dir()), None)
    if linked is not None:  # also of the logs and tables that are appended to
        raise InputError(f"{linked} is a link; resuming would write to {linked.resolve()}: put the file itself there")
    different = changes(recorded, settings)
    results = read_json(directory / "metrics.json")
    if results is not None and resume and _is_extension(different):
        new_schedule = _has_new_schedule(directory, recorded, settings, overrides)
        before = results.get("last_epoch", recorded["trainer"]["max_epochs"])
        return Earlier(readable_checkpoint(directory), None, before, new_schedule)
    if different and (results is not None or not (resume and changed)):
        names = [f"{name} was {before} and is {now}" for name, (before, now) in different.items()]
        if len(names) > NAMED + 1:
            names[NAMED:] = [f"{len(names) - NAMED} more"]
        fix = "give allow_changed_config=true to resume all the same, or" if resume and results is None else "set"
        problem = f"of other settings: {'; '.join(names)}; {fix}"
        raise InputError(f"{directory} holds a run {problem} hydra.run.dir to another")
    if results is None and not resume:
        problem = f"that is not finished; {override('resume', str(directory))} resumes it, or set"
        raise InputError(f"{directory} holds a run {problem} hydra.run.dir to another")
    return Earlier(None if results else readable_checkpoint(directory), results)


def _is_extension(different: Mapping[str, tuple[Any, Any]]) -> bool:
    """Return whether only limits and schedule have changed, not to fewer epochs."""
    before, now = different.get("trainer.max_epochs", (0, 0))
    others = {name for name in different if not name.startswith("scheduler.")}
    return now >= before and bool(others) and others <= LIMITS


def _has_new_schedule(
    directory: Path, recorded: Mapping[str, Any], settings: Mapping[str, Any], overrides: Sequence[str]
) -> bool:
    """Return whether the further epochs have a schedule of their own; InputError where they must, and have none."""
    typed = [row for row in overrides if row not in recorded.get("overrides", [])]
    if any(name_of(row).partition(".")[0] == "scheduler" for row in typed):
        return True
    # those of the schedule: free training replays each batch, and has that much fewer
    before, now = (
        -(-each["trainer"]["max_epochs"] // each["objective"].get("replays", 1)) for each in (recorded, settings)
    )
    if now > before and any(name in (settings.get("scheduler") or {}) for name in HORIZON):
        raise InputError(
            f"the schedule of {directory} ends with its {before} epochs; it must get another one for the "
            f"{now - before} further epochs: scheduler=constant, or scheduler.T_max={now - before} for cosine"
        )
    return False


def extensions(directory: Path) -> list[dict[str, Any]]:
    """Return the extensions of a run, the first one first: {from, to: epochs, new_schedule: it begins with one}."""
    recorded = (read_yaml(directory / "config.yaml") or {}).get("extended")
    return [entry for entry in recorded if isinstance(entry, dict)] if isinstance(recorded, list) else []


def readable_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint that is complete, None where there is none; InputError where all are damaged."""
    paths = [directory / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    for path in (found := [path for path in paths if path.exists()]):
        with regular(path).open("rb") as file:
            if zipfile.is_zipfile(file) and damaged_part(file) is None:
                return path
    if found:
        names = " and ".join(path.name for path in found)
        fix = "restore one from a copy, or remove the folder checkpoints to restart"
        raise InputError(f"{directory} cannot be resumed: {names} damaged or cut short; {fix}")
    return None


def remove_records(directory: Path) -> None:
    """Remove the records of a run that wrote no checkpoint and restarts."""
    for name in RECORDS:
        (directory / name).unlink(missing_ok=True)


def _resumed_directory(overrides: Sequence[str]) -> str | None:
    """Return the run directory that `resume` names, None where it names none."""
    resume = override_value(overrides, "resume")
    return None if resume in ("null", "false", AUTO) else resume


def resumed_command(overrides: Sequence[str], admit: Callable[[Path, list[str]], list[str]]) -> list[str]:
    """Replace `resume=DIRECTORY` by the run's command and what the user changes of it.

    Args:
        admit: returns, for a run that this user did not start, the overrides that are admitted, given those typed now.
    """
    resume = _resumed_directory(overrides)
    if resume is None:
        return list(overrides)
    if not resume.strip():
        raise InputError("resume is ''; it must be auto or a run directory, runs/NAME/DATE")
    directory = Path(resume).expanduser().absolute()
    elsewhere = override_value(overrides, "hydra.run.dir")
    if elsewhere is not None and Path(elsewhere).resolve() != directory.resolve():
        problem = f"hydra.run.dir is {elsewhere!r}, but resume={resume} resumes a run in its own directory"
        raise InputError(f"{problem}: leave hydra.run.dir out, or copy the run there and resume the copy")
    own = [row for row in overrides if name_of(row) not in ("resume", "hydra.run.dir")]
    changed = {name_of(row) for row in own if not row.startswith("~")}  # what ~NAME takes away has to be there first
    recorded = _own_command(directory)
    recorded = admit(directory, own) if recorded is None else recorded
    kept = [row for row in recorded if name_of(row) not in {*changed, *OWN}]
    return [*kept, *own, override("resume", str(directory)), override("hydra.run.dir", str(directory))]


def configuration_name(overrides: Sequence[str]) -> str | None:
    """Return what `--config-name` was for the run that `resume` names, where this user started it; else None."""
    resume = _resumed_directory(overrides)
    content = read_yaml(Path(resume).expanduser() / "config.yaml") if resume else None
    return content.get("config_name") if content is not None and is_own(content) else None


def _own_command(directory: Path) -> list[str] | None:
    """Return the overrides of a run that this user started, None for another's."""
    content, marker = read_yaml(directory / "config.yaml"), read_json(directory / "status.json")
    if content is None and isinstance(marker, dict) and marker.get("program") == "train.py":  # it ended before it began
        overrides = marker.get("overrides")
        return overrides if is_own([marker["program"], overrides]) else None
    return content.get("overrides", []) if content is not None and "objective" in content and is_own(content) else None


def check_sweep(overrides: Sequence[str]) -> None:
    """Raise InputError unless a sweep is started by one process, and has a folder where `resume` is set."""
    if is_started_from_outside():
        raise InputError("a sweep is started by one process; start it without torchrun and srun, see docs/scale.md")
    if (resume := _resumed_directory(overrides)) is not None:
        raise InputError(f"resume={resume} is one run; a sweep resumes with resume=auto hydra.sweep.dir=ITS_FOLDER")
    if override_value(overrides, "resume") == AUTO and override_value(overrides, "hydra.sweep.dir") is None:
        raise InputError("resume=auto of a sweep needs its folder: hydra.sweep.dir=runs/NAME/DATE of the first command")


def newest_unfinished(folder: Path, overrides: Sequence[str]) -> Path | None:
    """Return the newest run of this very command below `folder` that is neither finished nor running."""
    for path in sorted(folder.glob("*/status.json"), reverse=True):
        marker = read_json(path) or {}
        is_it = marker.get("program") == "train.py" and _own(marker.get("overrides", [])) == _own(overrides)
        if is_it and not (path.parent / "metrics.json").exists() and process_status(path)[0] != "running":
            return path.parent
    return None


def _own(overrides: Sequence[str]) -> set[str]:
    return {str(row) for row in overrides if name_of(row) not in OWN and not row.startswith("hydra")}


def override_value(overrides: Sequence[str], name: str) -> str | None:
    """Return the last `name=value` among the overrides of a command line, without its quotes."""
    values = [str(parse_value(row)) for row in overrides if name_of(row) == name]
    return values[-1] if values else None
