"""Image classification sets of Hugging Face `datasets`: from a folder, a saved set, or the cache of the hub."""

from pathlib import Path
from typing import Any

import datasets

SPLITS = ("train", "validation", "test")


def load(
    path: str,
    name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, datasets.Dataset]:
    """Return {split: Dataset} of those that there are of train, validation and test, columns 'image' and 'label'.

    Args:
        path: a folder of images or Parquet files, the folder of `save_to_disk`, or a name on the hub.
        name: of one of its configurations.
        image_column: None: the one column of images.
        label_column: None: the one column of classes, or the one called label.
        cache_dir: None: the cache of `datasets`.
    Errors:
        ValueError: columns that are not unique, a split that is missing.
    """
    if (Path(path) / "dataset_dict.json").is_file() or (Path(path) / "state.json").is_file():
        found: Any = datasets.load_from_disk(path)
    else:
        found = datasets.load_dataset(path, name, cache_dir=cache_dir)
    found = {"train": found} if isinstance(found, datasets.Dataset) else found
    if not (splits := {split: found[split] for split in SPLITS if split in found}):
        raise ValueError(f"{path} has the splits {', '.join(found)}; it must have some of {', '.join(SPLITS)}")
    features = next(iter(splits.values())).features
    image = image_column or _only("image", [key for key, kind in features.items() if isinstance(kind, datasets.Image)])
    label = label_column or _label_column(features)
    if missing := [column for column in (image, label) if column not in features]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(features)}")
    splits = {split: each.select_columns([image, label]) for split, each in splits.items()}
    splits = {split: each.rename_columns({image: "image", label: "label"}) for split, each in splits.items()}
    return _with_classes(splits)


def _only(what: str, columns: list[str]) -> str:
    if len(columns) != 1:
        got = f"the columns {', '.join(columns)}" if columns else "no column"
        raise ValueError(f"{got} may be the {what}; set data.{what}_column")
    return columns[0]


def _label_column(features: datasets.Features) -> str:
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return _only("label", classes or [key for key in features if key in ("label", "labels")])


def _with_classes(splits: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Return the splits with numbers for labels that are texts: the classes in alphabetical order."""
    if next(iter(splits.values())).features["label"].dtype not in ("string", "large_string"):
        return splits
    names = sorted({name for each in splits.values() for name in each.unique("label")})
    return {split: each.cast_column("label", datasets.ClassLabel(names=names)) for split, each in splits.items()}
