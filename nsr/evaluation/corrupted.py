"""Accuracy on corrupted images: no attack, other images; chunks, processes and progress as in every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import pytorch_lightning as pl

from nsr.data.corruptions import Corruptions
from nsr.data.module import ImageData
from nsr.evaluation.cache import Chunks
from nsr.evaluation.intervals import wilson
from nsr.evaluation.suite import Suite
from nsr.training.module import RobustClassifier


class CorruptionAccuracy(NamedTuple):
    """Of one corruption at one severity, with its 95 % Wilson interval; fractions."""

    corruption: str
    severity: int
    accuracy: float
    low: float
    high: float


def measure_corruptions(
    trainer: pl.Trainer,
    module: RobustClassifier,
    data: ImageData,
    corruptions: Corruptions,
    chunks: Callable[[str], Chunks],
) -> list[CorruptionAccuracy]:
    """A row for each corruption and severity; test images, suite and figures are afterwards what they were.

    Args:
        chunks: name of a corruption -> its finished parts; called when `data` holds its images.
    """
    before = data.test_set, module.suite, module.sensitivities
    rows = []
    for name in corruptions.names:
        data.test_set, module.suite = corruptions.images(name), Suite({})
        module.suite.chunks = chunks(name)
        trainer.test(module, datamodule=data, verbose=False)
        right = module.suite.outcomes["clean"].view(len(corruptions.severities), -1)  # (severity, image)
        for severity, flags in zip(corruptions.severities, right, strict=True):
            count, images = int(flags.sum()), len(flags)
            rows.append(CorruptionAccuracy(name, severity, count / images, *wilson(count, images)))
    data.test_set, module.suite, module.sensitivities = before
    return rows


def corruption_figures(rows: Sequence[CorruptionAccuracy]) -> dict[str, float]:
    """{test/corruptions_accuracy: mean over corruptions and severities, as published tables take it}."""
    return {"test/corruptions_accuracy": fmean(row.accuracy for row in rows)} if rows else {}
