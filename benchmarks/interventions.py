"""Interventions on somebody else's ResNet-20 for CIFAR-10: the raw rows, and docs/interpretation.md made from them.

    python benchmarks/interventions.py run WEIGHTS IMAGES    the rows: a plain state_dict, a folder with test/CLASS/*
    python benchmarks/interventions.py table                 the page and its figures from the rows

`run` is one evaluation, COMMAND below, on two cores; its rows, untouched, go to benchmarks/results/ beside a record of
commit, machine, versions and seconds.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "interventions_resnet20.csv"
RECORD = ROWS.with_suffix(".json")
PAGE = ROOT / "docs" / "interpretation.md"
FIGURES = {name: PAGE.with_name(f"interventions_{name}.png") for name in ("network", "relu1")}
SHARE = 0.5  # of a layer's neurons, that the tables show
EXPECTED = ("relu1", "layer1.0", "layer1.1", "layer1.2", "layer2.0")  # where a prototype had found a contrast
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # waiting threads leave the cores to others
COMMAND = (
    *("model=resnet20", "model.variant=projection_bias", "model.normalization=none", "model.weights=WEIGHTS"),
    *("data=image_folder", "data.root=IMAGES", "limit=500", "epsilon=2/255", "sensitivity_attack.steps=20"),
    *("layers=[relu1,layer?.?]", "analyses=[interventions]", "analysis.interventions.rankings=[activation,relative]"),
    *("attacks=[clean]", "alarms.judge=false", "channels_last=true", "trainer.accelerator=cpu", "seed=0"),
)


def run(weights: str, images: str) -> None:
    """One evaluation in a process of its own; nothing is kept of one that fails."""
    commit = _commit()
    places = {"WEIGHTS": weights, "IMAGES": images}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "evaluate.py"), f"hydra.run.dir={folder}/run"]
        for word in COMMAND:
            name, _, value = word.partition("=")
            command.append(f"{name}={places.get(value, value)}")
        loads, started = [os.getloadavg()[0]], time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, **ENVIRONMENT})
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        loads.append(os.getloadavg()[0])
        found = json.loads((Path(folder) / "run" / "interventions.json").read_text())
        figures = json.loads((Path(folder) / "run" / "evaluation.json").read_text())
        shutil.copy(Path(folder) / "run" / "interventions.csv", ROWS)
    record = {
        "command": f"python evaluate.py {' '.join(COMMAND)}",
        "commit": commit,
        "weights_sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), **ENVIRONMENT, "load_before_after": loads},
        "versions": _versions(),
        "clean_accuracy": figures["test/clean_accuracy"],
        "images": found["images"],
        "layers": found["layers"],
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


def rows() -> list[dict[str, Any]]:
    """The committed rows, numbers as numbers."""
    with ROWS.open(newline="") as file:
        return [{name: _plain(value) for name, value in row.items()} for row in csv.DictReader(file)]


def record() -> dict[str, Any]:
    """What was run where."""
    return json.loads(RECORD.read_text())


# ---------------------------------------------------------------- the page


def table() -> None:
    """docs/interpretation.md and its figures."""
    sys.path.insert(0, str(ROOT))
    from nsr.analysis.figures import layer_figure, network_figure, save
    from nsr.analysis.outcomes import Row

    PAGE.write_text(page(rows(), record()))
    typed = [Row(**row) for row in rows()]
    figures = {"network": network_figure(typed, share=SHARE)}
    figures["relu1"] = layer_figure([row for row in typed if row.layer == "relu1"])
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in figures.items():
            save(figure, Path(folder) / name)
            shutil.copy(Path(folder) / f"{name}.png", FIGURES[name])


def page(all_rows: list[dict[str, Any]], of_run: dict[str, Any]) -> str:
    """The page: its text is in interpretation_text.md, its figures and verdicts are computed here."""
    text = (Path(__file__).with_name("interpretation_text.md")).read_text()
    parts = {
        "COMMAND": wrapped(of_run["command"]),
        "RUN": run_told(of_run),
        "IMAGES": f"{of_run['images']['fooled']:.0f}",
        "TESTED": f"{of_run['images']['tested']:.0f}",
        "RIGHT": f"{of_run['images']['right']:.0f}",
        "RESTORE": effects(all_rows, "restore"),
        "CORRUPT": effects(all_rows, "corrupt"),
        "RANKING": ranking(all_rows, of_run),
        "SHARES": every_share(all_rows, "restore"),
        "VERDICT": verdict(all_rows),
    }
    for name, part in parts.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", part)
    return text


def found(all_rows: list[dict[str, Any]], kind: str, family: str, share: float = SHARE) -> dict[str, dict[str, Any]]:
    """{layer: row}"""
    return {
        row["layer"]: row
        for row in all_rows
        if (row["kind"], row["family"], row["share"]) == (kind, family, share if family != "whole_layer" else 1)
    }


def effects(all_rows: list[dict[str, Any]], kind: str) -> str:
    """A row a layer: effects at half of the neurons in per cent, and three contrasts in points."""
    families = ("most_sensitive", "random_equal_size", "random_equal_mass", "least_sensitive", "by_activation")
    contrasts = ("random_equal_size", "random_equal_mass", "by_activation")
    lines = [
        "| layer | most sensitive | random, equal size | random, equal mass | least sensitive | most active "
        "| most - equal size | most - equal mass | most - most active |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for layer in found(all_rows, kind, "most_sensitive"):
        cells = [f"{100 * found(all_rows, kind, family)[layer]['effect']:.1f}" for family in families]
        cells += [contrast(found(all_rows, kind, family)[layer]) for family in contrasts]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def every_share(all_rows: list[dict[str, Any]], kind: str) -> str:
    """The contrast with equal mass in every layer and at every share, in points."""
    shares = sorted({row["share"] for row in all_rows if row["family"] == "most_sensitive"})
    lines = [f"| layer | {' | '.join(f'{100 * share:g} %' for share in shares)} |", "|---" * (len(shares) + 1) + "|"]
    for layer in found(all_rows, kind, "most_sensitive"):
        cells = [contrast(found(all_rows, kind, "random_equal_mass", share)[layer]) for share in shares]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ranking(all_rows: list[dict[str, Any]], of_run: dict[str, Any]) -> str:
    """What the sets hold of each layer's summed sensitivity, and how that goes with activation."""
    lines = [
        "| layer | neurons | correlation of sensitivity and activation | mass of the most sensitive half "
        "| of random halves | of equal-mass sets | neurons in these | of the most sensitive half in these |",
        "|---|---|---|---|---|---|---|---|",
    ]
    most, size, mass = (
        found(all_rows, "restore", family) for family in ("most_sensitive", "random_equal_size", "random_equal_mass")
    )
    for layer, row in most.items():
        correlation = of_run["layers"][layer]["correlation_of_sensitivity_and_activation"]
        masses = " | ".join(f"{100 * each[layer]['mass']:.0f} %" for each in (most, size, mass))
        lines.append(
            f"| {layer} | {row['layer_neurons']:.0f} | {correlation:.2f} | {masses} | {mass[layer]['neurons']:.1f} "
            f"| {100 * mass[layer]['overlap']:.0f} % |"
        )
    return "\n".join(lines)


