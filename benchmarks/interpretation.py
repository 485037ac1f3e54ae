"""Write docs/interpretation.md and its plots from the committed rows of benchmarks/interventions.py.

    python -m benchmarks.interpretation

The text of the page is in interpretation_text.md; tables and verdicts are computed here. tests/test_interpretation.py
compares the page with the rows, and the sentences of the text too.
"""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import interventions
from benchmarks.common import DOCS, bullet, interval, names, table
from nsr.comparison.inference import ALPHA, holm
from nsr.interventions import Row
from nsr.interventions.verdicts import is_uninformative, p_value

PAGE = DOCS / "interpretation.md"
TEXT = Path(__file__).with_name("interpretation_text.md")
PLOTS = {name: PAGE.with_name(f"interventions_{name}.png") for name in ("network", "relu1")}
FRACTION = 0.5  # of a layer's neurons, in the tables
CONTROLS = {  # name in the rows: name on the page
    "random_equal_size": "equal size",
    "random_equal_sensitivity": "equal sensitivity",
    "random_equal_squared_difference": "equal squared difference",
    "by_activation": "most active",
}
RANKINGS = {
    "most_sensitive": "sensitivity",
    "by_relative": "relative sensitivity",
    "by_activation": "activation",
    "by_squared_difference": "squared difference",
    "by_attribution": "attribution",
}
MATCHED = ("random_equal_sensitivity", "random_equal_squared_difference")
Rows = list[dict[str, Any]]


