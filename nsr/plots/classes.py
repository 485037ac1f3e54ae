"""Classes: accuracy of each, confusions under an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from nsr.plots.style import CLEAN, ROBUST, ROW, array, legend, name_rows, new_figure, plot, short

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

MOST_CLASSES = 40  # in a plot; of more, those with the lowest robust accuracy
MOST_NUMBERS = 12  # classes of a confusion matrix with a number in each cell
MOST_NAMES = 20  # on an axis


@plot
def class_accuracy(classes: pandas.DataFrame, *, attack: str = "robust", title: str = "") -> Figure:
    """Plot the clean and the robust accuracy of each class; of more than 40 the first ones.

    Args:
        classes: columns class, clean and robust (fractions).
        attack: that 'robust' was measured under, for the legend.
    """
    shown = classes.head(MOST_CLASSES)
    figure = new_figure(height=0.7 + ROW * len(shown), title=title)
    axes, rows = figure.subplots(), range(len(shown))
    axes.hlines(rows, 100 * shown["robust"], 100 * shown["clean"], color="0.6", linewidth=1, zorder=1)
    axes.plot(100 * shown["clean"], rows, "o", color=CLEAN, label="clean")
    axes.plot(100 * shown["robust"], rows, "s", color=ROBUST, label=attack)
    name_rows(axes, list(shown["class"]))
    axes.set(xlabel="accuracy (%)", xlim=(-2, 102))
    legend(axes)
    return figure


@plot
def confusion_matrix(
    labels: Any, predictions: Any, *, class_names: Sequence[str] | Mapping[Any, str] = (), title: str = ""
) -> Figure:
    """Plot predictions in percent of each class, for the classes that occur.

    Args:
        labels, predictions: (image,) class indices.
        class_names: by class index.
    """
    labels, predictions = array(labels).astype(int), array(predictions).astype(int)
    classes = numpy.union1d(labels, predictions)
    counts = numpy.zeros((len(classes), len(classes)))
    numpy.add.at(counts, (numpy.searchsorted(classes, labels), numpy.searchsorted(classes, predictions)), 1)
    percent = 100 * counts / numpy.maximum(counts.sum(1, keepdims=True), 1)
    figure = new_figure(height=3.0, title=title)
    axes = figure.subplots()
    picture = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    axes.grid(visible=False)
    if len(classes) <= MOST_NUMBERS:
        for (row, column), value in numpy.ndenumerate(percent):
            color = "#1a1a19" if value > 55 else "#fffffe"  # on the picture, whatever the theme of a page
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=color)
    known = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    every = max(1, -(-len(classes) // MOST_NAMES))
    texts = [short(known.get(label, label)) for label in classes.tolist()][::every]
    upright = 90 if max(map(len, texts), default=0) > 3 else 0
    axes.set_xticks(range(0, len(classes), every), texts, rotation=upright, fontsize=6)
    axes.set_yticks(range(0, len(classes), every), texts, fontsize=6)
    axes.set(xlabel="prediction", ylabel="true class")
    figure.colorbar(picture, ax=axes, shrink=0.8).set_label("images of the class (%)")
    return figure
