"""The name of a method in a table: its objective, its stabilizer and the settings that tell it from other methods."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from nsr.comparison.settings import OBJECTIVES, Flat, Identity, differing


def method_labels(methods: Mapping[str, Identity], conditions: Mapping[str, Flat]) -> dict[str, str]:
    """Return {key: label}; a label is as long as it takes to tell the methods apart, and no two are equal.

    Args:
        methods: {key: a run of the method}.
        conditions: {key: further settings, in which runs of different methods are known to differ}.
    """
    bases = {key: " + ".join(filter(None, [run.objective, run.stabilizer])) for key, run in methods.items()}
    labels: dict[str, str] = {}
    for base in dict.fromkeys(bases.values()):
        records = {
            key: {**run.method, **run.choices, **conditions[key]} for key, run in methods.items() if bases[key] == base
        }
        preferred = [*(name for key in records for name in (*methods[key].typed, *conditions[key]))]
        names = differing(list(records.values()), preferred=preferred)
        for key, record in records.items():
            label = _label(base, {name: record[name] for name in names if name in record})
            again = sum(other.partition(" #")[0] == label for other in labels.values())
            labels[key] = f"{label} #{again + 1}" if again else label
    return labels


def setting_text(name: str, value: Any) -> str:
    """Return a setting as it is read: 'test_attacks.pgd.steps=40', 'model=resnet18', 'model=MyNetwork'."""
    if name.endswith("_target_"):
        return f"{name.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{setting_name(name)}={_text(value)}"


def setting_name(name: str) -> str:
    """Return the name as it is typed: the choice of a group by the group's name."""
    return name.removeprefix("choices.")


def table_order(objective: str, stabilized: bool, label: str) -> tuple[Any, ...]:
    """Return a key to sort methods by: shipped objectives first, without the stabilizer first, then the label."""
    known = OBJECTIVES.index(objective) if objective in OBJECTIVES else len(OBJECTIVES)
    words = re.split(r"(\d+(?:\.\d+)?)", label)  # every second one a number: 2 before 16
    return known, objective, stabilized, [float(word) if place % 2 else word for place, word in enumerate(words)]


def _label(base: str, values: Mapping[str, Any]) -> str:
    """Return 'pgd(clean_weight=0.5) + sns(weight=2) max_epochs=20 + awp'."""
    objective, plus, stabilizer = base.partition(" + ")
    parts: dict[str, list[str]] = {"objective": [], "stabilizer": [], "": []}
    for name, value in values.items():
        section, _, leaf = name.partition(".")
        if section == "callbacks" and leaf.endswith("._target_"):
            parts[""].append(f"+ {leaf.removesuffix('._target_')}")
        elif section in parts and leaf != "_target_":
            parts[section].append(setting_text(leaf, value))
        elif name == "choices.train_attack" or (section == "train_attack" and f"objective.{leaf}" not in values):
            parts["objective"].append(setting_text(name if leaf == "_target_" else name.partition(".")[2], value))
        else:
            parts[""].append(setting_text(leaf if section == "trainer" else name, value))
    first, second = (f"({', '.join(parts[part])})" if parts[part] else "" for part in ("objective", "stabilizer"))
    return " ".join([f"{objective}{first}{plus}{stabilizer}{second}", *parts[""]])


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{' '.join(map(_text, value))}]" if isinstance(value, list) else str(value)
