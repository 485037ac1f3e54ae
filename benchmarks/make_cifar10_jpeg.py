"""A JPEG copy of CIFAR-10 (32 x 32, quality 75) as an image folder: OUT/{train,test}/CLASS/NNNN.jpg.

    python -m benchmarks.make_cifar10_jpeg ROOT OUT     ROOT contains cifar-10-batches-py

JPEG is lossy: results on the copy compare with each other, not with published ones on CIFAR-10. Images are numbered
within their class, in the order of the set. A finished copy has 60,000 files.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from torchvision.datasets import CIFAR10

QUALITY = 75


def write(root: Path, out: Path) -> int:
    """Write the files and return how many; a folder that is there already is an error."""
    written = 0
    for split in ("train", "test"):
        images = CIFAR10(str(root), train=split == "train")
        numbers: Counter[int] = Counter()
        for name in images.classes:
            (out / split / name).mkdir(parents=True)
        for image, label in images:
            image.save(out / split / images.classes[label] / f"{numbers[label]:04d}.jpg", quality=QUALITY)
            numbers[label] += 1
        written += sum(numbers.values())
    return written


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("two folders are needed: python -m benchmarks.make_cifar10_jpeg ROOT OUT")
    root, out = map(Path, sys.argv[1:])
    try:
        print(f"{write(root, out)} images")
    except RuntimeError:  # of torchvision
        sys.exit(f"error: {root} holds no complete CIFAR-10; it must contain the folder cifar-10-batches-py")
    except OSError as error:
        sys.exit(f"error: cannot write {out}: {error}; give a folder that is not there yet")
