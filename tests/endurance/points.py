"""Points at which a training run ends itself, to be resumed.

A Point in the environment is installed by site/sitecustomize.py in every process of train.py, those started by DDP
included. It is written to its log, on the disk, before the process ends there. Epochs count from 1, as in metrics.csv;
0 is the validation before training. Steps are batches and count from 0.
"""

from __future__ import annotations

import functools
import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLE = "POINT"
ERROR = "error"  # an end of a point, beside names of signals
ATTACK, OPTIMIZER, CHECKPOINT = "inside an attack", "between backward and optimizer step", "while a checkpoint is open"
VALIDATION, EPOCH_END, TEST = "in validation", "at an epoch's end", "in the test"


@dataclass
class Point:
    """A place in a run, and how the run ends there.

    Args:
        kind: one of the six above.
        epoch, step, moment: the place; a kind has steps, or moments, or both.
        ends: signals that the process sends itself in turn; 'error' is an exception of its own.
        process: the rank on this machine.
        log: file for the points that were hit, a line each.
    """

    kind: str
    epoch: int
    step: int = 0
    moment: str = ""
    ends: list[str] = field(default_factory=lambda: ["SIGKILL"])
    process: int = 0
    log: str = "hit.txt"

    @property
    def place(self) -> dict[str, Any]:
        return {"kind": self.kind, "epoch": self.epoch, "step": self.step, "moment": self.moment}

    def reached(self, kind: str, epoch: int, step: int = 0, moment: str = "") -> None:
        """End the process where this is the point."""
        if self.place != {"kind": kind, "epoch": epoch, "step": step, "moment": moment}:
            return
        with Path(self.log).open("a") as file:
            file.write(json.dumps(self.place) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for end in self.ends:
            if end == ERROR:
                raise ArithmeticError(f"process {self.process} was asked to fail here")
            os.kill(os.getpid(), signal.Signals[end])

    def hits(self) -> list[dict[str, Any]]:
        """The points that were hit."""
        log = Path(self.log)
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def environment(self) -> dict[str, str]:
        """The variables that install this point in train.py."""
        site = Path(__file__).with_name("site")
        return {VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def before(owner: Any, name: str, call: Callable[..., None]) -> None:
    """Make owner.name call `call` with its arguments first."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **settings: Any) -> Any:
        call(*arguments, **settings)
        return original(*arguments, **settings)

    setattr(owner, name, wrapped)


def install() -> None:
    """Watch for the point of the environment in this process."""
    point = Point(**json.loads(os.environ[VARIABLE]))
    if int(os.environ.get("LOCAL_RANK", "0")) != point.process:
        return
    place: dict[str, Any] = {"stage": "", "epoch": 0, "step": 0, "gradients": 0}
    watch_steps(point, place)
    watch_files(point, place)


def watch_steps(point: Point, place: dict[str, Any]) -> None:
    """Keep the place up to date; points in training, validation and test steps."""
    import torch

    from nsr.training.module import RobustClassifier

    def enter(stage: str) -> Callable[..., None]:
        def step(module: Any, batch: Any, number: int) -> None:
            epoch = 0 if module.trainer.sanity_checking else module.current_epoch + (stage != TEST)
            place.update({"stage": stage, "epoch": epoch, "step": number, "gradients": 0})
            if stage == TEST:
                point.reached(TEST, epoch, number)

        return step

    def gradient(*_: Any, **__: Any) -> None:
        place["gradients"] += 1
        point.reached(place["stage"], place["epoch"], place["step"], f"gradient step {place['gradients']}")

    for name, stage in {"training_step": ATTACK, "validation_step": VALIDATION, "test_step": TEST}.items():
        before(RobustClassifier, name, enter(stage))
    before(torch.autograd, "grad", gradient)
    before(
        RobustClassifier, "on_before_optimizer_step", lambda *_: point.reached(OPTIMIZER, place["epoch"], place["step"])
    )


def watch_files(point: Point, place: dict[str, Any]) -> None:
    """Points while records and checkpoints are written."""
    import torch

    from nsr.callbacks import records

    save, link, append = torch.save, os.link, records.append_row

    def save_slowly(content: Any, file: Any) -> None:
        """Moments: 'recorded' (of the epoch's end), 'half written', 'written'."""
        point.reached(EPOCH_END, place["epoch"], moment="recorded")
        whole = io.BytesIO()
        save(content, whole)
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        point.reached(CHECKPOINT, place["epoch"], moment="half written")
        file.write(whole.getvalue()[half:])
        point.reached(CHECKPOINT, place["epoch"], moment="written")

    def link_slowly(source: Any, to: Any) -> None:
        """Moments: 'NAME linked', NAME is what the link is renamed to."""
        link(source, to)
        point.reached(CHECKPOINT, place["epoch"], moment=f"{Path(to).name.removesuffix('.partial')} linked")

    def append_slowly(path: Path, row: Any) -> None:
        """Moments: 'NAME half written', 'NAME written'."""
        size, epoch = path.stat().st_size if path.exists() else 0, row["epoch"]
        append(path, row)
        if (point.epoch, point.moment) == (epoch, f"{path.name} half written"):
            os.truncate(path, (size + path.stat().st_size) // 2)
        point.reached(EPOCH_END, epoch, moment=f"{path.name} half written")
        point.reached(EPOCH_END, epoch, moment=f"{path.name} written")

    def rename(_: Any, to: Any) -> None:
        """Moments: 'before NAME' of what is renamed."""
        point.reached(CHECKPOINT, place["epoch"], moment=f"before {Path(to).name}")

    torch.save, os.link, records.append_row = save_slowly, link_slowly, append_slowly  # type: ignore[assignment]
    before(os, "replace", rename)
