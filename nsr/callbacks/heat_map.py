"""A heat map of the sensitivity of every layer in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsr.plotting import new_figure, save, styled

KINDS = ("absolute sensitivity (activation units)", "relative sensitivity (fraction of activation)")


def draw_heat_map(path: Path, history: Sequence[tuple[int, dict[str, list[float]]]]) -> None:
    """Draw PATH.png and PATH.pdf: one row per layer, the first on top, and one column per epoch.

    Args:
        path: without its suffix.
        history: (epoch, {layer: [absolute, relative]}), by epoch.
    """
    layers = list(history[-1][1])
    epochs = [epoch for epoch, _ in history]
    height = 0.6 + max(0.55, 0.13 * len(layers))
    with styled():
        figure = new_figure(height=2 * height)
        panels = figure.subplots(2, sharex=True)
        for kind, (axes, title) in enumerate(zip(panels, KINDS, strict=True)):
            values = [[means[layer][kind] for _, means in history] for layer in layers]
            image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
            axes.grid(visible=False)
            axes.set_yticks(range(len(layers)), layers, fontsize=6)
            axes.set_ylabel("layer")
            figure.colorbar(image, ax=axes).ax.tick_params(labelsize=6)
            axes.set_title(title, fontsize=7, loc="left")
        step = max(1, -(-len(epochs) // 8))
        panels[-1].set_xticks(range(0, len(epochs), step), epochs[::step])
        panels[-1].set_xlabel("epoch (0: before training)")
        save(figure, path)
