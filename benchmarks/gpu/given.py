"""What every part is given, and what it hands back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nsr.run.files import write_json

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    network: str = "ResNet18"  # of nsr.models
    image_size: int = 32
    images: int = 64  # whose sensitivities and features are compared
    batch: int = 128  # of a timed training step, and of the training
    attack_steps: int = 10
    timed_steps: int = 30
    warm_up_steps: int = 5
    backend: str = "inductor"  # of torch.compile
    process_images: int = 512  # training images of the two processes
    most_epochs: int = 30  # of the training


FULL = Sizes()
TINY = Sizes(
    network="SmallCNN",
    image_size=8,
    images=8,
    batch=8,
    attack_steps=2,
    timed_steps=2,
    warm_up_steps=1,
    backend="aot_eager",  # traces as the other does, and compiles nothing
    process_images=32,
    most_epochs=1,
)


def chosen_sizes() -> Sizes:
    """The full ones, unless NSR_GPU_TINY=1."""
    return TINY if os.environ.get("NSR_GPU_TINY") == "1" else FULL


class Skip(Exception):
    """Why a part cannot be measured here."""


class Report:
    """The figures of a part, on disk after each, so that a part that is cut off keeps what it had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: dict[str, Any] = {}

    def __call__(self, name: str, value: Any) -> None:
        self.figures[name] = value
        write_json(self.path, self.figures)


@dataclass(frozen=True)
class Given:
    """What a part starts from."""

    sizes: Sizes
    data: Path | None = None  # DATA_DIR
    seconds: float = 60.0  # until the part is ended
    earlier: Mapping[str, Any] = field(default_factory=dict)  # {part: its figures}
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.seconds - (time.monotonic() - self.started)


def check_packages(*names: str) -> None:
    """Skip, by name, where some of these packages are not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise Skip(f"{', '.join(missing)} not installed")
