"""Images of webdataset shards, read at any place: an index of the tar files makes them an ordinary dataset.

The order of the images is then a function of seed and epoch, for any number of workers and processes, and a run resumes
inside an epoch, as with all data of nsr. A stream of shards could promise none of this.
"""

import io
import logging
import tarfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

log = logging.getLogger(__name__)
IMAGES = ("jpg", "jpeg", "png", "webp")
Place = tuple[int, int]  # first byte in the shard, number of bytes


def load(
    shards: str, test_shards: str | None = None, validation_shards: str | None = None, skip_damaged: bool = False
) -> dict[str, "TarImages"]:
    """Return {split: images} of the shards that a pattern names, such as 'train-*.tar' or 'train-{000..146}.tar'.

    A sample is an image (.jpg, .jpeg, .png or .webp) and a class number (.cls).

    Args:
        skip_damaged: leave out a shard whose tar file is damaged, with a warning.
    Errors:
        ValueError: a damaged shard, a pattern without a file, a sample without image or class.
    """
    patterns = {"train": shards, "test": test_shards, "validation": validation_shards}
    return {split: TarImages(pattern, skip_damaged) for split, pattern in patterns.items() if pattern is not None}


class TarImages(Dataset):
    """Samples (PIL image, class) of uncompressed tar files, in the order of the shards.

    Args:
        pattern, skip_damaged: see `load`.
    """

    def __init__(self, pattern: str, skip_damaged: bool = False):
        found = [path for each in expand_urls(pattern) for path in sorted(glob(each)) or [each]]
        self.paths, places, labels = [], [], []
        for path in found:
            try:
                samples = list(read_index(path))
            except (tarfile.TarError, OSError, EOFError) as error:
                if not skip_damaged or not Path(path).is_file():
                    fix = "repair or remove it, or set data.skip_damaged=true"
                    raise ValueError(f"the shard {path} cannot be read ({error}); {fix}") from error
                log.warning("the shard %s is left out: %s", path, error)
                continue
            places += [(len(self.paths), *place) for place, _ in samples]
            labels += [label for _, label in samples]
            self.paths.append(path)
        # arrays: counting references to a list copies it page by page into every worker process
        self.places, self.labels = np.array(places, np.int64).reshape(-1, 3), np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        shard, first, size = self.places[index].tolist()
        with open(self.paths[shard], "rb") as file:
            file.seek(first)
            content = file.read(size)
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except Exception as error:
            raise ValueError(f"an image of the shard {self.paths[shard]}, byte {first}: {error}") from error
        return image, int(self.labels[index])


def read_index(path: str) -> Iterator[tuple[Place, int]]:
    """Yield the place of the image and the class of every sample of a shard, in order."""
    key, sample = None, {}
    size = Path(path).stat().st_size
    with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
        if _content(file, (max(size - 1024, 0), 1024)).strip(b"\0"):
            raise tarfile.ReadError("it ends without the mark of a tar file's end")
        for member in tar:
            base, extension = base_plus_ext(member.name)
            if not member.isfile() or not base:
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"it ends within {member.name}")
            if key is not None and base != key:
                yield _sample(path, key, sample)
                sample = {}
            key = base
            place = (member.offset_data, member.size)
            sample[extension.lower()] = place if extension != "cls" else _content(file, place)
        if key is not None:
            yield _sample(path, key, sample)


def _content(file, place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def _sample(path: str, key: str, sample: dict) -> tuple[Place, int]:
    image = next((sample[name] for name in IMAGES if name in sample), None)
    if image is None or not sample.get("cls", b"").strip().isdigit():
        raise ValueError(
            f"the sample {key} of {path} has {', '.join(sample)}; it must have an image and a number in .cls"
        )
    return image, int(sample["cls"])
