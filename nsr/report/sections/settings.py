"""Settings that differ from the defaults, the exact command, and the files with their sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nsr
from nsr.report.files import RunFiles
from nsr.report.parts import Section
from nsr.run.commands import command, name_of, parse_value
from nsr.run.directory import flat, read_json, read_yaml
from nsr.run.own import is_own
from nsr.run.tables import Cell, Table

PACKAGE = Path(nsr.__file__).parent
CONFIGURATIONS = next((path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir()), PACKAGE)
MOST_FILES = 60
SIZES = ((2**30, "GB"), (2**20, "MB"), (2**10, "kB"))


def settings(run: RunFiles) -> Section:
    """Tabulate the choices and settings that are not the defaults, with both values."""
    program = "evaluate" if run.is_evaluation else "train"
    found = changed(run.run.settings, program)
    rows = [[Cell(name), Cell(_shown(value)), Cell(_shown(default))] for name, (value, default) in found.items()]
    paragraphs = [] if rows else ["Every setting has its default."]
    tables = [Table("Settings that differ from the defaults", ["setting", "value", "default"], rows, texts=3)]
    data = {"changed": {name: list(pair) for name, pair in found.items()}}
    return Section("Settings", "settings", paragraphs, tables=tables if rows else [], data=data)


def changed(given: Mapping[str, Any], program: str) -> dict[str, tuple[Any, Any]]:
    """Return {name: (value, default)} of the choices of groups and the overrides of a run that are not the defaults.

    The default of a setting is that of its group's choice in the run; that of an interpolation is its text.
    """
    defaults = read_yaml(CONFIGURATIONS / f"{program}.yaml") or {}
    usual = {key: value for entry in defaults["defaults"] if isinstance(entry, dict) for key, value in entry.items()}
    recorded = given.get("choices")
    choices = recorded if isinstance(recorded, Mapping) else {}
    typed = {name_of(str(row)): str(row) for row in given.get("overrides") or ()}
    found = {
        group: (choice, usual.get(group, "none"))
        for group, choice in choices.items()
        if str(choice) != str(usual.get(group)) and (group in usual or group in typed)
    }
    known = dict(flat(given))
    for name, row in typed.items():
        if name in choices or name.startswith("hydra."):
            continue
        value = known.get(name, parse_value(row))
        default = usual[name] if name in usual else _default(name, choices, defaults)
        default = f"[{','.join(map(str, default))}]" if isinstance(default, list) else default
        if str(value) != str(default):
            found[name] = value, default
    return found


def _shown(value: Any) -> str:
    """Return a value as a command line has it."""
    if isinstance(value, str) and "${" in value:
        return "from other settings"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _default(name: str, choices: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Return what conf/ has for a dotted name."""
    group, _, key = name.partition(".")
    path = CONFIGURATIONS / group / f"{choices.get(group)}.yaml"
    is_choice = path.is_file() and path.resolve().is_relative_to(CONFIGURATIONS.resolve())
    own = read_yaml(path) if is_choice else None
    return dict(flat(own)).get(key, "–") if own else dict(flat(defaults)).get(name, "–")


def commands(run: RunFiles) -> Section:
    """Show the commands of the run and of its evaluations."""
    found = list(_commands(run))
    is_mine = all(is_own([program, overrides]) for program, overrides in found)
    text = "From the directory in which they were given."
    if not is_mine:
        text += " Another user, or another machine, gave them: read a command before you run it."
    code = [command(program.removesuffix(".py"), *overrides) for program, overrides in found]
    return Section("Commands", "commands", [text] if code else ["Unknown: there is no status.json."], code=code)


def _commands(run: RunFiles) -> Iterator[tuple[str, list[str]]]:
    folders = [run.directory, *(run.directory / "evaluations" / name for name in run.run.sources)]
    for folder in folders:
        marker = read_json(folder / "status.json")
        overrides = marker.get("overrides") if isinstance(marker, dict) else None
        if isinstance(overrides, list) and marker.get("program") in ("train.py", "evaluate.py"):
            yield marker["program"], [str(override) for override in overrides]


def files(run: RunFiles) -> Section:
    """List the files of the run with their sizes."""
    paths = sorted(path for path in run.directory.rglob("*") if path.is_file() and "cache" not in path.parts)
    paths = [path for path in paths if path.suffix not in (".partial", ".html")]
    sizes = {path.relative_to(run.directory).as_posix(): path.stat().st_size for path in paths}
    shown = dict(list(sizes.items())[:MOST_FILES])
    rows = [[Cell(name), Cell(size_text(size), float(size))] for name, size in shown.items()]
    more = f"{len(sizes) - len(shown)} more are not listed." if len(shown) < len(sizes) else ""
    table = Table(f"{len(sizes)} files, {size_text(sum(sizes.values()))}", ["file", "size"], rows, note=more)
    return Section("Files", "files", [], tables=[table], data={"bytes": shown})


def size_text(size: float) -> str:
    """Return '1.2 MB'."""
    for unit, name in SIZES:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"
