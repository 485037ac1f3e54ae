"""Curves: training, accuracy against epsilon, smallest perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsr.plots.style import CLEAN, NORMS, OTHER, ROBUST, array, legend, new_figure, plot, whole_ticks

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACIES = {  # column: (label, color, line, marker)
    "train/clean_accuracy": ("clean, training", CLEAN, "--", ""),
    "validation/clean_accuracy": ("clean, validation", CLEAN, "-", "o"),
    "train/robust_accuracy": ("robust, training", ROBUST, "--", ""),
    "validation/robust_accuracy": ("robust, validation", ROBUST, "-", "s"),
}
LINES = ("-", "--", "-.", ":")
MARKERS = 12  # on a line, at most


@plot
def training_curves(
    epochs: pandas.DataFrame,
    *,
    of: str = "accuracy",
    best_epoch: float | None = None,
    resumed: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """Plot the epochs of a training, the frame of its metrics.csv.

    Args:
        epochs: a column `epoch`, 0 before training, and for 'accuracy' those of `train/` and `validation/` accuracies
            (fractions), for 'loss' the other columns of `train/`; for any other `of` the column of that name.
        of: 'accuracy', 'loss', 'learning_rate' or another column.
        best_epoch, resumed: epochs that are marked.
    """
    figure = new_figure(height=2.5 if of in ("accuracy", "loss") else 1.8, title=title)
    axes = figure.subplots()
    if of == "accuracy":
        every = max(1, len(epochs) // MARKERS)
        for name, (label, color, line, marker) in ACCURACIES.items():
            if has_values(epochs, name):
                marker = marker or _marker_of_one(epochs[name])
                style: dict[str, Any] = {"color": color, "marker": marker, "markevery": every, "label": label}
                axes.plot(epochs["epoch"], 100 * epochs[name], line, **style)
        axes.set(ylabel="accuracy (%)", ylim=(0, 102))
    elif of == "loss":
        names = loss_columns(epochs)
        for name, line in zip(names, LINES * len(names), strict=False):
            style = {"marker": _marker_of_one(epochs[name]), "label": spelled(name.removeprefix("train/"))}
            axes.plot(epochs["epoch"], epochs[name], line, **style)
        axes.set(ylabel="loss terms as weighted")
    else:
        axes.step(epochs["epoch"], epochs[of].astype(float), where="mid", color=OTHER)
        axes.set(ylabel=spelled(of), ylim=(0, None))
    last = max(1.0, float(epochs["epoch"].max()))
    axes.set_xlim(-0.05 * last, 1.05 * last)  # the same for all curves of a training
    _mark(axes, best_epoch, resumed)
    if of in ("accuracy", "loss"):
        legend(axes)
    return figure


def _marker_of_one(values: pandas.Series) -> str:
    """Return a marker for a line of one point, which would be invisible."""
    return "." if values.notna().sum() == 1 else ""


def has_values(epochs: pandas.DataFrame, name: str) -> bool:
    """Return whether a frame has a column with a value."""
    return name in epochs and bool(epochs[name].notna().any())


def loss_columns(epochs: pandas.DataFrame) -> list[str]:
    """Return the columns that are terms of the training loss."""
    named = [name for name in epochs if name.startswith("train/") and not name.endswith("_accuracy")]
    return [name for name in named if has_values(epochs, name)]


def spelled(name: str) -> str:
    """Return a column's name in words."""
    return name.replace("_", " ")


def _mark(axes: Axes, best_epoch: float | None, resumed: Sequence[float]) -> None:
    axes.set_xlabel("epoch (0: before training)")
    whole_ticks(axes)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="0.5", linestyle=":", linewidth=1, label="best epoch", zorder=1)
    for place, epoch in enumerate(resumed):
        label = None if place else "resumed"
        axes.axvline(epoch, color="#CC79A7", linestyle=(0, (1, 1)), linewidth=1, label=label, zorder=1)


@plot
def accuracy_by_epsilon(
    curve: pandas.DataFrame, *, norm: str = "linf", epsilon: float | None = None, title: str = ""
) -> Figure:
    """Plot accuracy against the attack's radius, with its interval.

    Args:
        curve: columns epsilon, accuracy, low and high (fractions), as in curve.csv.
        epsilon: the radius of the threat model, which is marked.
    """
    figure = new_figure(height=2.3, title=title)
    axes = figure.subplots()
    axes.fill_between(curve["epsilon"], 100 * curve["low"], 100 * curve["high"], alpha=0.25, linewidth=0)
    axes.plot(curve["epsilon"], 100 * curve["accuracy"], marker="o")
    _mark_threat_model(axes, epsilon)
    axes.set(xlabel=f"epsilon ({NORMS.get(norm, norm)}, pixels in [0, 1])", ylabel="accuracy (%)")
    axes.set(xlim=(0, None), ylim=(0, 102))
    return figure


@plot
def smallest_perturbations(
    distances: Mapping[str, Any], *, norm: str = "linf", epsilon: float | None = None, title: str = ""
) -> Figure:
    """Plot the fraction of images that are robust within each distance.

    Args:
        distances: {attack: (image,) distance of the nearest adversarial image found, inf where there is none}.
        epsilon: the radius of the threat model, which is marked.
    """
    import numpy

    figure = new_figure(height=2.3, title=title)
    axes = figure.subplots()
    for place, (attack, found) in enumerate(distances.items()):
        values = numpy.sort(array(found).astype(float))
        finite = values[numpy.isfinite(values)]
        robust = 100 * (1 - numpy.arange(1, len(finite) + 1) / len(values))
        axes.step([0, *finite], [100, *robust], LINES[place % len(LINES)], where="post", label=attack)
    _mark_threat_model(axes, epsilon)
    axes.set(xlabel=f"smallest perturbation found ({NORMS.get(norm, norm)}, pixels in [0, 1])")
    axes.set(ylabel="images still robust (%)", xlim=(0, None), ylim=(0, 102))
    legend(axes)
    return figure


def _mark_threat_model(axes: Axes, epsilon: float | None) -> None:
    if epsilon is not None:
        axes.axvline(epsilon, color="0.5", linestyle=":", linewidth=0.8)
        # beyond it, where curves that fall leave room
        axes.annotate("threat model", (epsilon, 102), (3, 0), textcoords="offset points", va="top")