def verdict(all_rows: list[dict[str, Any]]) -> str:
    """What the rows say, layer by layer, in sentences."""
    lines = []
    for kind in ("restore", "corrupt"):
        size, mass, active = (
            found(all_rows, kind, family) for family in ("random_equal_size", "random_equal_mass", "by_activation")
        )
        explained = [
            f"{layer} {100 * (1 - mass[layer]['contrast'] / row['contrast']):.0f} %"
            for layer, row in size.items()
            if row["contrast_low"] > 0
        ]
        lines += [
            f"* {kind}, against random sets of equal size: more in {told(size, 1)}; less in {told(size, -1)}; no "
            f"difference shown in {told(size, 0)}.",
            f"* {kind}, against random sets of equal mass: more in {told(mass, 1)}; less in {told(mass, -1)}; no "
            f"difference shown in {told(mass, 0)}.",
            f"* {kind}, against the most active: more in {told(active, 1)}; less in {told(active, -1)}; no "
            f"difference shown in {told(active, 0)}.",
            f"* {kind}, the part of the difference to equal size that is gone at equal mass, where there is one: "
            f"{', '.join(explained)} (above 100 %: random sets of equal mass do more).",
        ]
    return "\n".join(lines)


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
    return (
        f"commit {of_run['commit']}, torch {of_run['versions']['torch']}, {machine['cores']} cores "
        f"({machine['processor']}), {machine['OMP_NUM_THREADS']} threads: {of_run['processor_seconds']:.0f} seconds of "
        f"processor time, {of_run['seconds']:.0f} by the clock with a load of {loads} before and after"
    )


def wrapped(command: str) -> str:
    """A command of several lines."""
    lines = textwrap.wrap(command, 112, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(shlex_quoted(line) for line in lines)


def shlex_quoted(line: str) -> str:
    """The words that a shell would expand, in quotes."""
    return " ".join(f'"{word}"' if set(word) & set("[]?*") else word for word in line.split(" "))


def _plain(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value) if value else None
        except ValueError:
            continue
    return value


def _commit() -> str:
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "nsr", "conf"], cwd=ROOT, check=False).returncode
    name = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return name.stdout.strip() + ("+changes" if changed else "")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}}


def main(arguments: list[str]) -> None:
    if len(arguments) == 3 and arguments[0] == "run":
        run(*arguments[1:])
    elif arguments == ["table"]:
        table()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