def write() -> None:
    """Write the page and its plots."""
    import pandas

    from nsr.plots import intervention_effects, save
    from nsr.plots import interventions as contrasts

    PAGE.write_text(page(interventions.rows(), interventions.record(), own_networks()))
    frame = pandas.DataFrame([Row(**row) for row in interventions.rows()])
    title = f"{100 * FRACTION:g} % of each layer's neurons"
    drawn = {
        "network": contrasts(frame[frame["fraction"] == FRACTION], title=title),
        "relu1": intervention_effects(frame[frame["layer"] == "relu1"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, plot in drawn.items():
            save(plot, Path(folder) / name)
            shutil.copy(Path(folder) / f"{name}.png", PLOTS[name])


def own_networks() -> dict[str, tuple[Rows, dict[str, Any]]]:
    """Return {network: its rows, its record} of those of the package that have been measured."""
    names_ = [name for name in interventions.NETWORKS if name != "resnet20" and interventions.path(name).exists()]
    return {name: (interventions.rows(name), interventions.record(name)) for name in names_}


def page(rows: Rows, record: dict[str, Any], own: dict[str, tuple[Rows, dict[str, Any]]]) -> str:
    """The text of the page with its computed parts."""
    text = TEXT.read_text()
    parts = {
        "COMMAND": wrapped(f"python evaluate.py {' '.join(interventions.words('resnet20'))}"),
        "RUN": provenance(record),
        **{name.upper(): str(count) for name, count in record["images"].items()},
        "PATCH_CLEAN": effects(rows, "patch_clean"),
        "PATCH_ADVERSARIAL": effects(rows, "patch_adversarial"),
        "RANKING": ranking(rows, record),
        "ALL_SENSITIVITY": every_fraction(rows, "patch_clean", "random_equal_sensitivity"),
        "ALL_SQUARED": every_fraction(rows, "patch_clean", "random_equal_squared_difference"),
        "VERDICT": verdict(rows),
        "NETWORKS": str(1 + len(own)),
        "OWN_TABLE": own_table(own),
        "OWN_VERDICT": own_verdict(own),
        "CONDITIONS": conditions(),
        "CONDITIONS_VERDICT": conditions_verdict(),
        "RANKINGS": rankings({"resnet20": (rows, record), **own}),
        "RANKINGS_VERDICT": rankings_verdict({"resnet20": (rows, record), **own}),
        "OWN_COMMANDS": "\n".join(f"    python -m benchmarks.interventions {name}" for name in own),
    }
    for name, part in parts.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", part)
    return text


def short() -> list[str]:
    """Return what docs/results.md says of the first claim, a row of a table for each network."""
    cells = []
    for name in (name for name in interventions.NETWORKS if interventions.path(name).exists()):
        signs = corrected(interventions.rows(name), "patch_clean")
        counts = [f"{[*own.values()].count(1)} / {[*own.values()].count(-1)}" for own in signs.values()]
        title = interventions.NETWORKS[name]["title"] + (", Fashion-MNIST" if name != "resnet20" else "")
        cells.append([title, str(len(signs["by_activation"])), *counts])
    text = (
        "**Claim 1**: layers in which the clean outputs of the most sensitive half of the neurons correct more / fewer "
        "attacked images than those of each control, after Holm's correction. The claim holds at equal size in most "
        "layers, and at equal squared difference in few or none:"
    )
    return [*bullet(text), "", *table(["network", "layers", *CONTROLS.values()], cells), ""]


def select(rows: Rows, kind: str, control: str, fraction: float = FRACTION) -> dict[str, dict[str, Any]]:
    """{layer: row}"""
    fraction = 1 if control == "whole_layer" else fraction
    wanted = (kind, control, fraction)
    return {row["layer"]: row for row in rows if (row["kind"], row["control"], row["fraction"]) == wanted}


def effects(rows: Rows, kind: str) -> str:
    """Effects at half of the neurons in percent, and contrasts in percentage points, a row per layer."""
    shown = {"most_sensitive": "most sensitive", **CONTROLS, "least_sensitive": "least sensitive"}
    headings = ["layer", *shown.values(), *(f"most - {name}" for name in CONTROLS.values())]
    found = {control: select(rows, kind, control) for control in shown}
    cells = (
        [layer, *(f"{100 * by_layer[layer]['effect']:.1f}" for by_layer in found.values())]
        + [contrast(found[control][layer]) for control in CONTROLS]
        for layer in found["most_sensitive"]
    )
    return "\n".join(table(headings, cells))


def every_fraction(rows: Rows, kind: str, control: str) -> str:
    """The contrast with one control in every layer and at every fraction, in percentage points."""
    fractions = sorted({row["fraction"] for row in rows if row["control"] == "most_sensitive"})
    found = [select(rows, kind, control, fraction) for fraction in fractions]
    headings = ["layer", *(f"{100 * fraction:g} %" for fraction in fractions)]
    cells = ([layer, *(contrast(by_layer[layer]) for by_layer in found)] for layer in found[0])
    return "\n".join(table(headings, cells))


def ranking(rows: Rows, record: dict[str, Any]) -> str:
    """Sums that the sets hold, their sizes and overlaps, and the correlation of sensitivity with activation."""
    headings = ["layer", "neurons", "correlation with activation", "most sensitive: sensitivity"]
    headings += ["equal size: sensitivity", "equal sensitivity: sensitivity", "neurons", "overlap"]
    headings += ["most sensitive: squared difference", "equal squared difference: squared difference"]
    headings += ["neurons", "overlap"]
    size, sums, squares = (select(rows, "patch_clean", control) for control in list(CONTROLS)[:3])
    sensitivity, squared = "sensitivity_fraction", "squared_difference_fraction"
    cells = []
    for layer, row in select(rows, "patch_clean", "most_sensitive").items():
        correlation = record["layers"][layer]["correlation_of_sensitivity_and_activation"]
        cells.append([layer, f"{row['layer_neurons']}", f"{correlation:.2f}", percent(row[sensitivity])])
        cells[-1] += [percent(by_layer[layer][sensitivity]) for by_layer in (size, sums)]
        cells[-1] += [f"{sums[layer]['neurons']:.1f}", percent(sums[layer]["overlap"])]
        cells[-1] += [percent(by_layer[layer][squared]) for by_layer in ({layer: row}, squares)]
        cells[-1] += [f"{squares[layer]['neurons']:.1f}", percent(squares[layer]["overlap"])]
    return "\n".join(table(headings, cells))


def verdict(rows: Rows) -> str:
    """Sentences on the sign of each contrast, and on how much of the effect each matched control reaches."""
    lines = []
    for kind in ("patch_clean", "patch_adversarial"):
        signs = corrected(rows, kind)
        contrasts = {control: select(rows, kind, control) for control in CONTROLS}
        for control, name in CONTROLS.items():
            more, less, none, same = (layers_with(signs[control], wanted) for wanted in (1, -1, 0, None))
            text = f"* {kind}, most sensitive minus {name}: above 0 in {more}; below 0 in {less}; not shown in {none}"
            lines.append(f"{text}; uninformative in {same}.")
        for control in MATCHED:
            reached = [
                f"{layer} {100 * (1 - contrasts[control][layer]['contrast'] / row['contrast']):.0f}%"
                for layer, row in contrasts["random_equal_size"].items()
                if signs["random_equal_size"][layer] == 1
            ]
            text = f"* {kind}, part of the contrast with equal size that random sets of {CONTROLS[control]} reach: "
            lines.append(f"{text}{', '.join(reached)} (above 100%: these random sets have the larger effect).")
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False) for line in lines)


def own_table(own: dict[str, tuple[Rows, dict[str, Any]]]) -> str:
    """Contrasts at half of the neurons for each network and layer, patch_clean, in percentage points."""
    cells = []
    for name, (rows, record) in own.items():
        found = {control: select(rows, "patch_clean", control) for control in CONTROLS}
        for layer, most in select(rows, "patch_clean", "most_sensitive").items():
            counts = [str(record["images"]["fooled"]), layer, f"{100 * most['effect']:.1f}"]
            texts = [contrast(by_layer[layer]) for by_layer in found.values()]
            cells.append([interventions.NETWORKS[name]["title"], *counts, *texts])
    headings = ["training", "images", "layer", "most sensitive, %"]
    return "\n".join(table([*headings, *(f"most - {control}" for control in CONTROLS.values())], cells))


def rankings(networks: dict[str, tuple[Rows, dict[str, Any]]]) -> str:
    """Effects of the first half by each ranking, for each network and layer, patch_clean, in percent."""
    cells = []
    for name, (rows, _) in networks.items():
        found = [select(rows, "patch_clean", control) for control in (*RANKINGS, "random_equal_size", "whole_layer")]
        for layer in found[0]:
            effects = [f"{100 * by_layer[layer]['effect']:.1f}" for by_layer in found]
            cells.append([short_title(name), layer, *effects])
    return "\n".join(table(["network", "layer", *RANKINGS.values(), "at random", "whole layer"], cells))


def rankings_verdict(networks: dict[str, tuple[Rows, dict[str, Any]]]) -> str:
    """Sentences on the contrasts of sensitivity with other rankings that survive Holm's correction over a network."""
    lines = []
    for name, (rows, _) in networks.items():
        signs = corrected(rows, "patch_clean", list(RANKINGS)[1:])
        parts = [
            f"{RANKINGS[control]}: more in {layers_with(found, 1)}, fewer in {layers_with(found, -1)}"
            for control, found in signs.items()
        ]
        start = f"* {short_title(name)}: the most sensitive half corrects, after Holm's correction,"
        lines.append(f"{start} compared with the first half by {'; '.join(parts)}.")
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False) for line in lines)


