"""Accuracy against epsilon: one attack at several radii, each a row of its own; a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from nsr.errors import fraction
from nsr.evaluation.naming import NORMS
from nsr.evaluation.suite import BESIDE
from nsr.run.files import write_rows


def expand_curve(config: DictConfig) -> None:
    """Puts an attack for each radius in the place of `suite.curve`, in the order of the radii."""
    if "curve" not in config.suite:
        return
    attack, shares = (OmegaConf.to_container(config.suite.curve[name], resolve=True) for name in ("attack", "shares"))
    assert isinstance(attack, dict)
    assert isinstance(shares, list)
    epsilon = fraction("epsilon", attack["epsilon"])
    with open_dict(config):
        del config.suite.curve
        for share in sorted(shares):
            config.suite[f"{BESIDE}{share:g}"] = {**attack, "epsilon": share * epsilon}


def write_curve(directory: Path, figures: Mapping[str, float], config: DictConfig) -> None:
    """curve.csv and curve.png, curve.pdf: accuracy with its 95 % interval at each radius; nothing without a curve.

    Args:
        figures: {test/NAME_accuracy, _low, _high: fraction}.
    """
    names = [str(name) for name in config.suite if str(name).startswith(BESIDE)]
    if not names:
        return
    rows = [[0.0, *_row(figures, "clean")]] + [[config.suite[name].epsilon, *_row(figures, name)] for name in names]
    write_rows(directory / "curve.csv", ["epsilon", "accuracy", "low", "high"], rows)
    first = config.suite[names[0]]
    _draw(directory, rows, norm=first.norm, steps=first.steps, marked=fraction("epsilon", config.epsilon))


def _row(figures: Mapping[str, float], name: str) -> list[float]:
    return [figures[f"test/{name}_{what}"] for what in ("accuracy", "low", "high")]


def _draw(directory: Path, rows: list[list[float]], *, norm: str, steps: int, marked: float) -> None:
    from nsr.plotting import new_figure, save, styled

    radii = [row[0] for row in rows]
    accuracy, low, high = ([100 * row[column] for row in rows] for column in (1, 2, 3))
    with styled():
        figure = new_figure(height=2.3)
        axes = figure.subplots()
        axes.fill_between(radii, low, high, alpha=0.25, linewidth=0)
        axes.plot(radii, accuracy, marker="o")
        axes.axvline(marked, color="0.5", linestyle=":", linewidth=0.8)
        axes.annotate("threat model", (marked, 100), rotation=90, ha="right", va="top")
        axes.set(xlabel=f"epsilon ({NORMS[norm]}, pixels in [0, 1])", ylabel=f"accuracy under PGD-{steps} (%)")
        axes.set(xlim=(0, None), ylim=(0, 102))
        save(figure, directory / "curve")
