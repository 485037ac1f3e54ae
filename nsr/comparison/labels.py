"""The name of a method in a table: its objective, its stabiliser, and in what it differs from methods of both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nsr.comparison.settings import ABSENT, OBJECTIVES, Flat, differing


def method_labels(methods: Mapping[str, Flat], bases: Mapping[str, str]) -> dict[str, str]:
    """{key: label}; a label is as long as it takes to tell the methods apart.

    Args:
        methods: {key: its settings}.
        bases: {key: its objective, with ' + sns' where it is stabilised}.
    """
    labels: dict[str, str] = {}
    for base in dict.fromkeys(bases.values()):
        alike = {key: methods[key] for key in methods if bases[key] == base}
        names = differing(list(alike.values()))
        labels |= {key: _label(base, {name: alike[key].get(name, ABSENT) for name in names}) for key in alike}
    return labels


def told(name: str, value: Any) -> str:
    """A setting as it is read: 'suite.pgd.steps=40', 'model=ResNet18'."""
    if name.endswith("_target_"):
        return f"{name.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{name}={_text(value)}"


def place_in_tables(objective: str, stabilized: bool, label: str) -> tuple[Any, ...]:
    """To sort methods by: objectives in the order of the project's pages, without the stabiliser first, then label."""
    known = OBJECTIVES.index(objective) if objective in OBJECTIVES else len(OBJECTIVES)
    words = re.split(r"(\d+(?:\.\d+)?)", label)  # every second one a number: 2 before 16
    return known, objective, stabilized, [float(word) if place % 2 else word for place, word in enumerate(words)]


def _label(base: str, values: Mapping[str, Any]) -> str:
    """'pgd(clean_share=0.5) + sns(weight=2) max_epochs=20 + awp'."""
    objective, plus, stabilizer = base.partition(" + ")
    parts: dict[str, list[str]] = {"objective": [], "stabilizer": [], "": []}
    for name, value in values.items():
        section, _, leaf = name.partition(".")
        if section == "callbacks" and leaf.endswith("._target_"):
            parts[""] += [] if value == ABSENT else [f"+ {leaf.removesuffix('._target_')}"]
        elif section in parts:
            parts[section].append(told(leaf, value))
        elif section == "attack" and not leaf.endswith("_target_") and f"objective.{leaf}" not in values:
            parts["objective"].append(told(leaf, value))
        else:
            parts[""].append(told(leaf if section == "trainer" else name, value))
    first, second = (f"({', '.join(parts[part])})" if parts[part] else "" for part in ("objective", "stabilizer"))
    return " ".join([f"{objective}{first}{plus}{stabilizer}{second}", *parts[""]])


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{' '.join(map(_text, value))}]" if isinstance(value, list) else str(value)