def measured_conditions() -> Iterator[tuple[str, str, Rows]]:
    """Yield (network, condition, rows), '' the first one, of the networks that have all of them."""
    for name in interventions.NETWORKS:
        of_name = {condition: f"{name}+{condition}" for condition in interventions.CONDITIONS}
        if all(interventions.path(other).exists() for other in of_name.values()):
            for condition, other in {"": name, **of_name}.items():
                yield name, condition, interventions.rows(other)


def conditions() -> str:
    """Layers whose contrast survives Holm's correction, above and below 0, for each network, attack and split."""
    said = {"": "as above", "attack": "attack on the logit margin", "split": "another split"}
    cells = []
    for name, condition, rows in measured_conditions():
        signs, fooled = corrected(rows, "patch_clean"), next(iter(rows))["images"]
        counts = [f"{[*of.values()].count(1)} / {[*of.values()].count(-1)}" for of in signs.values()]
        layers = str(len(signs["by_activation"]))
        cells.append([short_title(name), said[condition], str(fooled), layers, *counts])
    headings = ["network", "condition", "images", "layers", *(f"most - {control}" for control in CONTROLS.values())]
    return "\n".join(table(headings, cells))


def conditions_verdict() -> str:
    """Say in which layers a contrast survives with both signs, under different conditions."""
    found: dict[tuple[str, str, str], set[int | None]] = {}
    for name, _, rows in measured_conditions():
        for control, signs in corrected(rows, "patch_clean").items():
            for layer, sign in signs.items():
                found.setdefault((short_title(name), CONTROLS[control], layer), set()).add(sign)
    both = [f"{layer} of {name} ({control})" for (name, control, layer), signs in found.items() if {1, -1} <= signs]
    text = "No contrast survives with one sign under one condition and with the other sign under another."
    if both:
        text = f"Contrasts that survive with one sign under one condition and the other under another: {names(both)}."
    return textwrap.fill(text, 118)


