"""The threat model, a norm and a radius, of each row of an evaluation; several of them under `threat_models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsr.errors import fraction
from nsr.evaluation.curve import expanded
from nsr.evaluation.outcomes import CURVE, WORST
from nsr.plots.style import NORMS

Settings = Mapping[str, Any]


def in_each(by_norm: Mapping[str, Mapping[str, Any]], alone: Mapping[str, Any]) -> dict[str, Any]:
    """Return test attacks as ATTACK_NORM in each threat model, those of the first norm first.

    An attack that keeps its own norm is measured in that one alone. The clean row, a curve and an attack of a norm that
    is no threat model stay as they are.

    Args:
        by_norm: {norm: {attack: its settings where this is the norm}}.
        alone: {attack: its settings outside of the threat models}.
    """
    attacks: dict[str, Any] = {}
    for norm, own in by_norm.items():
        for name, attack in own.items():
            if name != "curve" and attack is not None and attack.get("norm", norm) == norm:
                attacks[f"{name}_{norm}"] = attack
    placed = {row.rpartition("_")[0] for row in attacks}
    return {name: attack for name, attack in alone.items() if name not in placed} | attacks


def threat_model(row: str, settings: Settings) -> dict[str, Any]:
    """Return {'norm': ..., 'epsilon': ...} that an attack of an evaluation has where its own settings say nothing."""
    for norm, epsilon in (settings.get("threat_models") or {}).items():
        if row.endswith(f"_{norm}") and not row.startswith(CURVE):
            return {"norm": norm, "epsilon": epsilon}
    return {"norm": settings["norm"], "epsilon": settings["epsilon"]}


def row_epsilon(row: str, attack: Any, settings: Settings) -> float | str:
    """Return the radius of a row as it is written: its own setting, else the attack's attribute, else the run's.

    Args:
        attack: the object that is measured.
    """
    own, given = expanded(settings["test_attacks"])[row] or {}, threat_model(row, settings)["epsilon"]
    if own.get("epsilon") is not None:
        return own["epsilon"]
    found: Any = getattr(attack, "epsilon", None)
    is_other = isinstance(found, (int, float, str)) and fraction("epsilon", found) != fraction("epsilon", given)
    return found if is_other else given


def row_threat_model(row: str, attack: Any, settings: Settings) -> tuple[str, float]:
    """Return the norm and the radius of a row.

    Args:
        attack: the object that is measured.
    """
    norm = getattr(attack, "norm", None) or threat_model(row, settings)["norm"]
    return norm, fraction("epsilon", row_epsilon(row, attack, settings))


def by_threat_model(attacks: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, str]]:
    """Return {title of a threat model: {attack: its row}}, for the attacks of the evaluation's own threat models.

    Args:
        attacks: {row: the object that is measured}.
    """
    several = settings.get("threat_models")
    models = several or {settings["norm"]: settings["epsilon"]}
    radii = {norm: fraction("epsilon", epsilon) for norm, epsilon in models.items()}
    found: dict[str, dict[str, str]] = {NORMS[norm]: {} for norm in models}
    for row, attack in attacks.items():
        norm, epsilon = row_threat_model(row, attack, settings)
        if radii.get(norm) == epsilon and not row.startswith(CURVE):
            found[NORMS[norm]][row.removesuffix(f"_{norm}") if several else row] = row
    return found


def worst_cases(attacks: Mapping[str, Any], settings: Settings) -> dict[str, list[str]]:
    """Return {row of a worst case: the rows that it is over}: one for each norm, where there are several, and of all.

    Rows at another norm or radius than the evaluation's are no part. There is none without an attack: clean accuracy is
    no worst case.

    Args:
        attacks: {row: the object that is measured}.
    """
    models = by_threat_model(attacks, settings)
    each = {f"{WORST}_{norm}": ["clean", *rows.values()] for norm in NORMS if (rows := models.get(NORMS[norm]))}
    if not each:
        return {}
    every = {row for rows in each.values() for row in rows}
    return {**(each if len(each) > 1 else {}), WORST: [row for row in ("clean", *attacks) if row in every]}
