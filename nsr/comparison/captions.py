"""Captions that let a table stand alone: data, threat model, attacks, images, seeds, the test and its n."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas

from nsr.comparison.conditions import CONDITIONS, values_of
from nsr.comparison.inference import ALPHA, Decision
from nsr.comparison.leaders import Lead
from nsr.comparison.names import attack_heading, attack_settings
from nsr.comparison.statistics import Comparison
from nsr.errors import InputError, fraction
from nsr.plots.style import NORMS

DAGGER = "†"
GRAY_LEVELS = 255
STEP = 2.5  # of a gradient attack without a step size, times epsilon / steps
COUNTS = {"steps": "step", "restarts": "restart", "targets": "target", "queries": "query", "draws": "draw"}
AUTOATTACK = {"steps": 100, "restarts": 1, "targets": 9, "queries": 5000}  # its defaults, in 'custom'


def radius(epsilon: Any) -> str:
    """Return a radius as papers give it: '8/255' where it is a whole number of gray levels, else '0.15'."""
    try:
        number = fraction("epsilon", epsilon)
    except InputError:
        return str(epsilon)
    if not isinstance(number, (int, float)):
        return str(epsilon)
    levels = round(number * GRAY_LEVELS)
    is_whole = 0 < levels < GRAY_LEVELS and math.isclose(number * GRAY_LEVELS, levels, rel_tol=1e-6)
    return f"{levels}/{GRAY_LEVELS}" if is_whole else f"{number:.4g}"


def conditions_sentence(runs: pandas.DataFrame) -> str:
    """Return 'Test set: digits, 500 images. Threat model: L-infinity, epsilon 0.15, pixels in [0, 1].'"""
    data, images, norm, epsilon = (values_of(runs, name) for name in CONDITIONS)
    counts = _stated("images", {f"{count:,} images": methods for count, methods in images.items()})
    tested = ", ".join(filter(None, [_stated("data", data), counts]))
    radii = _stated("epsilon", {f"epsilon {radius(value)}": methods for value, methods in epsilon.items()})
    model = ", ".join(filter(None, [_stated("norm", {NORMS.get(one, one): by for one, by in norm.items()}), radii]))
    sentences = [f"Test set: {tested}." if tested else "", f"Threat model: {model}, pixels in [0, 1]." if model else ""]
    return " ".join(filter(None, sentences))


def attacks_sentence(runs: pandas.DataFrame, names: Mapping[str, str]) -> str:
    """Return 'PGD-40: 40 steps, step size 2/255, 1 restart; ...' for the attacks of a table's columns.

    Args:
        names: {accuracy's column: its heading}.
    """
    parts = []
    for column, name in names.items():
        settings = attack_settings(runs, column.removesuffix("_accuracy"))
        text = _stated("settings", {_budget(json.loads(own)): methods for own, methods in settings.items()})
        parts += [f"{name}: {text}"] if text else []
    worst = values_of(runs, "worst_case_of") if "worst_case_accuracy" in names else {}
    for rows in [*worst][:1]:
        attacks = [names.get(f"{row}_accuracy", row) for row in str(rows).split(", ") if row != "clean"]
        parts.append(f"{names['worst_case_accuracy']}: an image counts if it is robust to each of {', '.join(attacks)}")
    return f"{'; '.join(parts)}." if parts else ""


def validation_sentence(runs: pandas.DataFrame) -> str:
    """Return the data, the attack and the threat model that sensitivities were measured under."""
    found = {}
    for text, methods in values_of(runs, "validation_attack").items():
        own = json.loads(text)
        ball = f"{NORMS.get(own.get('norm'), own.get('norm'))}, epsilon {radius(own.get('epsilon'))}"
        found[f"{attack_heading('pgd', own)} ({', '.join(filter(None, [_budget(own), ball]))})"] = methods
    attack = _stated("attack", found)
    data = _stated("data", values_of(runs, "data"))
    return f"Validation images of {data or 'the data set'}; attack: {attack}." if attack else ""


def seeds_sentence(methods: pandas.DataFrame) -> str:
    """Return 'n = 5 seeds, best checkpoint of each run.'"""
    counts = sorted({int(count) for count in methods["finished"] if count})
    if not counts:
        return ""
    span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"n = {span} seed{'s' if counts[-1] > 1 else ''} a method, best checkpoint of each run."


def sensitivity_caption(comparison: Comparison) -> str:
    """Return the caption of a table of sensitivities over seeds."""
    return f"{validation_sentence(comparison.runs)} {seeds_sentence(comparison.methods)}".strip()


def lead_sentence(leads: Mapping[str, Lead], decision: Decision, left_out: Collection[str], columns: int) -> str:
    """Say what bold and the dagger mean, or why there is none.

    Args:
        left_out: columns without a best one, as their settings are unequal.
        columns: of accuracies that any run has.
    """
    if columns and len(left_out) >= columns:
        return "No mean is bold: the settings of the rows are unequal, so they cannot be ranked."
    sentence = "Bold: highest mean of a column, ties too"
    sentence += f", but where settings are unequal ({len(left_out)} columns)." if left_out else "."
    if not decision.comparisons:
        return f"{sentence} No {DAGGER}: no method has two seeds in common with the runner-up."
    pairs = sorted({lead.pairs for lead in leads.values() if lead.pairs > 1})
    span = f"{pairs[0]} to {pairs[-1]}" if len(pairs) > 1 else f"{pairs[0]}"
    test = f"sign-flip permutation test over n = {span} paired seeds"
    over = f"Holm's correction over {decision.comparisons} comparison{'s' if decision.comparisons > 1 else ''}"
    if not decision.is_possible:
        why = f"with the {test} the smallest attainable p after {over} is {decision.smallest_p:.2g}"
        return f"{sentence} No {DAGGER}: n too small to decide; {why}."
    meaning = f"its lead over the runner-up is shown ({test}, p <= {ALPHA:.2g} after {over})"
    none = "" if any(lead.is_shown for lead in leads.values()) else "; no lead is"
    return f"{sentence} {DAGGER}: {meaning}{none}."


def _stated(name: str, found: Mapping[str, Sequence[str]]) -> str:
    """Return the only text, or all of them with their methods: unequal settings are never averaged in silence."""
    if len(found) < 2:
        return next(iter(found), "")
    each = "; ".join(f"{text} ({', '.join(methods)})" for text, methods in found.items())
    return f"{name} unequal between rows: {each}"


def _budget(own: Mapping[str, Any]) -> str:
    """Return steps, step size, restarts and queries of an attack, '' where it has none of them."""
    is_autoattack = str(own.get("_target_")).endswith(".AutoAttack")
    is_custom = is_autoattack and own.get("version") == "custom"
    kinds = own.get("attacks") or () if is_custom else ()
    needed = {"queries"} if [*kinds] == ["square"] else {"steps", "restarts"} if is_custom else set()
    needed |= {"targets"} if "apgd-t" in kinds else set()
    parts = [f"{own.get('version')} version"] if is_autoattack and not is_custom else []
    for name, word in COUNTS.items():
        value = own.get(name)
        if value is None and name in needed:
            value = AUTOATTACK[name]
        if type(value) is int:
            parts.append(f"{value:,} {word if value == 1 else name}")
        if name == "steps" and "step_size" in own and type(value) is int:
            size = own["step_size"]
            parts.append(f"step size {f'{STEP} epsilon / steps' if size is None else radius(size)}")
    return ", ".join(parts)
