"""Figures as SVG text for a page: text stays text, and the colors of paper, ink and grid follow the page's theme."""

from __future__ import annotations

import io
import re
from typing import Any

from nsr.plots.style import PAPER, styled

THEME = {PAPER["background"]: "var(--page)", PAPER["ink"]: "var(--ink)", PAPER["grid"]: "var(--grid)"}


def svg(figure: Any) -> str:
    """Return a figure as an <svg> element without metadata; images of heat maps are inside it."""
    import matplotlib

    file = io.BytesIO()
    kept: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nsr"}
    with styled(), matplotlib.rc_context(kept):
        figure.savefig(file, format="svg", dpi=150, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, variable in THEME.items():
        text = text.replace(color.lower(), variable)
    used = set(re.findall(r'(?:url\(|xlink:href=")#([\w-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1 {attributes}>", text, count=1)
    return text.replace("\n", " ").strip()
