"""The pictures of `nsr-report RUN --full`, in a process of its own: `python -m nsr.app.full RUN [TRUSTED ...]`.

The checkpoint is loaded as by evaluate.py, with the same allowlist.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nsr.app.command_line import make_importable
from nsr.app.composition import compose_checked, without_hydra
from nsr.app.job import make_job, quiet_lightning
from nsr.app.pictures import subject
from nsr.callbacks.checkpoints import PLACE
from nsr.compare import exit_code
from nsr.evaluation.outcomes import SuiteResult
from nsr.models.weights import read_checkpoint
from nsr.pictures import write_pictures
from nsr.pictures.full import full_pictures
from nsr.report.facts import radius_in_words
from nsr.run.commands import override

FOLDER = "pictures_full"
ROW = "validation_attack"


def write(run: Path, trusted: Sequence[str] = ()) -> None:
    """Write RUN/pictures_full for the run's best.ckpt.

    Errors:
        InputError: a checkpoint that cannot be used, or whose classes are not trusted.
    """
    quiet_lightning()
    path = run.absolute() / "checkpoints" / "best.ckpt"
    own = [override("checkpoint", str(path)), override("trusted", list(trusted)), "test_attacks=[clean]"]
    job = make_job(without_hydra(compose_checked("evaluate", own)), "evaluate")
    job.data.setup("test")
    images = job.data.test_set
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    epoch = read_checkpoint(path)[PLACE]["epochs"]
    attack = job.suite.sensitivity_attack
    assert attack is not None  # evaluate.yaml has one
    job.suite.result = SuiteResult({}, {}, torch.empty(0), images.labels, torch.arange(len(images)))  # of no test
    title = f"{getattr(attack, 'title', 'attack')}, {radius_in_words(job.settings)}"
    measured = replace(subject(job, run, device, epoch), attacks={ROW: attack}, titles={ROW: title})
    write_pictures(run, full_pictures(measured, ROW), folder=FOLDER)


if __name__ == "__main__":
    make_importable()
    sys.exit(exit_code(lambda: write(Path(sys.argv[1]), sys.argv[2:])))
