"""Robustness in detail: accuracy against epsilon, smallest perturbations, classes, and confusions under attack."""

from __future__ import annotations

from typing import Any

import numpy
import pandas

from nsr.comparison.names import NORMS, attack_title
from nsr.comparison.reading import evaluate_command
from nsr.report.drawing import CLEAN, ROBUST, ROW, drawn, legend, name_rows, short
from nsr.report.files import RunFiles, folder_of
from nsr.report.numbers import columns_of, percent
from nsr.report.parts import Cell, Figure, Section, Table
from nsr.report.sections.headline import CURVE, WEAK

MOST_CLASSES = 40  # in a plot; of more, those with the lowest robust accuracy
MOST_NUMBERS = 12  # classes of a confusion matrix with a number in each cell
MOST_PAIRS = 20  # rows of the table of confusions


def section(run: RunFiles) -> Section | None:
    """Plot what the newest measurement has for each radius, image and class."""
    folder, settings = run.measured, run.run.measured
    if folder is None:
        return None
    images, curve = run.frame("images.csv", folder), _newest(run, "curve.csv")
    attack = strongest(images)
    names = {} if "class" not in images else dict(zip(images["label"], images["class"].astype(str), strict=True))
    where = f"{len(images):,} test images, {_radius(settings)}"
    figures = [_curve(curve, settings), *_distances(images, settings)]
    tables: list[Table] = []
    data: dict[str, Any] = {"curve": columns_of(curve)}
    if attack and names:
        title = attack_title(attack, settings)
        classes, confused = by_class(images, attack), confusion(images, attack)
        figures += [_classes(classes, title, where), _confusion(confused, names, title, where)]
        tables += [_class_table(classes, title), _confused_table(confused, names, title)]
        data |= {"attack": attack, "classes": columns_of(classes), "confusion": columns_of(confused)}
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


def _radius(settings: Any) -> str:
    return f"{NORMS.get(str(settings.get('norm')), settings.get('norm'))} epsilon {settings.get('epsilon')}"


def strongest(images: pandas.DataFrame) -> str:
    """Return the attack with the lowest accuracy, "" where none was measured."""
    names = [name.removesuffix("_prediction") for name in images if name.endswith("_prediction")]
    attacks = [name for name in names if name in images and name not in WEAK and not name.startswith(CURVE)]
    return min(attacks, key=lambda name: images[name].mean(), default="")


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
    norm = NORMS.get(str(settings.get("norm")), "")
    with drawn(height=2.4) as (axes, image):
        axes.fill_between(curve["epsilon"], 100 * curve["low"], 100 * curve["high"], alpha=0.25, linewidth=0)
        axes.plot(curve["epsilon"], 100 * curve["accuracy"], marker="o")
        axes.set(xlabel=f"epsilon ({norm}, pixels in [0, 1])", ylabel="accuracy (%)", xlim=(0, None), ylim=(0, 102))
        last = curve.iloc[-1]
        alt = f"Accuracy falls from {percent(curve.iloc[0]['accuracy'])} at epsilon {curve.iloc[0]['epsilon']:g} "
        alt += f"to {percent(last['accuracy'])} at epsilon {last['epsilon']:g}."
        steps = ((settings.get("test_attacks") or {}).get("curve") or {}).get("attack") or {}
        name = f"PGD-{steps['steps']}" if "steps" in steps else "one attack"
        return Figure(image(), alt, f"Accuracy under {name} at several radii; band: 95 % Wilson interval over images.")


def _distances(images: pandas.DataFrame, settings: Any) -> list[Figure]:
    figures = []
    for name in [name for name in images if name.endswith("_distance")]:
        attack = attack_title(name.removesuffix("_distance"), settings)
        values = numpy.sort(pandas.to_numeric(images[name], errors="coerce").dropna().to_numpy(float))
        finite = values[numpy.isfinite(values)]
        if not len(finite):
            continue
        robust = 100 * (1 - numpy.arange(1, len(finite) + 1) / len(values))
        median = float(numpy.median(values))
        with drawn(height=2.4) as (axes, image):
            axes.step([0, *finite], [100, *robust], where="post", color=ROBUST)
            axes.set(xlabel=f"smallest perturbation found ({NORMS.get(str(settings.get('norm')), '')})")
            axes.set(ylabel="images still robust (%)", xlim=(0, None), ylim=(0, 102))
            alt = f"Fraction of images that {attack} has not fooled within each distance; the median is {median:.4g}."
            caption = f"Smallest perturbation that {attack} found for each of {len(values):,} test images; "
            caption += f"median {median:.4g}. An image that is misclassified without an attack has distance 0."
            figures.append(Figure(image(), alt, caption))
    return figures


def _classes(classes: pandas.DataFrame, title: str, where: str) -> Figure:
    shown = classes.head(MOST_CLASSES)
    with drawn(height=0.7 + ROW * len(shown)) as (axes, image):
        rows = range(len(shown))
        axes.hlines(rows, 100 * shown["robust"], 100 * shown["clean"], color="0.6", linewidth=1, zorder=1)
        axes.plot(100 * shown["clean"], rows, "o", color=CLEAN, label="clean")
        axes.plot(100 * shown["robust"], rows, "s", color=ROBUST, label=title)
        name_rows(axes, list(shown["class"]))
        axes.set(xlabel="accuracy (%)", xlim=(-2, 102))
        legend(axes)
        worst = classes.iloc[0]
        alt = f"Class {worst['class']} has the lowest accuracy under {title}, {percent(worst['robust'])}."
        fewer = f" The {len(shown)} lowest of {len(classes)} classes." if len(shown) < len(classes) else ""
        return Figure(image(), alt, f"Accuracy of each class, clean and under {title}; {where}.{fewer}")


def _confusion(confused: pandas.DataFrame, names: dict[Any, str], title: str, where: str) -> Figure:
    labels = sorted({*confused["label"], *confused["prediction"]})
    matrix = numpy.zeros((len(labels), len(labels)))
    place = {label: number for number, label in enumerate(labels)}
    for label, prediction, count in confused[["label", "prediction", "images"]].itertuples(index=False):
        matrix[place[label], place[prediction]] = count
    rows = matrix / numpy.maximum(matrix.sum(1, keepdims=True), 1)
    with drawn(height=3.0) as (axes, image):
        picture = axes.imshow(100 * rows, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
        axes.grid(visible=False)
        if len(labels) <= MOST_NUMBERS:
            for (row, column), value in numpy.ndenumerate(100 * rows):
                color = "#1a1a19" if value > 55 else "#fffffe"  # on the picture, whatever the theme
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=color)
        every = max(1, -(-len(labels) // 20))
        texts = [short(names.get(label, str(label))) for label in labels][::every]
        upright = 90 if max(map(len, texts)) > 3 else 0
        axes.set_xticks(range(0, len(labels), every), texts, rotation=upright, fontsize=6)
        axes.set_yticks(range(0, len(labels), every), texts, fontsize=6)
        axes.set(xlabel="prediction", ylabel="class")
        axes.figure.colorbar(picture, ax=axes, shrink=0.8).set_label("images of the class (%)")
        alt = f"Confusion matrix under {title}; the most frequent confusions are in the table below."
        return Figure(image(), alt, f"Predictions under {title}, in percent of each class; {where}.")


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
