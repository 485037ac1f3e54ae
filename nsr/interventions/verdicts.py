"""A verdict in one sentence per layer: which controls the most sensitive neurons exceed, after Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping

from scipy.stats import norm

from nsr.comparison.inference import ALPHA, holm
from nsr.interventions.controls import LEAST, MOST, WHOLE
from nsr.interventions.effects import Row
from nsr.plots.contrasts import CONTROLS, FEWEST_IMAGES

LARGEST_OVERLAP = 0.9  # with the most sensitive neurons; above it a control can hardly differ from them
Layers = Mapping[str, Mapping[str, Row]]  # {layer: {control: row}}, of one kind and fraction


def is_uninformative(row: Row) -> bool:
    """Return whether a control shares too many neurons with the most sensitive ones to differ from them."""
    return row.overlap > LARGEST_OVERLAP


def p_value(row: Row) -> float:
    """Return the two-sided p of a contrast, normal with the standard error of its bootstrap over images and sets.

    It is never below the sign test's smallest for so many more images: the most sensitive neurons are a single set, and
    few images are not normal.
    """
    size, low, high = abs(row.contrast or 0), row.contrast_low or 0, row.contrast_high or 0
    error = (high - low) / (2 * norm.ppf(0.975))
    p = float(2 * norm.sf(size / error)) if error > 0 else float(size == 0)
    return max(p, min(1.0, 2.0 ** (1 - round(size * row.images))))


def verdicts(layers: Layers) -> dict[str, str]:
    """Return {layer: sentence}; all contrasts of the table are corrected together."""
    tested = {
        (layer, control): row
        for layer, rows in layers.items()
        for control, row in rows.items()
        if control not in (MOST, LEAST, WHOLE) and row.images >= FEWEST_IMAGES and not is_uninformative(row)
    }
    corrected = holm(p_value(row) for row in tested.values()).p
    signs = {
        key: 0 if p > ALPHA else 1 if (row.contrast or 0) > 0 else -1
        for (key, row), p in zip(tested.items(), corrected, strict=True)
    }
    return {layer: _sentence(layer, rows, signs) for layer, rows in layers.items()}


def _sentence(layer: str, rows: Mapping[str, Row], signs: Mapping[tuple[str, str], int]) -> str:
    images = rows[MOST].images
    if images < FEWEST_IMAGES:
        return f"{layer}: no verdict, {images} image{'s' * (images != 1)} are too few ({FEWEST_IMAGES} are needed)."
    groups = {
        "have a larger effect than": [key for key in rows if signs.get((layer, key)) == 1],
        "have a smaller effect than": [key for key in rows if signs.get((layer, key)) == -1],
        "do not differ measurably from": [key for key in rows if signs.get((layer, key)) == 0],
        "overlap by more than 90 % (uninformative) with": [
            key for key, row in rows.items() if key not in (MOST, LEAST, WHOLE) and is_uninformative(row)
        ],
    }
    parts = [f"{text} {', '.join(CONTROLS[key][0] for key in keys)}" for text, keys in groups.items() if keys]
    return f"{layer}: the most sensitive neurons {'; '.join(parts)}."
