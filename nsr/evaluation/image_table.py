"""The files of single images and classes: images.csv, classes.csv, confusion.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsr.evaluation.outcomes import SuiteResult, robust_to_all
from nsr.run.files import write_rows
from nsr.run.plain_text import csv_cell


def write_images(path: Path, result: SuiteResult, class_names: Sequence[str], files: Sequence[str] = ()) -> None:
    """Write a CSV file of a row for each image, its index in the test set first.

    Columns: file (where `files`, of the whole test set, is not empty), label and class; then for 'clean' and each
    attack 1 where the image is classified correctly, else 0; the same rows' predicted classes, ROW_prediction; the
    margin of the label's logit without an attack; ROW_distance of attacks of minimum norm, inf where none was found.
    """
    places = result.places.tolist()
    labels = result.labels.tolist()
    columns: dict[str, Sequence[Any]] = {"image": places}
    if files:
        columns["file"] = [csv_cell(files[place]) for place in places]
    columns |= {"label": labels, "class": [csv_cell(class_names[label]) for label in labels]}
    columns |= {row: flags.tolist() for row, flags in result.outcomes.items()}
    columns |= {f"{row}_prediction": classes.tolist() for row, classes in result.predictions.items()}
    columns["clean_margin"] = _short(result.margins)
    columns |= {f"{row}_distance": _short(values) for row, values in result.distances.items()}
    write_rows(path, list(columns), list(zip(*columns.values(), strict=True)))


def write_classes(directory: Path, result: SuiteResult, class_names: Sequence[str], worst: Mapping[str, Any]) -> None:
    """Write classes.csv, the accuracies of each class, and confusion.csv, the images of each label and prediction.

    classes.csv has a row for each class of the test set; confusion.csv one for each pair that occurs, without an attack
    and under each one: the prediction of an image that is misclassified without an attack is that without one.

    Args:
        worst: {row of a worst case: the rows that it is over}.
    """
    combined = {name: robust_to_all({row: result.outcomes[row] for row in rows}) for name, rows in worst.items()}
    outcomes = {**result.outcomes, **combined}
    rows = []
    for label in result.labels.unique().tolist():
        here = result.labels == label
        accuracies = [float(flags[here].double().mean()) for flags in outcomes.values()]
        rows.append([label, csv_cell(class_names[label]), int(here.sum()), *accuracies])
    write_rows(directory / "classes.csv", ["label", "class", "images", *outcomes], rows)
    confused = [[row, *pair] for row, classes in result.predictions.items() for pair in _pairs(result.labels, classes)]
    write_rows(directory / "confusion.csv", ["attack", "label", "prediction", "images"], confused)


def _short(values: Tensor) -> list[str]:
    return [f"{value:.6g}" for value in values.tolist()]


def _pairs(labels: Tensor, predictions: Tensor) -> list[list[int]]:
    """Return [label, prediction, images] of the pairs that occur, in order."""
    pairs, counts = torch.stack([labels, predictions], dim=1).unique(dim=0, return_counts=True)
    return [[*pair, count] for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]
