"""Robustness in detail: accuracy against epsilon, smallest perturbations, classes, and confusions under attack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import pandas

from nsr.comparison.names import attack_title
from nsr.comparison.reading import evaluate_command
from nsr.comparison.settings import ball_of, in_threat_model, radius_of
from nsr.plots import accuracy_by_epsilon, class_accuracy, confusion_matrix, smallest_perturbations
from nsr.plots.classes import MOST_CLASSES
from nsr.report.drawing import svg
from nsr.report.facts import radius_in_words
from nsr.report.files import RunFiles, folder_of
from nsr.report.numbers import percent
from nsr.report.parts import Figure, Section
from nsr.report.sections.headline import CURVE
from nsr.run.rows import is_weak
from nsr.run.tables import Cell, Table

MOST_PAIRS = 20  # rows of the table of confusions


def section(run: RunFiles) -> Section | None:
    """Plot what the newest measurement has for each radius, image and class."""
    if not run.measurements:
        return None
    settings, images, curve = run.run.measured, run.images(run.measurements[-1]), _newest(run, "curve.csv")
    attack = strongest(images, settings)
    names = {} if "class" not in images else dict(zip(images["label"], images["class"].astype(str), strict=True))
    where = f"{len(images):,} test images, {radius_in_words(settings)}"
    figures = [_curve(curve, settings), *_distances(images, settings)]
    tables: list[Table] = []
    data: dict[str, Any] = {"curve": curve.to_dict("list")}
    if attack and names:
        title = attack_title(attack, settings)
        classes, confused = by_class(images, attack), confusion(images, attack)
        figures += [_classes(classes, title, where), _confusion(images, attack, names, title, where)]
        tables += [_class_table(classes, title), _confused_table(confused, names, title)]
        data |= {"attack": attack, "classes": classes.to_dict("list"), "confusion": confused.to_dict("list")}
    shown = [figure for figure in figures if figure is not None]
    paragraphs = [] if shown else ["There is no images.csv and no curve.csv of this measurement."]
    code = []
    if curve.empty and not run.is_evaluation:
        paragraphs.append("Accuracy against epsilon was not measured; this command does it:")
        code.append(evaluate_command(run.directory, "test_attacks=[clean,pgd,curve]"))
    title = "Robustness by radius, image and class"
    return Section(title, "robustness", paragraphs, shown, tables, data, code)


def _newest(run: RunFiles, name: str) -> pandas.DataFrame:
    for measurement in reversed(run.measurements):
        if (frame := run.frame(name, folder_of(run, measurement))).size:
            return frame
    return pandas.DataFrame()


def strongest(images: pandas.DataFrame, settings: Mapping[str, Any]) -> str:
    """Return the threat model's attack with the lowest accuracy, of equal ones the last, "" where there is none."""
    names = [name.removesuffix("_prediction") for name in images if name.endswith("_prediction")]
    names = [name for name in names if in_threat_model(name, settings) and not name.startswith(CURVE)]
    attacks = [name for name in names if name in images and not is_weak(name)]
    return min(reversed(attacks), key=lambda name: images[name].mean(), default="")


def by_class(images: pandas.DataFrame, attack: str) -> pandas.DataFrame:
    """Return columns label, class, images, clean and robust accuracy (fractions), the lowest robust accuracy first."""
    groups = images.groupby(["label", "class"], sort=True)
    found = groups.agg(images=("label", "size"), clean=("clean", "mean"), robust=(attack, "mean")).reset_index()
    return found.sort_values(["robust", "clean", "label"], ignore_index=True)


def confusion(images: pandas.DataFrame, attack: str) -> pandas.DataFrame:
    """Return columns label, prediction, images of the pairs that occur under the attack."""
    predicted = images.rename(columns={f"{attack}_prediction": "prediction"})
    return predicted.groupby(["label", "prediction"], sort=True).size().reset_index(name="images")


