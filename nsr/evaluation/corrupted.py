"""Accuracy on corrupted images: no attack, other images; cache, processes and progress as in every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import pytorch_lightning as pl

from nsr.data.corruptions import Corruptions
from nsr.data.module import ImageData
from nsr.evaluation.cache import ResultCache
from nsr.evaluation.outcomes import wilson
from nsr.evaluation.suite import AttackSuite
from nsr.training.module import RobustClassifier


class CorruptionAccuracy(NamedTuple):
    """The accuracy on one corruption at one severity, with its 95 % Wilson interval; fractions."""

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
    cache: Callable[[str], ResultCache],
) -> list[CorruptionAccuracy]:
    """Return a row for each corruption and severity; test images and suite are afterwards what they were.

    Args:
        cache: name of a corruption -> its cached results; called when `data` holds its images.
    """
    before = data.test_set, data.test_places, module.suite
    data.test_places = None
    rows = []
    for name in corruptions.names:
        data.test_set, suite = data.relabeled(corruptions.images(name)), AttackSuite({})
        module.suite, suite.cache = suite, cache(name)
        trainer.test(module, datamodule=data, verbose=False)
        # trainer.limit_test_batches may leave out images of the last severities, or all
        correct = suite.result.outcomes["clean"].split(len(data.test_set) // len(corruptions.severities))
        for severity, flags in zip(corruptions.severities, correct, strict=False):
            count, images = int(flags.sum()), len(flags)
            rows.append(CorruptionAccuracy(name, severity, count / images, *wilson(count, images)))
    data.test_set, data.test_places, module.suite = before
    return rows


def corruption_metrics(rows: Sequence[CorruptionAccuracy]) -> dict[str, float]:
    """Return {test/corruptions_accuracy: mean over corruptions and severities, as published tables take it}."""
    return {"test/corruptions_accuracy": fmean(row.accuracy for row in rows)} if rows else {}
