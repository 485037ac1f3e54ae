"""train.py, with the same arguments, that ends itself at a point: the environment's POINT has it as JSON.

    POINT='{"kind": "in validation", "epoch": 2, "step": 1, "log": "hit.txt"}' python tests/soak/killed.py ARGUMENTS

The point is written to its log, on the disk, before the process ends there. Epochs count from 1, as in metrics.csv; 0
is what comes before training. Steps are batches and count from 0.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLE = "POINT"
ERROR = "error"  # among the ends of a point, beside names of signals


@dataclass
class Point:
    """Where a run ends, and how.

    Args:
        kind: one of KINDS.
        epoch, step, moment: where; a kind has steps, or moments, or both.
        ends: the signals that the process sends itself, one after another; 'error' is an exception of its own.
        process: the number of the process that it is about.
        log: of the points that were hit, a line each.
    """

    kind: str
    epoch: int
    step: int = 0
    moment: str = ""
    ends: list[str] = field(default_factory=lambda: ["SIGKILL"])
    process: int = 0
    log: str = "hit.txt"

    def is_at(self, epoch: int, step: int = 0, moment: str = "") -> bool:
        return (epoch, step, moment) == (self.epoch, self.step, self.moment)

    def reached(self, epoch: int, step: int = 0, moment: str = "") -> None:
        """Called at each place that could be the point."""
        if not self.is_at(epoch, step, moment):
            return
        with Path(self.log).open("a") as file:
            file.write(json.dumps({"kind": self.kind, "epoch": epoch, "step": step, "moment": moment}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for end in self.ends:
            if end == ERROR:
                raise ArithmeticError(f"process {self.process} was asked to fail here")
            os.kill(os.getpid(), signal.Signals[end])

    def to_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


def before(owner: Any, name: str, look: Callable[..., None]) -> None:
    """From here on `look` is called with the arguments of owner.name ahead of it."""
    original = getattr(owner, name)

    def looked_at(*arguments: Any, **settings: Any) -> Any:
        look(*arguments, **settings)
        return original(*arguments, **settings)

    setattr(owner, name, looked_at)


def inside_an_attack(point: Point) -> None:
    """Ahead of a step of training's attack; moments: 'gradient step 1', ..."""
    from nsr.attacks.balls import LinfBall
    from nsr.training.module import RobustClassifier

    place = {"epoch": -1, "step": 0, "gradient step": 0}

    def train(module: Any, batch: Any, number: int) -> None:
        place.update({"epoch": module.current_epoch + 1, "step": number, "gradient step": 0})

    def ascend(*_: Any) -> None:
        place["gradient step"] += 1
        point.reached(place["epoch"], place["step"], f"gradient step {place['gradient step']}")

    before(RobustClassifier, "training_step", train)
    before(RobustClassifier, "validation_step", lambda *_: place.update({"epoch": -1}))
    before(LinfBall, "step", ascend)


def between_backward_and_optimizer_step(point: Point) -> None:
    from nsr.training.module import RobustClassifier

    def look(module: Any, optimizer: Any) -> None:
        assert any(parameter.grad is not None for parameter in module.parameters())
        point.reached(module.current_epoch + 1, module.trainer.fit_loop.epoch_loop.batch_idx)

    before(RobustClassifier, "on_before_optimizer_step", look)


def while_a_checkpoint_is_open(point: Point) -> None:
    """Moments: 'half written', 'written', 'before NAME' of what is renamed, 'NAME linked' of what is about to be."""
    import torch

    from nsr.callbacks import checkpoints

    place = {"epoch": -1}
    save = torch.save

    def slowly(content: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(content, whole)
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        point.reached(place["epoch"], moment="half written")
        file.write(whole.getvalue()[half:])
        point.reached(place["epoch"], moment="written")

    def link(source: Any, to: Any, *, linked: Callable[..., None] = os.link) -> None:
        linked(source, to)
        point.reached(place["epoch"], moment=f"{Path(to).name.removesuffix('.partial')} linked")

    before(checkpoints.Checkpoints, "save", lambda *_, epochs, batches=0: place.update({"epoch": epochs}))
    before(
        checkpoints, "_rename", lambda path, to, keep=False: point.reached(place["epoch"], moment=f"before {to.name}")
    )
    torch.save, os.link = slowly, link  # type: ignore[assignment]


def in_validation(point: Point) -> None:
    """After the clean images of a batch, ahead of its adversarial ones."""
    from nsr.callbacks.epochs import finished_epochs
    from nsr.training.module import RobustClassifier

    place = {"epoch": -1, "step": 0}
    before(
        RobustClassifier,
        "validation_step",
        lambda module, batch, number: place.update({"epoch": finished_epochs(module.trainer), "step": number}),
    )
    before(RobustClassifier, "_validation_images", lambda *_: point.reached(place["epoch"], place["step"]))


def at_the_end_of_an_epoch(point: Point) -> None:
    """Between the first of its records and its checkpoint; moments: 'NAME half written', 'NAME written', 'recorded'."""
    from nsr.callbacks import checkpoints, records

    append = records.append_rows

    def append_rows(path: Path, columns: Any, rows: Any) -> None:
        size, epoch = path.stat().st_size if path.exists() else 0, rows[0][0]
        append(path, columns, rows)
        if point.is_at(epoch, moment=f"{path.name} half written"):
            os.truncate(path, (size + path.stat().st_size) // 2)
        point.reached(epoch, moment=f"{path.name} half written")
        point.reached(epoch, moment=f"{path.name} written")

    records.append_rows = append_rows
    before(checkpoints.Checkpoints, "save", lambda *_, epochs, batches=0: point.reached(epochs, moment="recorded"))


def in_the_test(point: Point) -> None:
    """Of the best or the last checkpoint, after training: moments are 'test' and 'test_last'."""
    from nsr.training.module import RobustClassifier

    before(
        RobustClassifier,
        "test_step",
        lambda module, batch, number: point.reached(module.current_epoch, number, module.test_name),
    )


KINDS: dict[str, Callable[[Point], None]] = {
    "inside an attack": inside_an_attack,
    "between backward and optimizer step": between_backward_and_optimizer_step,
    "while a checkpoint file is open": while_a_checkpoint_is_open,
    "in validation": in_validation,
    "at an epoch's end": at_the_end_of_an_epoch,
    "in the test": in_the_test,
}


def start_this_in_further_processes() -> None:
    """Instead of train.py, in those that Lightning's DDP starts."""
    from nsr.run import processes

    command = processes._command

    def of_this(local_rank: int) -> tuple[list[str], str]:
        (python, _, *arguments), folder = command(local_rank)
        return [python, __file__, *arguments], folder

    processes._command = of_this


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # as train.py has it
    chosen = Point(**json.loads(os.environ[VARIABLE]))
    if int(os.environ.get("LOCAL_RANK", "0")) == chosen.process:
        KINDS[chosen.kind](chosen)
    start_this_in_further_processes()
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
