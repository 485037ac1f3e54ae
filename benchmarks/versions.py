"""Run the quick tests with the lowest or the newest allowed versions, in an environment of their own.

    python -m benchmarks.versions lowest python3.10
    python -m benchmarks.versions newest python3.13

`lowest` installs the lower bound of each dependency in pyproject.toml, `newest` the newest allowed release, `pinned`
requirements.txt. Warnings are not errors here: libraries of different ages warn about each other. The result is written
to benchmarks/results/versions.json, one entry for each set and Python.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common import RESULTS, ROOT

OUT = RESULTS / "versions.json"
EXTRAS = ["-r", "pyproject.toml", "--all-extras"]
SETS = {
    "lowest": [*EXTRAS, "--resolution", "lowest-direct"],
    "newest": [*EXTRAS, "--resolution", "highest"],
    "pinned": ["-r", "requirements.txt"],
}


def bounds() -> dict[str, str]:
    """Return {package: lower bound} of everything that pyproject.toml asks for."""
    return dict(re.findall(r'"([a-z-]+)>=([\d.]+),<', (ROOT / "pyproject.toml").read_text()))


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command in the root of the checkout; return its output."""
    return subprocess.run(command, cwd=ROOT, check=check, stdout=subprocess.PIPE, text=True).stdout


def environment(folder: Path, chosen: str, python: str) -> Path:
    """Install a set of versions; return the environment's interpreter."""
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--quiet", "--python", python, folder)
    run(*uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *SETS[chosen])
    return folder / "bin" / "python"


def results(report: Path) -> dict[str, Any]:
    """Return the counts and the failed tests of a pytest report in JUnit's format."""
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[outcome].append(f"{case.get('classname')}::{case.get('name')}")
    return {**{name: len(tests) for name, tests in outcomes.items()}, "failures": sorted(outcomes["failed"])}


def main(chosen: str, python: str) -> None:
    """Install, test and record one set."""
    with tempfile.TemporaryDirectory() as folder:
        interpreter = environment(Path(folder) / "venv", chosen, python)
        report = Path(folder) / "report.xml"
        options = ("-n", "2", "-m", "not slow", "-W", "default", f"--junitxml={report}")
        print(run(interpreter, "-m", "pytest", *options, check=False)[-2000:])
        installed = json.loads(run(sys.executable, "-m", "uv", "pip", "list", "--format=json", "--python", interpreter))
        entry = {
            "set": chosen,
            "python": run(interpreter, "-c", "import platform; print(platform.python_version())").strip(),
            "machine": platform.machine(),
            "commit": run("git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*").strip(),
            **results(report),
            "versions": {row["name"]: row["version"] for row in installed if row["name"] in bounds()},
        }
    known = json.loads(OUT.read_text()) if OUT.exists() else []
    others = [row for row in known if (row["set"], row["python"]) != (entry["set"], entry["python"])]
    rows = sorted([*others, entry], key=lambda row: (row["set"], row["python"]))
    OUT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
