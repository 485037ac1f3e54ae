"""The loss over two directions of the pixels, or of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy

from nsr.plots.style import array, new_figure, plot, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST = 1e-6  # loss of a logarithmic scale, nats


@plot
def landscape(
    losses: Any,
    *,
    correct: Any = None,
    names: Sequence[str] = (),
    marks: Sequence[tuple[float, float, str]] = ((0.0, 0.0, "o"), (1.0, 0.0, "X")),
    xlabel: str = "adversarial direction",
    ylabel: str = "random direction",
    reach: float = 1.0,
    logarithmic: bool = False,
    title: str = "",
) -> Figure:
    """Show the loss over two directions, a panel for each image; crosses mark misclassified places.

    Args:
        losses: (panel, row, column): rows along the second direction, columns along the first, from -reach to reach.
        correct: (panel, row, column) whether the prediction is the label; None: not marked.
        names: of the panels.
        marks: places (x, y, marker): by default the clean image and the adversarial one.
        logarithmic: whether colors follow the logarithm of the losses, which shows a valley below steep walls.
    """
    losses = array(losses).astype(float)
    columns = min(2, len(losses))
    rows = -(-len(losses) // columns)
    figure = new_figure(height=0.35 + (1.75 if columns == 2 else 2.6) * rows, title=title)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    step = 2 * reach / (losses.shape[1] - 1)
    edge = reach + step / 2
    places = numpy.linspace(-reach, reach, losses.shape[1])
    for number, axes in enumerate(panels):
        axes.grid(visible=False)
        if number >= len(losses):
            axes.set_axis_off()
            continue
        own = losses[number] + 0.0  # no -0
        axes.imshow(
            numpy.log(own.clip(SMALLEST)) if logarithmic else own,
            origin="lower",
            extent=(-edge, edge, -edge, edge),
            cmap="viridis",
            interpolation="nearest",
        )
        if correct is not None:
            y, x = numpy.nonzero(~array(correct)[number].astype(bool))
            _mark(axes, places[x], places[y], "x", 2.2)
        for across, up, marker in marks:
            _mark(axes, [across], [up], marker, 5)
        name = f"{names[number]}\n" if names else ""
        axes.set_title(f"{name}loss {rounded(own.min())} to {rounded(own.max())}", fontsize=6.5)
    figure.supxlabel(xlabel, fontsize=7)
    figure.supylabel(ylabel, fontsize=7)
    return figure


def _mark(axes: Axes, x: Any, y: Any, marker: str, size: float) -> None:
    from matplotlib.patheffects import Normal, Stroke

    outline = [Stroke(linewidth=1.6, foreground="#1a1a1a"), Normal()]
    style: dict[str, Any] = {"linestyle": "none", "markersize": size, "color": "white", "markeredgewidth": 0.7}
    axes.plot(x, y, marker=marker, path_effects=outline, **style)
