"""The README: its commands compose, its example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nsr.app.composition import compose_checked, jobs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HELP = "".join((ROOT / "conf" / "hydra" / "help" / f"{entry}.yaml").read_text() for entry in ("train", "evaluate"))
PAGES = (README + HELP).replace("\\\n", " ")
COMMANDS = sorted(
    {
        (entry, " ".join(word for word in arguments.split("  ")[0].split() if word not in ("-m", "\\")))
        for entry, arguments in re.findall(r"python (train|evaluate)\.py((?: +[^\s#]+)*)", PAGES)
        if "--" not in arguments and "[" not in arguments.split("=")[0]
    }
)


def overrides_of(arguments: str) -> list[str]:
    words = [word for word in shlex.split(arguments) if "=" in word]
    return [word.replace("FOLDER", "/folder").replace("FILE", "/file.pt").replace("RUN/", "runs/") for word in words]


@pytest.mark.parametrize(("entry", "arguments"), COMMANDS)
def test_every_command_composes(entry, arguments):
    for job in jobs(overrides_of(arguments), is_sweep=True):
        compose_checked(entry, job)


def test_the_example_runs(capsys):
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (example,) = [code for code in examples if "import torch" in code]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["loss"].requires_grad
    assert names["sensitivity"].shape == (16,)
    assert "tensor([" in capsys.readouterr().out


def test_make_targets_exist():
    assert len(COMMANDS) >= 10
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", README, flags=re.MULTILINE)) <= {*targets}
