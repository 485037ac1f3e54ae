"""The tests that are marked gpu; where there is no GPU they are skipped, and so counted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.given import ROOT, Given, Report, check_packages


def measure(given: Given, report: Report) -> None:
    check_packages("pytest", "hypothesis", "scipy", "hydra")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        # warnings are errors in nsr's own test run, with pinned versions; here others may be installed
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-W", "default"]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run([*command, f"--junitxml={results}"], cwd=ROOT, env=environment, check=False)
        if not results.exists():
            raise RuntimeError(f"pytest ended with exit code {done.returncode} before the first test")
        counts, failed = read_results(results)
    report("tests", {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")})
    if done.returncode != 0:
        report("failed", f"pytest's exit code is {done.returncode}; failed: {', '.join(failed) or 'none'}")


def read_results(path: Path) -> tuple[Counter[str], list[str]]:
    """How many tests passed, failed and were skipped, and the names of those that failed, from JUnit's XML."""
    counts: Counter[str] = Counter()
    failed = []
    for case in ElementTree.parse(path).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            failed.append(str(case.get("name")))
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    return counts, failed
