"""Rows of a test: one for each attack, called ATTACK_NORM where several threat models are measured."""

from __future__ import annotations

NORMS = ("linf", "l2", "l1")
# no lower bound of what an attacker reaches
WEAK = ("clean", "uniform", "corruptions")


def without_norm(row: str) -> str:
    """Return ATTACK of ATTACK_NORM, and any other name as it is."""
    name, _, norm = row.rpartition("_")
    return name if name and norm in NORMS else row


def is_weak(row: str) -> bool:
    """Return whether a row says nothing of robustness to an attacker."""
    return without_norm(row) in WEAK
