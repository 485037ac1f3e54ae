"""Accuracy against epsilon: one attack at several radii, each a row of its own, or the nearest adversarial images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nsr.errors import InputError, check_number, fraction
from nsr.evaluation.outcomes import CURVE, with_interval
from nsr.run.files import write_rows

NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1"}


def expanded(test_attacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attacks with one for each radius in the place of `curve`, in the order of the radii.

    Args:
        test_attacks: {name: settings}; `curve` has `attack`, settings, and `scales` of its epsilon.
    """
    attacks = {str(name): own for name, own in test_attacks.items() if name != "curve"}
    curve = test_attacks.get("curve")
    if curve is None:
        return attacks
    scales = curve.get("scales")
    if not isinstance(curve.get("attack"), Mapping):
        raise InputError(f"test_attacks.curve.attack is {curve.get('attack')!r}; it must be the settings of an attack")
    if not isinstance(scales, list) or not scales or len(set(map(str, scales))) < len(scales):
        raise InputError(f"test_attacks.curve.scales is {scales!r}; it must be a list of different numbers")
    for scale in scales:
        check_number("test_attacks.curve.scales entry", scale, above=0)
    epsilon = fraction("test_attacks.curve.attack.epsilon", curve["attack"]["epsilon"])
    radii = {f"{CURVE}{scale:g}": scale * epsilon for scale in sorted(scales)}
    return attacks | {name: {**curve["attack"], "epsilon": radius} for name, radius in radii.items()}


def write_curve(directory: Path, metrics: Mapping[str, float], settings: Mapping[str, Any]) -> None:
    """Write curve.csv and curve.png, curve.pdf: accuracy with its 95 % interval at each radius.

    Args:
        metrics: {test/NAME_accuracy, _low, _high: fraction}.
        settings: of the command.
    """
    attacks = expanded(settings["test_attacks"])
    names = [name for name in attacks if name.startswith(CURVE)]
    if not names:
        return
    radii = {"clean": 0.0} | {name: attacks[name]["epsilon"] for name in names}
    rows = [[radius, *with_interval(metrics, f"test/{name}")] for name, radius in radii.items()]
    write_rows(directory / "curve.csv", ["epsilon", "accuracy", "low", "high"], rows)
    _draw(directory, rows, attacks[names[0]], fraction("epsilon", settings["epsilon"]))


def _draw(directory: Path, rows: list[list[float]], attack: Mapping[str, Any], epsilon: float) -> None:
    from nsr.plotting import new_figure, save, styled

    radii = [row[0] for row in rows]
    accuracy, low, high = ([100 * row[place] for row in rows] for place in (1, 2, 3))
    with styled():
        figure = new_figure(height=2.3)
        axes = figure.subplots()
        axes.fill_between(radii, low, high, alpha=0.25, linewidth=0)
        axes.plot(radii, accuracy, marker="o")
        axes.axvline(epsilon, color="0.5", linestyle=":", linewidth=0.8)
        axes.annotate("threat model", (epsilon, 100), rotation=90, ha="right", va="top")
        axes.set(xlabel=f"epsilon ({NORMS[attack['norm']]}, pixels in [0, 1])", xlim=(0, None), ylim=(0, 102))
        axes.set_ylabel(f"accuracy, {attack['steps']} attack steps (%)")
        save(figure, directory / "curve")


def write_distances(directory: Path, distances: Mapping[str, Tensor], attacks: Mapping[str, Any]) -> None:
    """Draw distances.png, distances.pdf: the fraction of images that are robust within each distance.

    An image that is misclassified without an attack has distance 0; images.csv has the distances. One panel a norm.

    Args:
        distances: {row of minimum norm: (image,) distance of the nearest adversarial image, inf: none was found}.
        attacks: {row: the object that is measured}.
    """
    if not distances:
        return
    from nsr.plotting import new_figure, save, styled

    norms = list(dict.fromkeys(attacks[row].norm for row in distances))
    with styled():
        figure = new_figure(height=2.3 * len(norms))
        for axes, norm in zip(figure.subplots(len(norms), squeeze=False)[:, 0], norms, strict=True):
            rows = [row for row in distances if attacks[row].norm == norm]
            for row in rows:
                values = distances[row].sort().values
                finite = values[values.isfinite()].tolist()
                robust = [100 * (1 - (place + 1) / len(values)) for place in range(len(finite))]
                axes.step([0, *finite], [100, *robust], where="post", label=getattr(attacks[row], "title", row))
            axes.axvline(attacks[rows[0]].epsilon, color="0.5", linestyle=":", linewidth=0.8)
            axes.set(xlabel=f"distance of the nearest adversarial image ({NORMS[norm]})")
            axes.set(xlim=(0, None), ylim=(0, 102), ylabel="robust images (%)")
            axes.legend(loc="upper right")
        save(figure, directory / "distances")
