"""The pages (README, docs/, examples/, model cards, help texts): their commands and snippets, and how each is tried.

* A page with `sh` blocks is one session: their commands are run, top to bottom, with the page's Python blocks between
  them, in a scratch directory, shortened by `SHORT` and `QUICKER`: few batches and images, no attack of many queries.
* A command of train.py or evaluate.py in any other block, or between backticks, is pre-flighted for each job of it, up
  to the point where it would make a run directory. Where `NOT_HERE` says what it needs that a test does not have, it is
  composed. (The packages in examples/ have tests of their own.)
* Python blocks run in order and share their names, unless `RUN_ELSEWHERE` names the test that runs them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "site" not in path.parts),
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted((ROOT / "nsr" / "zoo").glob("*.md")),
    *sorted((ROOT / "conf" / "hydra" / "help").glob("*.yaml")),
]
PROGRAMS = {
    "python train.py": "train",
    "nsr-train": "train",
    "python evaluate.py": "evaluate",
    "nsr-evaluate": "evaluate",
}
COMMAND = re.compile(rf"(?:{'|'.join(map(re.escape, PROGRAMS))})(?= |$)")
SHORT = {
    "train": (
        *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=none", "trainer.accelerator=cpu"),
        *("report=false", "validation_attack.steps=1", "test_attacks.pgd.steps=1"),
    ),
    "evaluate": ("evaluation.n_examples=20", "trainer.accelerator=cpu", "report=false"),
    "compare": ("--allow-different",),  # shortened evaluations have fewer images than runs
    "report": ("--allow-different",),
}
QUICKER = {"autoattack": "apgd_ce", "square": "fgsm", "adaptive": "fgsm"}  # attack: what takes its place
NOT_HERE = {  # what a command needs -> where it is only composed
    "a download": r"(data|experiment)=(cifar|svhn|stl10|mnist\b|fashion|speedrun)|datasets/cifar|torchvision\.datasets"
    r"|zoo:(cifar|fashion)",
    "weights of others": r"model\.weights=(FILE|WEIGHTS)|imagenet_class_index",
    "GPUs": r"trainer=ddp\b|sync_batch_norm|devices=2",
    "a cluster": r"sweep=slurm",
    "a larger test set": r"shard=|only=\[17",
    "files of the reader": r"--config-dir|corruptions|merge=|transfer|first\.npz|second\.npz|=images\b|=FILE",
    "a run of the reader": r"resume=",
    "a package that is no dependency": r"MLFlow",
    "code of the page": r"\b(mine|mypackage|my_package|shapes)\.",
    "Hydra alone": r"--help|--cfg",
}
NOT_INSTALLED = "launcher=ray"  # nothing about it can be composed
RUN_ELSEWHERE = {
    "docs/extending.md": "tests/test_extending.py",
    "docs/fine-tuning.md": "tests/test_fine_tuning.py",
    "docs/plots.md": "tests/test_plots.py",
}


@dataclass(frozen=True)
class Command:
    """A command of a page."""

    page: str
    program: str  # train or evaluate
    arguments: tuple[str, ...]
    typed: str

    @property
    def needs(self) -> str | None:
        """What it needs that a test does not have; None: its preflight is made."""
        text = " ".join(self.arguments)
        return next((what for what, pattern in NOT_HERE.items() if re.search(pattern, text)), None)

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {' '.join(self.arguments)}"


def name(page: Path) -> str:
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def joined(page: Path) -> str:
    """Return the text of a page, continued lines in one."""
    return re.sub(r" *\\\n *", " ", page.read_text())


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, content) of the fenced blocks of a page, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", joined(page), flags=re.DOTALL | re.MULTILINE)


def sessions(page: Path) -> list[tuple[str, str]]:
    """Return the steps of a page, ('python', block) or ('sh', command), in order."""
    steps = []
    for language, content in blocks(page):
        if language == "python":
            steps.append((language, content))
        elif language == "sh":
            steps += [(language, line) for line in content.splitlines()]
    return steps


def commands() -> list[Command]:
    """Return every command of train.py and evaluate.py that is in no session, each once."""
    found = {}
    for page in PAGES:
        text = re.sub(r"^```sh\n.*?^```$", "", joined(page), flags=re.DOTALL | re.MULTILINE)
        lines = re.findall(r"^(?: {4}| {2})?((?:python|nsr-)[^`\n]*)", text, flags=re.MULTILINE)
        for line in lines + re.findall(r"`((?:python|nsr-)[^`\n]*)`", text):
            if command := parsed(name(page), line):
                found.setdefault((command.program, command.arguments), command)
    return list(found.values())


def parsed(page: str, line: str) -> Command | None:
    """Return the command that a line begins with; what follows two spaces is a remark."""
    match = COMMAND.match(line)
    if match is None:
        return None
    typed = re.split(r" {2,}(?=[^\s-])", line[match.end() :])[0].strip().rstrip(".,;:")
    if re.search(r"\[CHOICE|=NAME\b|THE SAME|^and\b|^\(", typed):  # a form, or a sentence that goes on
        return None
    if (PROGRAMS[match[0]] == "evaluate" and not typed) or NOT_INSTALLED in typed:
        return None
    return Command(page, PROGRAMS[match[0]], tuple(shlex.split(typed)), f"{match[0]} {typed}")
