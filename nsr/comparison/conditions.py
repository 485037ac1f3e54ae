"""What the runs of a table share: data, images, threat model and attacks, and where they do not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas

from nsr.comparison.names import attack_settings

CONDITIONS = ("data", "images", "norm", "epsilon")  # of a measurement, which all runs of a table should share


def finished(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Select the finished runs."""
    return runs[runs["status"] == "finished"]


def values_of(runs: pandas.DataFrame, column: str) -> dict[Any, list[str]]:
    """Return {value: methods that have it} of finished runs, without missing values."""
    found: dict[Any, list[str]] = {}
    rows = finished(runs) if column in runs else runs[:0]
    for run in rows.to_dict("records"):
        if not pandas.isna(value := run[column]) and value != "" and run["method"] not in found.get(value, ()):
            found.setdefault(value, []).append(run["method"])
    return found


def unequal(runs: pandas.DataFrame, columns: Collection[str]) -> set[str]:
    """Return the accuracies whose rows were measured under unequal settings: their means cannot be ranked."""
    if any(len(values_of(runs, name)) > 1 for name in CONDITIONS):
        return set(columns)
    found = {name for name in columns if len(attack_settings(runs, name.removesuffix("_accuracy"))) > 1}
    return found | ({"worst_case_accuracy"} & set(columns) if found else set())
