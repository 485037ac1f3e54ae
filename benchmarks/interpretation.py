"""docs/interpretation.md and its figures, from the committed rows of benchmarks/interventions.py.

    python -m benchmarks.interpretation

The page's text is in interpretation_text.md; tables and verdicts are computed here. tests/test_interpretation.py holds
the page to the rows, and what the text says by itself too.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from benchmarks import interventions

PAGE = interventions.ROOT / "docs" / "interpretation.md"
TEXT = Path(__file__).with_name("interpretation_text.md")
FIGURES = {name: PAGE.with_name(f"interventions_{name}.png") for name in ("network", "relu1")}
SHARE = 0.5  # of a layer's neurons, that the tables show
CONTROLS = {  # family: what the page calls it
    "random_equal_size": "equal size",
    "random_equal_mass": "equal mass",
    "random_equal_energy": "equal energy",
    "by_activation": "most active",
}
Rows = list[dict[str, Any]]


def table() -> None:
    """docs/interpretation.md and its figures."""
    from nsr.interventions.effects import Row
    from nsr.interventions.plots import layer_figure, network_figure
    from nsr.plotting import save

    PAGE.write_text(page(interventions.rows(), interventions.record()))
    typed = [Row(**row) for row in interventions.rows()]
    figures = {"network": network_figure(typed, share=SHARE)}
    figures["relu1"] = layer_figure([row for row in typed if row.layer == "relu1"])
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in figures.items():
            save(figure, Path(folder) / name)
            shutil.copy(Path(folder) / f"{name}.png", FIGURES[name])


def page(all_rows: Rows, of_run: dict[str, Any]) -> str:
    """The page: its text is in interpretation_text.md, its figures and verdicts are computed here."""
    text = TEXT.read_text()
    parts = {
        "COMMAND": wrapped(of_run["command"].replace("alarms=false", "alarms.judge=false")),  # as it is called since
        "RUN": run_told(of_run),
        "IMAGES": f"{of_run['images']['fooled']:.0f}",
        "TESTED": f"{of_run['images']['tested']:.0f}",
        "RIGHT": f"{of_run['images']['right']:.0f}",
        "RESTORE": effects(all_rows, "restore"),
        "CORRUPT": effects(all_rows, "corrupt"),
        "RANKING": ranking(all_rows, of_run),
        "SHARES_MASS": every_share(all_rows, "restore", "random_equal_mass"),
        "SHARES_ENERGY": every_share(all_rows, "restore", "random_equal_energy"),
        "VERDICT": verdict(all_rows),
    }
    for name, part in parts.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", part)
    return text


def found(all_rows: Rows, kind: str, family: str, share: float = SHARE) -> dict[str, dict[str, Any]]:
    """{layer: row}"""
    return {
        row["layer"]: row
        for row in all_rows
        if (row["kind"], row["family"], row["share"]) == (kind, family, share if family != "whole_layer" else 1)
    }


def effects(all_rows: Rows, kind: str) -> str:
    """A row a layer: effects at half of the neurons in per cent, and three contrasts in points."""
    families = ("most_sensitive", *CONTROLS, "least_sensitive")
    headings = [
        "most sensitive",
        *CONTROLS.values(),
        "least sensitive",
        *(f"most - {name}" for name in CONTROLS.values()),
    ]
    lines = [f"| layer | {' | '.join(headings)} |", "|---" * (len(headings) + 1) + "|"]
    for layer in found(all_rows, kind, "most_sensitive"):
        cells = [f"{100 * found(all_rows, kind, family)[layer]['effect']:.1f}" for family in families]
        cells += [contrast(found(all_rows, kind, family)[layer]) for family in CONTROLS]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def every_share(all_rows: Rows, kind: str, family: str) -> str:
    """The contrast with one control in every layer and at every share, in points."""
    shares = sorted({row["share"] for row in all_rows if row["family"] == "most_sensitive"})
    lines = [f"| layer | {' | '.join(f'{100 * share:g} %' for share in shares)} |", "|---" * (len(shares) + 1) + "|"]
    for layer in found(all_rows, kind, "most_sensitive"):
        cells = [contrast(found(all_rows, kind, family, share)[layer]) for share in shares]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ranking(all_rows: Rows, of_run: dict[str, Any]) -> str:
    """What the sets hold of each layer's summed sensitivity and energy, and how sensitivity goes with activation."""
    headings = ["neurons", "correlation with activation", "most sensitive: mass", "equal size: mass"]
    headings += ["equal mass: mass", "neurons", "overlap", "most sensitive: energy", "equal energy: energy"]
    headings += ["neurons", "overlap"]
    lines = [f"| layer | {' | '.join(headings)} |", "|---" * (len(headings) + 1) + "|"]
    size, mass, energy = (found(all_rows, "restore", family) for family in list(CONTROLS)[:3])
    for layer, row in found(all_rows, "restore", "most_sensitive").items():
        correlation = of_run["layers"][layer]["correlation_of_sensitivity_and_activation"]
        cells = [f"{row['layer_neurons']}", f"{correlation:.2f}", percent(row["mass"]), percent(size[layer]["mass"])]
        cells += [percent(mass[layer]["mass"]), f"{mass[layer]['neurons']:.1f}", percent(mass[layer]["overlap"])]
        cells += [percent(row["energy"]), percent(energy[layer]["energy"])]
        cells += [f"{energy[layer]['neurons']:.1f}", percent(energy[layer]["overlap"])]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def verdict(all_rows: Rows) -> str:
    """What the rows say, layer by layer, in sentences."""
    lines = []
    for kind in ("restore", "corrupt"):
        contrasts = {family: found(all_rows, kind, family) for family in CONTROLS}
        lines += [
            f"* {kind}, most sensitive against {name}: more in {told(contrasts[family], 1)}; less in "
            f"{told(contrasts[family], -1)}; no difference shown in {told(contrasts[family], 0)}."
            for family, name in CONTROLS.items()
        ]
        for family in ("random_equal_mass", "random_equal_energy"):
            gone = [
                f"{layer} {100 * (1 - contrasts[family][layer]['contrast'] / row['contrast']):.0f}%"
                for layer, row in contrasts["random_equal_size"].items()
                if row["contrast_low"] > 0
            ]
            lines.append(
                f"* {kind}, how much of the difference to equal size is gone at {CONTROLS[family]}: {', '.join(gone)} "
                "(above 100%: these random sets do more)."
            )
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False) for line in lines)


