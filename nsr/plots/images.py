"""Boards of images: adversarial examples, the steps of an attack, feature maps, images that neurons respond to.

Images are (image, channel, height, width) in [0, 1]; few pixels are shown as squares, never blurred.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy

from nsr.plots.style import COLUMN, PAPER, ROBUST, array, new_figure, plot, rounded, whole_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels, the last two excluded
LINE = 0.12  # inches of a line of text
GAP = 0.05  # inches between cells
BESIDE = 0.58  # inches of the labels at the left
MOST_IN_A_ROW = 4
MOST_STEPS = 6


class _Board:
    """Axes without ticks whose coordinates are inches from the top left."""

    def __init__(self, *, height: float, below: float = 0.0, title: str = ""):
        above = 2 * LINE if title else 0.0
        whole = height + below + above
        self.figure = new_figure(height=whole, title=title, layout="none")
        self.axes = self.figure.add_axes((0, below / whole, 1, height / whole))
        self.axes.set_axis_off()
        self.height = height

    def image(self, image: Any, x: float, y: float, size: float, *, box: Box | None = None) -> None:
        """Put pixels (channel, height, width) into the square at a place, with a rectangle around a part of them."""
        pixels = _pixels(image)
        rows, columns = pixels.shape[:2]
        scale = size / max(rows, columns)
        style: dict[str, Any] = {} if pixels.ndim == 3 else {"cmap": "gray", "vmin": 0, "vmax": 1}
        self._show(pixels, x, y, columns * scale, rows * scale, style)
        if box is not None:
            top, left, bottom, right = (place * scale for place in box)
            from matplotlib.patches import Rectangle

            for color, width in ((PAPER["background"], 1.6), (ROBUST, 0.8)):  # an outline that any image leaves visible
                place = (x + left, y + top), right - left, bottom - top
                self.axes.add_patch(Rectangle(*place, fill=False, edgecolor=color, linewidth=width))

    def map(self, values: numpy.ndarray, x: float, y: float, size: float, *, lowest: float, largest: float) -> None:
        """Put values (height, width) into the square at a place."""
        scale = size / max(values.shape)
        style = {"cmap": "cividis", "vmin": lowest, "vmax": largest if largest > lowest else lowest + 1}
        self._show(values, x, y, values.shape[1] * scale, values.shape[0] * scale, style)

    def _show(self, pixels: Any, x: float, y: float, width: float, height: float, style: dict[str, Any]) -> None:
        self.axes.imshow(pixels, extent=(x, x + width, y + height, y), interpolation="antialiased", **style)

    def text(self, text: str, x: float, y: float, **style: Any) -> None:
        """Write a text whose top is at y."""
        self.axes.text(x, y, text, **{"va": "top", "fontsize": 6.5, "linespacing": 1.05, **style})

    def done(self) -> Figure:
        """Set the limits, which images move, and return the figure."""
        self.axes.set(xlim=(0, COLUMN), ylim=(self.height, 0), aspect="auto")
        return self.figure


def _pixels(image: Any) -> numpy.ndarray:
    """Return (height, width, 3), or (height, width) where the image has not three channels."""
    values = numpy.clip(array(image).astype(float), 0, 1)
    return numpy.moveaxis(values, 0, -1) if len(values) == 3 else values.mean(0)


def _name(class_names: Sequence[str], index: int) -> str:
    name = str(class_names[index]) if index < len(class_names) else str(index)
    return name if len(name) <= 12 else f"{name[:6]}…{name[-5:]}"


def _amplification(difference: numpy.ndarray) -> float:
    """Return the factor with which the largest difference is black or white; 1 where there is none."""
    largest = float(numpy.abs(difference).max())
    return 0.5 / largest if largest > 1e-6 else 1.0


def _neuron(name: object) -> str:
    """Put a layer's name, of which the end matters most, above what follows it, in lines of 16 characters."""
    layer, *rest = str(name).split(" ", 1)
    return "\n".join(
        [layer if len(layer) <= 16 else f"…{layer[-15:]}", *(line for each in rest for line in wrap(each, 16))]
    )


