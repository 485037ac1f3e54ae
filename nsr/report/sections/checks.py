"""The checks of training and of the newest evaluation: triggered, passed, not evaluated, with evidence."""

from __future__ import annotations

from typing import Any

from nsr.report.files import RunFiles
from nsr.report.parts import Section
from nsr.run.tables import Cell, Table

STATES = {True: "triggered", False: "passed", None: "not evaluated"}


def section(run: RunFiles) -> Section:
    """Tabulate every check.json entry, the triggered ones first."""
    found: dict[str, list[dict[str, Any]]] = {} if run.is_evaluation else {"training": run.checks(run.directory)}
    if (run.measured is not None and run.measured != run.directory) or run.is_evaluation:
        found["evaluation"] = run.checks(run.measured or run.directory)
    tables = [
        Table(
            f"Checks of the {name}",
            ["check", "state", "evidence", "if triggered, it usually means"],
            _rows(checks),
            texts=4,
        )
        for name, checks in found.items()
        if checks
    ]
    paragraphs = []
    for name, checks in found.items():
        counts = [f"{sum(_state(check) is state for check in checks)} {word}" for state, word in STATES.items()]
        paragraphs += [f"{name.capitalize()}: {', '.join(counts)}."] if checks else []
    if not found.get("evaluation"):
        paragraphs.append(
            "The checks for gradient masking belong to an evaluation (nsr-evaluate); there is none with checks here."
        )
    data = {name: {str(check.get("name")): STATES.get(_state(check)) for check in own} for name, own in found.items()}
    return Section("Checks", "checks", paragraphs, tables=tables, data=data)


def _state(check: dict[str, Any]) -> bool | None:
    state = check.get("triggered")
    return state if isinstance(state, bool) else None


def _rows(checks: list[dict[str, Any]]) -> list[list[Cell]]:
    order = list(STATES)
    rows = []
    for check in sorted(checks, key=lambda check: order.index(_state(check))):
        state = STATES[_state(check)]
        texts = [str(check.get(name, "")) for name in ("title", "evidence", "meaning")]
        epoch = f" in epoch {check['epoch']}" if isinstance(check.get("epoch"), int) else ""
        name = Cell(f"{texts[0]} ({check.get('name', '')})")
        rows.append([name, Cell(state + epoch, state=state), Cell(texts[1]), Cell(texts[2])])
    return rows