def told(contrasts: dict[str, dict[str, Any]], sign: int) -> str:
    """The layers whose interval lies above 0 (1), below (-1) or holds it (0)."""
    named = [layer for layer, row in contrasts.items() if sign_of(row) == sign]
    return ", ".join(named) or "none"


def sign_of(row: dict[str, Any]) -> int:
    """1 where the contrast's interval lies above 0, -1 below, 0 where it holds it."""
    return int(row["contrast_low"] > 0) - int(row["contrast_high"] < 0)


def contrast(row: dict[str, Any]) -> str:
    """'+12.3 [+8.0, +16.1]', in points."""
    points = [100 * row[name] for name in ("contrast", "contrast_low", "contrast_high")]
    return f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]"


def run_told(of_run: dict[str, Any]) -> str:
    """Commit, machine and time in a sentence."""
    machine = of_run["machine"]
    loads = " and ".join(f"{load:.1f}" for load in machine["load_before_after"])
    told = (
        f"Commit {of_run['commit']}, torch {of_run['versions']['torch']}, {machine['cores']} cores "
        f"({machine['processor']}), {machine['OMP_NUM_THREADS']} threads: {of_run['processor_seconds']:.0f} seconds of "
        f"processor time, {of_run['seconds']:.0f} by the clock with a load of {loads} before and after."
    )
    return textwrap.fill(told, 118)


def wrapped(command: str) -> str:
    """A command of several lines."""
    lines = textwrap.wrap(command, 112, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(shlex_quoted(line) for line in lines)


def shlex_quoted(line: str) -> str:
    """The words that a shell would expand, in quotes."""
    return " ".join(f'"{word}"' if set(word) & set("[]?*") else word for word in line.split(" "))


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    table()
