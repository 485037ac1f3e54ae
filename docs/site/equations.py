"""Draw each ```math block of a page as SVG while the site is built: no script and no font is loaded."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

BLOCK = re.compile(r"^```math\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
POINTS, EM = (
    11,
    9.5,
)  # of the drawing, and what counts as one em of the page: its letters are smaller than those of text
NAMES = {"text.parse_math": True, "mathtext.fontset": "stix", "svg.fonttype": "path", "svg.hashsalt": "nsr"}


def drawn(markdown: str) -> str:
    r"""Return a page whose ```math blocks, lines of TeX that end in \\, are SVG that takes the color of the text."""
    return BLOCK.sub(lambda match: _block(match[1]), markdown)


def _block(content: str) -> str:
    lines = [line.strip().removesuffix(r"\\").strip() for line in content.strip().splitlines()]
    pictures = "".join(_svg(line) for line in lines if line)
    return f'<div class="equation" role="img" aria-label="{escape(content.strip(), quote=True)}">{pictures}</div>'


def _svg(tex: str) -> str:
    """Return one line as an <svg>, in units of the text around it."""
    file = io.BytesIO()
    with matplotlib.rc_context(NAMES):
        figure = Figure(figsize=(0.1, 0.1))
        figure.text(0, 0, f"${tex}$", fontsize=POINTS)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.02, transparent=True, metadata=nothing)
    text = file.getvalue().decode()
    text = re.sub(
        r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>",
        "",
        text[text.index("<svg") :],
        flags=re.DOTALL,
    )
    width, height = (float(re.search(rf'<svg [^>]*{side}="([\d.]+)pt"', text)[1]) for side in ("width", "height"))
    size = f'style="width: {width / EM:.3f}em; height: {height / EM:.3f}em" aria-hidden="true"'
    text = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \1 {size}>',
        text,
        count=1,
    )
    return text.replace("\n", " ")
