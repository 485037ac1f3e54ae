"""Summary of a data set: the images, classes and sources of its splits."""

from __future__ import annotations

from nsr.data.batches import TrainingBatches
from nsr.data.module import ImageData


def summary(data: ImageData, *, processes: int = 1) -> tuple[list[str], list[str]]:
    """Return lines on the splits of a data set, and warnings; after `setup`.

    Args:
        processes: that train together.
    """
    facts, warnings = data.describe(), []
    size = f"{facts.channels} x {facts.image_size} x {facts.image_size}"
    lines = [f"data: {data.title}, {size}, {facts.classes} classes, from {data.origin or data.root or data.title}"]
    splits = {"train": data.training_set, "validation": data.validation_set, "test": data.test_set}
    trained = set(data.training_set.labels.unique().tolist())
    for name, images in splits.items():
        labels, counts = images.labels.unique(return_counts=True)
        lowest, highest = int(counts.min()), int(counts.max())
        parts = [f"{len(images):,} images", f"{lowest:,}{f' to {highest:,}' * (lowest < highest)} per class"]
        parts += [f"{len(labels)} classes"] * (len(labels) < facts.classes)
        parts += [source] if (source := data.split_source(name)) else []
        if name == "train":
            steps = len(TrainingBatches(len(images), data.batch_size, seed=0, world_size=processes))
            parts.append(f"{steps:,} step{'s' * (steps > 1)} of {data.batch_size} per epoch")
        lines.append(f"  {name:<10} {', '.join(parts)}")
        if missing := trained - set(labels.tolist()):
            absent = f"{len(missing)} of the {len(trained)} classes in the training set have no {name} image"
            warnings.append(f"{absent}, such as {facts.class_names[min(missing)]!r}")
    if data.extra_set is not None:
        part = f"{data.extra_fraction:g} of each training batch"
        lines.append(f"  {'extra':<10} {len(data.extra_set):,} images, {part}, from {data.extra}")
    if len(data.training_set) < data.batch_size:
        got = f"data.batch_size is {data.batch_size}, but there are {len(data.training_set)} training images"
        warnings.append(f"{got}: an epoch is one smaller batch; set it lower, or add images")
    return lines, warnings
