"""The headline: accuracies with intervals, the facts of the run, and one paragraph with its caution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from nsr.comparison.names import attack_title
from nsr.comparison.reading import Measurement, evaluate_command
from nsr.comparison.settings import in_threat_model
from nsr.report.facts import facts, threat_model
from nsr.report.files import RunFiles, folder_of, results_of
from nsr.report.numbers import interval, percent
from nsr.report.parts import Section
from nsr.run.rows import is_weak, without_norm
from nsr.run.tables import Cell, Table

CURVE, WORST, STRONG = "curve_x", "worst_case", "autoattack"
FEW_IMAGES = 1000
STATES = {
    "finished": "has finished",
    "running": "is running",
    "failed": "failed",
    "interrupted": "was interrupted",
    "no evaluation": "is trained and not tested",
    "unfinished": "is unfinished",
    "unreadable": "cannot be read",
}


class Row(NamedTuple):
    """The accuracy of one row of a test and its interval (nan where there is none), fractions."""

    accuracy: float
    low: float
    high: float
    images: int
    title: str
    source: str


def rows_of(run: RunFiles) -> dict[str, Row]:
    """Return {row: accuracy} of best.ckpt on the test set.

    Each is from the measurement on the most images that has it, of equal ones the newest; the worst case is the newest
    measurement's own.
    """
    found: dict[str, Row] = {}
    for measurement in run.measurements:
        results, images = results_of(run, measurement), images_of(run, measurement)
        # without users' metrics
        known = [name for name in results if name in measurement.metrics or name.startswith(WORST)]
        names = [name.removesuffix("_accuracy") for name in known if name.endswith("_accuracy")]
        for name in names:
            accuracy, low, high = (_number(results.get(f"{name}_{part}")) for part in Row._fields[:3])
            is_better = name.startswith(WORST) or name not in found or images >= found[name].images
            if is_better and math.isfinite(accuracy):
                title = attack_title(name, measurement.settings)
                found[name] = Row(accuracy, low, high, images, title, measurement.name)
    newest = run.measurements[-1].name if run.measurements else ""
    kept = {name: row for name, row in found.items() if not name.startswith(WORST) or row.source == newest}
    return dict(sorted(kept.items(), key=lambda pair: pair[0].startswith(WORST)))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def images_of(run: RunFiles, measurement: Measurement) -> int:
    """Return the number of test images of a measurement, 0 where it is unknown."""
    if len(images := run.images(measurement)):
        return len(images)
    classes = run.frame("classes.csv", folder_of(run, measurement))
    return int(classes["images"].sum()) if "images" in classes else 0


def section(run: RunFiles) -> Section:
    """Summarize the run."""
    rows = rows_of(run)
    paragraphs = [summary(run, rows)] if rows else [missing(run)]
    tables = [_accuracies(rows)] if rows else []
    about = facts(run)
    tables.append(Table("What was run", ["", ""], [[Cell(name), Cell(text)] for name, text in about.items()], texts=2))
    code = [run.run.command] if run.run.command and not rows else []
    if rows and not _strong(rows) and not run.is_evaluation:
        code = [evaluate_command(run.directory, f"test_attacks=[clean,pgd,{STRONG}]")]
        paragraphs.append("This command measures AutoAttack:")
    data = {"status": run.run.status, "accuracies": {name: row._asdict() for name, row in rows.items()}}
    return Section("Result", "result", paragraphs, tables=tables, data={**data, "facts": about}, code=code)


def missing(run: RunFiles) -> str:
    """Say why there are no accuracies."""
    state = f"This {'evaluation' if run.is_evaluation else 'run'} {STATES.get(run.run.status, run.run.status)}"
    reason = f": {run.run.detail}" if run.run.detail else ""
    text = f"{state}{reason}. There is no measurement on the test set"
    return f"{text}; this command makes what is missing:" if run.run.command else f"{text}."


def summary(run: RunFiles, rows: Mapping[str, Row]) -> str:
    """Return the result in words, with its cautions."""
    attacks = {name: row for name, row in rows.items() if not is_weak(name) and not name.startswith((WORST, CURVE))}
    attacks = {name: row for name, row in attacks.items() if in_threat_model(name, run.run.measured)} or attacks
    sentences = []
    if clean := rows.get("clean"):
        sentences.append(f"Clean accuracy on {_images(clean)}: {_with_interval(clean)}.")
    if attacks:
        among = _strong(attacks) or attacks
        strongest = min(reversed(among), key=lambda name: among[name].accuracy)
        sentences += _robust(attacks, strongest)
    else:
        sentences.append("No attack was measured, so nothing is known of robustness.")
    if worst := rows.get(WORST):
        where = f"of the newest measurement at once, in its threat model ({threat_model(run.run.measured)})"
        sentences.append(f"Robust to all attacks {where}: {_with_interval(worst)}.")
    sentences += cautions(run, rows, attacks)
    return " ".join(sentences)


def _strong(rows: Mapping[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in rows.items() if without_norm(name) == STRONG}


def _robust(attacks: Mapping[str, Row], strongest: str) -> list[str]:
    row = attacks[strongest]
    text = f"{row.title} on {_images(row)}: {_with_interval(row)}"
    pgd = attacks.get(f"pgd{strongest.removeprefix(without_norm(strongest))}")
    if pgd is not None and pgd is not row and pgd.images == row.images:
        points = 100 * (pgd.accuracy - row.accuracy)
        if round(points, 1) > 0:
            text += f"; {pgd.title} overstates this by {points:.1f} points"
        elif round(points, 1) < 0:
            text += f"; {pgd.title} is stronger here, by {-points:.1f} points: a sign that something is wrong"
    return [f"{text}."]


def cautions(run: RunFiles, rows: Mapping[str, Row], attacks: Mapping[str, Row]) -> list[str]:
    """Return what limits the claim: checks, weak attacks, few images, one seed."""
    found = []
    checks = [check for check in run.checks(run.measured or run.directory) if check.get("triggered")]
    if checks:
        count = "One check was" if len(checks) == 1 else f"{len(checks)} checks were"
        found.append(f"{count} triggered, so this robustness may not be real; see Checks.")
    if attacks and not _strong(attacks):
        found.append("AutoAttack was not measured; accuracy under other attacks is only an upper bound on it.")
    images = max((row.images for row in rows.values()), default=0)
    if 0 < images < FEW_IMAGES:
        found.append(f"With {images} images the intervals are wide.")
    return [*found, "Intervals are 95 % Wilson intervals over images; they leave out how much training seeds differ."]


def _images(row: Row) -> str:
    return f"{row.images:,} images" if row.images else "the test images"


def _with_interval(row: Row) -> str:
    return f"{percent(row.accuracy)} {interval(row.low, row.high)}".removesuffix(" –")


def _accuracies(rows: Mapping[str, Row]) -> Table:
    cells = [
        [
            Cell(row.title),
            Cell(row.source),
            Cell(percent(row.accuracy, 2), row.accuracy),
            Cell(interval(row.low, row.high), row.low),
            Cell(f"{row.images:,}" if row.images else "–", row.images),
        ]
        for row in rows.values()
    ]
    headings = ["attack", "measured in", "accuracy", "95 % interval", "images"]
    return Table("Accuracy of the best checkpoint on the test set", headings, cells, texts=2)
