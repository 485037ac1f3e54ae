"""Accuracy against epsilon: one attack at several radii, each a row of its own, or the nearest adversarial images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nsr.errors import InputError, check_number, fraction
from nsr.evaluation.outcomes import CURVE, distinct, with_interval
from nsr.run.files import write_rows


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
    import pandas

    from nsr.plots import accuracy_by_epsilon, save

    attack = attacks[names[0]]
    title = f"PGD-{attack['steps']}" if "steps" in attack else ""
    frame = pandas.DataFrame(rows, columns=["epsilon", "accuracy", "low", "high"])
    epsilon = fraction("epsilon", settings["epsilon"])
    norm = attack.get("norm") or settings["norm"]  # an attack of your own may have no such setting
    save(accuracy_by_epsilon(frame, norm=norm, epsilon=epsilon, title=title), directory / "curve")


def write_distances(directory: Path, distances: Mapping[str, Tensor], attacks: Mapping[str, Any]) -> None:
    """Draw distances.png, distances.pdf: the fraction of images that are robust within each distance.

    An image that is misclassified without an attack has distance 0; images.csv has the distances. Of several norms each
    has its own, distances_NORM.png.

    Args:
        distances: {row of minimum norm: (image,) distance of the nearest adversarial image, inf: none was found}.
        attacks: {row: the object that is measured}.
    """
    if not distances:
        return
    from nsr.plots import save, smallest_perturbations

    norms = list(dict.fromkeys(attacks[row].norm for row in distances))
    for norm in norms:
        rows = {row: values for row, values in distances.items() if attacks[row].norm == norm}
        titles = distinct({row: getattr(attacks[row], "title", row) for row in rows})
        named = {titles[row]: values for row, values in rows.items()}
        figure = smallest_perturbations(named, norm=norm, epsilon=attacks[next(iter(rows))].epsilon)
        save(figure, directory / ("distances" if len(norms) == 1 else f"distances_{norm}"))