@plot
def examples(
    clean: Any,
    adversarial: Any,
    *,
    labels: Any,
    clean_probabilities: Any,
    adversarial_probabilities: Any,
    class_names: Sequence[str] = (),
    groups: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Show clean images, their adversarial examples and the amplified difference, with predictions and confidences.

    Args:
        clean, adversarial: (image, channel, height, width) in [0, 1].
        labels: (image,).
        clean_probabilities, adversarial_probabilities: (image, class).
        class_names: by class index.
        groups: the heading of each image; those with the same one stand together, four in a row.
    """
    clean, adversarial, labels = array(clean), array(adversarial), array(labels)
    found = [array(each) for each in (clean_probabilities, adversarial_probabilities)]
    difference = adversarial - clean
    factor = _amplification(difference)
    headings = list(groups) or [""] * len(labels)
    places = {heading: [n for n, own in enumerate(headings) if own == heading] for heading in dict.fromkeys(headings)}
    rows = [(h, own[at : at + MOST_IN_A_ROW]) for h, own in places.items() for at in range(0, len(own), MOST_IN_A_ROW)]
    cell = (COLUMN - BESIDE) / MOST_IN_A_ROW
    size, block = cell - GAP, 3 * cell + 5.6 * LINE
    board = _Board(height=block * len(rows), title=title)
    for number, (heading, own) in enumerate(rows):
        top = number * block
        board.text(heading, 0, top + 0.2 * LINE, fontweight="bold")
        lines = top + 1.3 * LINE, top + 1.3 * LINE + cell + 2.1 * LINE
        third = lines[1] + cell + 2.0 * LINE
        texts = ("clean", lines[0]), ("adversarial", lines[1]), (f"difference\n× {factor:.3g}", third - 2.1 * LINE)
        for text, y in texts:
            board.text(text, 0, y + 2.1 * LINE)
        for column, place in enumerate(own):
            x = BESIDE + column * cell
            for y, images, probabilities in zip(lines, (clean, adversarial), found, strict=True):
                prediction = int(probabilities[place].argmax())
                is_wrong = prediction != labels[place]
                name = f"{_name(class_names, prediction)}{' ✗' if is_wrong else ''}"
                style = {"color": ROBUST, "fontweight": "bold"} if is_wrong else {}
                board.text(f"{name}\n{100 * probabilities[place].max():.0f} %", x, y, **style)
                board.image(images[place], x, y + 2.0 * LINE, size)
            board.image(0.5 + factor * difference[place], x, third, size)
    return board.done()


@plot
def attack_steps(
    iterates: Any,
    probabilities: Any,
    *,
    label: int,
    class_names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Show one image along the steps of an attack, and how the network's probabilities change.

    Args:
        iterates: (step, channel, height, width), the start first.
        probabilities: (step, class) of the network on each.
        label: the image's class.
        class_names: by class index.
    """
    iterates, probabilities = array(iterates), array(probabilities)
    shown = numpy.unique(numpy.linspace(0, len(iterates) - 1, min(MOST_STEPS, len(iterates))).round().astype(int))
    cell = COLUMN / MOST_STEPS
    height, below = cell + 2.4 * LINE, 1.35
    board = _Board(height=height, below=below, title=title)
    for column, step in enumerate(shown.tolist()):
        prediction = int(probabilities[step].argmax())
        style = {"color": ROBUST, "fontweight": "bold"} if prediction != label else {}
        board.text(f"step {step}\n{_name(class_names, prediction)}", column * cell, 0, **style)
        board.image(iterates[step], column * cell, 2.1 * LINE, cell - GAP)
    whole = board.figure.get_figheight()
    axes = board.figure.add_axes((0.14, 0.34 / whole, 0.82, (below - 0.42) / whole))
    steps, others = range(len(iterates)), probabilities[-1].copy()
    others[label] = -1
    axes.plot(steps, 100 * probabilities[:, label], label=f"{_name(class_names, label)} (class)")
    if (other := int(others.argmax())) != label:
        axes.plot(steps, 100 * probabilities[:, other], "--", label=_name(class_names, other))
    axes.set(xlabel="step of the attack", ylabel="probability (%)", ylim=(-3, 103), xlim=(0, max(1, len(iterates) - 1)))
    whole_ticks(axes)
    axes.legend(loc="center right", fontsize=6.5)
    return board.done()


@plot
def feature_maps(
    clean_maps: Sequence[Any],
    adversarial_maps: Sequence[Any],
    *,
    names: Sequence[str],
    clean: Any,
    adversarial: Any,
    title: str = "",
) -> Figure:
    """Show feature maps of neurons on a clean image, on its adversarial example, and their absolute difference.

    Args:
        clean_maps, adversarial_maps: (height, width) for each neuron; a row, and its scale of color, are of one neuron.
        names: of the neurons.
        clean, adversarial: (channel, height, width), shown above.
    """
    clean, adversarial = array(clean), array(adversarial)
    beside = BESIDE + 0.3
    cell = (COLUMN - beside) / 3
    size, top = cell - GAP, 1.2 * LINE
    board = _Board(height=top + cell * (len(names) + 1), title=title)
    difference = adversarial - clean
    factor = _amplification(difference)
    columns = (("clean", clean), ("adversarial", adversarial), ("difference", 0.5 + factor * difference))
    for column, (text, image) in enumerate(columns):
        board.text(text, beside + column * cell, 0)
        board.image(image, beside + column * cell, top, size)
    board.text(f"image\n(difference\n× {factor:.3g})", 0, top)
    for row, (name, first, second) in enumerate(zip(names, clean_maps, adversarial_maps, strict=True), 1):
        views = [array(each).astype(float) for each in (first, second)]
        lowest, largest = min(view.min() for view in views), max(view.max() for view in views)
        moved = numpy.abs(views[1] - views[0])
        y = top + row * cell
        most = float(moved.max())
        board.text(
            f"{_neuron(name)}\n{rounded(lowest, 3)} to {rounded(largest, 3)}\ndifference\n0 to {rounded(most, 3)}", 0, y
        )
        for column, view in enumerate(views):
            board.map(view, beside + column * cell, y, size, lowest=lowest, largest=largest)
        board.map(moved, beside + 2 * cell, y, size, lowest=0.0, largest=most)
    return board.done()


@plot
def top_images(
    images: Sequence[Any],
    *,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[Box | None]] = (),
    heading: str = "images",
    title: str = "",
) -> Figure:
    """Show for each neuron the images that move it most, with receptive fields as rectangles and, beside, as crops.

    Args:
        images: (image, channel, height, width) for each neuron, the first one moved it most.
        names: of the neurons.
        values: of each image, written above it.
        boxes: receptive field of the neuron's place that moved most in each image; None: all of the image.
    """
    most = max(map(len, images))
    columns = 2 * most if boxes else most
    beside = BESIDE + 0.15
    cell = min(0.62, (COLUMN - beside) / columns)
    size, block, top = cell - GAP, cell + 1.1 * LINE, 1.2 * LINE
    board = _Board(height=top + block * len(names), title=title)
    board.text(heading, beside, 0)
    if boxes:
        board.text("receptive fields", beside + most * cell + GAP, 0)
    for row, (name, own) in enumerate(zip(names, images, strict=True)):
        y, own = top + row * block, array(own)
        board.text(_neuron(name), 0, y + LINE, fontsize=5.8)
        for column, image in enumerate(own):
            board.text(rounded(values[row][column]), beside + column * cell, y, fontsize=5.5)
            box = boxes[row][column] if boxes else None
            board.image(image, beside + column * cell, y + LINE, size, box=box)
            if boxes:
                at, left, bottom, right = box or (0, 0, *image.shape[1:])
                board.image(image[:, at:bottom, left:right], beside + (most + column) * cell + GAP, y + LINE, size)
    return board.done()