def _curve(curve: pandas.DataFrame, settings: Any) -> Figure | None:
    if not {"epsilon", "accuracy", "low", "high"} <= set(curve):
        return None
    last = curve.iloc[-1]
    alt = f"Accuracy falls from {percent(curve.iloc[0]['accuracy'])} at epsilon {curve.iloc[0]['epsilon']:g} "
    alt += f"to {percent(last['accuracy'])} at epsilon {last['epsilon']:g}."
    steps = ((settings.get("test_attacks") or {}).get("curve") or {}).get("attack") or {}
    name = f"PGD-{steps['steps']}" if "steps" in steps else "one attack"
    caption = f"Accuracy under {name} at several radii; band: 95 % Wilson interval over images."
    norm = str(steps.get("norm") or settings.get("norm"))
    epsilon = radius_of(settings) if norm == settings.get("norm") else None
    return Figure(svg(accuracy_by_epsilon(curve, norm=norm, epsilon=epsilon)), alt, caption)


def _distances(images: pandas.DataFrame, settings: Any) -> list[Figure]:
    figures = []
    for name in [name for name in images if name.endswith("_distance")]:
        attack = attack_title(name.removesuffix("_distance"), settings)
        values = numpy.sort(pandas.to_numeric(images[name], errors="coerce").dropna().to_numpy(float))
        finite = values[numpy.isfinite(values)]
        if not len(finite):
            continue
        median = float(numpy.median(values))
        alt = f"Fraction of images that {attack} has not fooled within each distance; the median is {median:.4g}."
        caption = f"Smallest perturbation that {attack} found for each of {len(values):,} test images; "
        caption += f"median {median:.4g}. An image that is misclassified without an attack has distance 0."
        norm, epsilon = ball_of(name.removesuffix("_distance"), settings)
        drawn = smallest_perturbations({attack: values}, norm=norm, epsilon=epsilon)
        figures.append(Figure(svg(drawn), alt, caption))
    return figures


def _classes(classes: pandas.DataFrame, title: str, where: str) -> Figure:
    worst = classes.iloc[0]
    alt = f"Class {worst['class']} has the lowest accuracy under {title}, {percent(worst['robust'])}."
    fewer = f" The {MOST_CLASSES} lowest of {len(classes)} classes." if len(classes) > MOST_CLASSES else ""
    caption = f"Accuracy of each class, clean and under {title}; {where}.{fewer}"
    return Figure(svg(class_accuracy(classes, attack=title)), alt, caption)


def _confusion(images: pandas.DataFrame, attack: str, names: dict[Any, str], title: str, where: str) -> Figure:
    drawn = confusion_matrix(images["label"], images[f"{attack}_prediction"], class_names=names)
    alt = f"Confusion matrix under {title}; the most frequent confusions are in the table below."
    return Figure(svg(drawn), alt, f"Predictions under {title}, in percent of each class; {where}.")


def _class_table(classes: pandas.DataFrame, title: str) -> Table:
    rows = [
        [Cell(str(row["class"])), Cell(f"{row['images']:,}", row["images"])]
        + [Cell(percent(row[name]), row[name]) for name in ("clean", "robust")]
        + [Cell(f"{100 * (row['clean'] - row['robust']):.1f}", row["clean"] - row["robust"])]
        for row in classes.to_dict("records")
    ]
    return Table("Accuracy of each class", ["class", "images", "clean", title, "difference (points)"], rows)


def _confused_table(confused: pandas.DataFrame, names: dict[Any, str], title: str) -> Table:
    wrong = confused[confused["label"] != confused["prediction"]].sort_values("images", ascending=False, kind="stable")
    rows = [
        [
            Cell(names.get(row["label"], "?")),
            Cell(names.get(row["prediction"], str(row["prediction"]))),
            Cell(f"{row['images']:,}", row["images"]),
        ]
        for row in wrong.head(MOST_PAIRS).to_dict("records")
    ]
    return Table(f"Most frequent confusions under {title}", ["class", "prediction", "images"], rows, texts=2)