def short_title(name: str) -> str:
    return "the published ResNet-20" if name == "resnet20" else str(interventions.NETWORKS[name]["title"])


def own_verdict(own: dict[str, tuple[Rows, dict[str, Any]]]) -> str:
    """Sentences on the contrasts that survive Holm's correction, of each network and kind."""
    lines = []
    for name, (rows, _) in own.items():
        for kind in ("patch_clean", "patch_adversarial"):
            signs = corrected(rows, kind)
            parts = [
                f"{shown}: above 0 in {layers_with(signs[control], 1)}, below 0 in {layers_with(signs[control], -1)}"
                for control, shown in CONTROLS.items()
            ]
            lines.append(f"* {interventions.NETWORKS[name]['title']}, {kind}, most sensitive minus {'; '.join(parts)}.")
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False) for line in lines)


def corrected(rows: Rows, kind: str, controls: Iterable[str] = tuple(CONTROLS)) -> dict[str, dict[str, int | None]]:
    """{control: {layer: the sign that survives Holm's correction over the table, 0, or None where uninformative}}."""
    table = {(control, layer): Row(**row) for control in controls for layer, row in select(rows, kind, control).items()}
    informative = [key for key, row in table.items() if not is_uninformative(row)]
    p = dict(zip(informative, holm(p_value(table[key]) for key in informative).p, strict=True))
    signs: dict[str, dict[str, int | None]] = {control: {} for control in controls}
    for (control, layer), row in table.items():
        found = p.get((control, layer))
        signs[control][layer] = None if found is None else int(found <= ALPHA) * (1 if (row.contrast or 0) > 0 else -1)
    return signs


def layers_with(signs: dict[str, int | None], wanted: int | None) -> str:
    return names(layer for layer, found in signs.items() if found == wanted)


def contrast(row: dict[str, Any]) -> str:
    """'+12.3 [+8.0, +16.1]', in percentage points."""
    return interval(*(100 * row[name] for name in ("contrast", "contrast_low", "contrast_high")), digits=1)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def provenance(record: dict[str, Any]) -> str:
    """Commit, machine and time in a sentence."""
    machine = record["machine"]
    loads = " and ".join(f"{load:.1f}" for load in machine["load_before_after"])
    text = (
        f"Commit {record['commit']}, torch {record['versions']['torch']}, {machine['cores']} cores "
        f"({machine['processor']}), {machine['OMP_NUM_THREADS']} threads: {record['processor_seconds']:.0f} seconds of "
        f"processor time, {record['seconds']:.0f} seconds of wall time, load {loads} before and after."
    )
    return textwrap.fill(text, 118)


def wrapped(command: str) -> str:
    """A command on several lines, with quotes around the words that a shell would expand."""
    lines = textwrap.wrap(command, 112, break_long_words=False, break_on_hyphens=False)
    quoted = [[f'"{word}"' if set(word) & set("[]?*") else word for word in line.split(" ")] for line in lines]
    return " \\\n    ".join(" ".join(words) for words in quoted)


if __name__ == "__main__":
    write()
