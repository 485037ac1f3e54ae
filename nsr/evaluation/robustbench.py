"""robustbench.json: an entry for RobustBench's model zoo (model_info/DATASET/THREAT_MODEL/NAME.json there)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsr.evaluation.outcomes import CURVE
from nsr.evaluation.threat_models import row_epsilon, row_threat_model
from nsr.run.files import write_json

# what only the authors know: `evaluation.robustbench` sets them
OF_AUTHORS = ("link", "name", "authors", "additional_data", "number_forward_passes", "venue", "reported", "footnote")


def write_entry(
    directory: Path, metrics: Mapping[str, float], attacks: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Write robustbench.json where AutoAttack's standard version was measured, in its norm and radius; not of a curve.

    Fields as in RobustBench; accuracies are percentages with two digits, as text. What is not known is null.

    Args:
        metrics: {NAME_accuracy: fraction}.
        attacks: {row: the object that is measured}.
        settings: of the command.
    """
    standard = [row for row, attack in attacks.items() if getattr(attack, "is_standard", False)]
    rows = [row for row in standard if not row.startswith(CURVE)]
    if not rows:
        return
    row = rows[0]
    given = {name: value for name, value in (settings["evaluation"]["robustbench"] or {}).items() if value is not None}
    norm, radius = row_threat_model(row, attacks[row], settings)
    epsilon = row_epsilon(row, attacks[row], settings)
    known = {
        "dataset": _last(settings["data"]["_target_"]).lower(),
        "architecture": str(settings["model"].get("name") or _last(settings["model"]["_target_"])),
        "threat_model": {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm],
        "eps": epsilon if isinstance(epsilon, str) else f"{radius:g}",
        "clean_acc": f"{100 * metrics['clean_accuracy']:.2f}",
        "autoattack_acc": f"{100 * metrics[f'{row}_accuracy']:.2f}",
        "unreliable": False,
    }
    write_json(directory / "robustbench.json", {**dict.fromkeys(OF_AUTHORS), **known, **given})


def _last(target: str) -> str:
    return target.rpartition(".")[2]
