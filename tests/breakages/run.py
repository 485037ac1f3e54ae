"""Makes each deliberate mistake in a copy of the project and shows the test that notices it.

    python -m tests.breakages.run            all of them
    python -m tests.breakages.run sums ids   those whose name holds a word

A mistake that no test notices is a missing test: exit code 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.breakages.mistakes import MISTAKES, Mistake

ROOT = Path(__file__).resolve().parent.parent.parent


def copy_of_the_project(folder: Path) -> None:
    """The files that git knows or would add, nothing else."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())


def noticed_by(mistake: Mistake, folder: Path) -> str | None:
    """The first test that fails on the mistake, None where all pass."""
    path = folder / mistake.file
    right = path.read_text()
    if right.count(mistake.right) != 1:
        return None
    path.write_text(right.replace(mistake.right, mistake.wrong))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-rfE", "--no-header", *mistake.tests.split()]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    finally:
        path.write_text(right)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    return failed[0] if done.returncode == 1 and failed else None


def main(words: list[str]) -> int:
    chosen = [mistake for mistake in MISTAKES if not words or any(word in mistake.name for word in words)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as name:
        copy_of_the_project(Path(name))
        for mistake in chosen:
            test = noticed_by(mistake, Path(name))
            unnoticed += test is None
            print(f"{'noticed' if test else 'MISSED '}  {mistake.name}\n         {test or mistake.tests}", flush=True)
    print(f"\n{len(chosen) - unnoticed} of {len(chosen)} mistakes noticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
