"""Numbers as a page shows them, and as its JSON holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DIGITS = 6  # significant ones in the JSON


def percent(value: float, digits: int = 1) -> str:
    """Return a fraction as '70.4 %'."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "–"


def interval(low: float, high: float) -> str:
    """Return fractions as '[66.2, 74.2]', in percent; a dash for none."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low) else "–"


def rounded(value: float) -> str:
    """Return a number with up to four significant digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def plain(value: Any) -> Any:
    """Return a value for JSON: floats with six significant digits, those that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
