"""Mutation tests of the core: the fraction of mutmut's mutants that the quick tests kill.

    python -m benchmarks.mutants [OUT_JSON] [--sample N] [--seed N]

Files and tests are those of [tool.mutmut] in pyproject.toml; only what mutmut itself mutates is mutated (bodies of
functions without decorators). mutmut generates the mutants and the seed draws a sample, proportional over the files.
Each mutant replaces its file in a copy of the project, and those tests that run its function (measured once, shared
fixtures included) run on it in a forked process, the shortest first, until one fails. mutmut's own runner is not used:
its trampolines stand inside compiled networks and hide signatures. A test that takes five times its processor time
counts as a timeout, and that as killed. Survivors need a reason, written into OUT_JSON by hand; a later run keeps it
for an equal change.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from coverage import Coverage
from mutmut.configuration import config
from mutmut.mutation.file_mutation import create_mutations

from benchmarks.common import RESULTS, ROOT, machine

# imported once, before the forks; nsr and its tests are imported in each of them
PRELOADED = ("torch", "torchvision", "pytorch_lightning", "torchmetrics", "hydra", "scipy.stats")
OPTIONS = ["-x", "--hypothesis-seed=0", "--rootdir=.", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


class Mutant(NamedTuple):
    """One change of one file."""

    file: str
    line: int
    diff: str
    code: str  # of the whole file


def draw(files: list[str], size: int, seed: int) -> tuple[list[Mutant], int]:
    """A sample of the mutants, every n-th of the shuffled ones of one file after another, and how many there are."""
    draws = random.Random(seed)
    pool = []
    for file in files:
        module, mutations, *_ = create_mutations(file, (ROOT / file).read_text())
        mutations = [each for each in mutations if each.contained_by_top_level_function is not None]
        draws.shuffle(mutations)
        pool += [(file, module, mutation) for mutation in mutations]
    step, start = len(pool) / size, draws.random()
    return [render(*pool[int((start + number) * step)]) for number in range(size)], len(pool)


def render(file: str, module: Any, mutation: Any) -> Mutant:
    """Apply a mutation to its file."""
    code = module.deep_replace(mutation.original_node, mutation.mutated_node).code
    lines = list(difflib.unified_diff(module.code.splitlines(), code.splitlines(), lineterm="", n=0))[2:]
    number = int(lines[0].split()[1].lstrip("-").partition(",")[0])
    return Mutant(file, number, "\n".join(line for line in lines if not line.startswith("@@")), code)


class Recorder:
    """Pytest plugin that finds the tests of each line, and their seconds."""

    def __init__(self, files: list[str]) -> None:
        self.coverage = Coverage(data_file=None, config_file=False, include=files)
        self.context = ""
        self.fixtures: dict[str, list[str]] = {}  # {test: fixtures}
        self.seconds: dict[str, float] = {}

    def switch(self, context: str) -> str:
        previous, self.context = self.context, context
        self.coverage.switch_context(context)
        return previous

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        started = time.process_time()
        self.switch(item.nodeid)
        self.fixtures[item.nodeid] = list(item.fixturenames)
        result = yield
        if sys.gettrace() is None:  # pyautoattack ends tracing
            self.coverage.stop()
            self.coverage.start()
        self.seconds[item.nodeid] = time.process_time() - started
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        """Lines that run in a shared fixture are those of every test with this fixture."""
        previous = self.context if fixturedef.scope == "function" else self.switch(f"fixture {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self.switch(previous)

    def tests_by_line(self, file: str) -> dict[int, list[str]]:
        lines = self.coverage.get_data().contexts_by_lineno(str(Path(file).resolve()))
        users = {context: [context] for context in self.seconds}
        for test, fixtures in self.fixtures.items():
            for fixture in fixtures:
                users.setdefault(f"fixture {fixture}", []).append(test)
        return {line: [test for context in found for test in users.get(context, [])] for line, found in lines.items()}


def record(files: list[str], words: list[str]) -> int:
    """Run the tests, write recorded.json: tests by line of each file, and seconds of each test."""
    recorder = Recorder(files)
    recorder.coverage.start()
    code = pytest.main([*OPTIONS, *words], plugins=[recorder])
    recorder.coverage.stop()
    lines = {file: recorder.tests_by_line(file) for file in files}
    Path("recorded.json").write_text(json.dumps({"lines": lines, "seconds": recorder.seconds}))
    return code


class Chosen:
    """Pytest plugin that runs these tests alone, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.tests = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.tests), key=lambda i: self.tests[i.nodeid])


def run_chosen(tests: list[str]) -> int:
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    return pytest.main([*OPTIONS, *files], plugins=[Chosen(tests)]) if tests else 0


def in_copy(folder: Path, seconds: float, run: Callable[..., int], *arguments: Any) -> None:
    """Call `run` in the copy of the project and end this (forked) process with its result."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    os.chdir(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "nsr", "tests")]:
        del sys.modules[name]
    with (folder / "pytest.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os._exit(run(*arguments))


def outcome(folder: Path, seconds: float, run: Callable[..., int], *arguments: Any) -> str:
    """'survived' where all tests pass, 'killed' where one fails, or 'timeout'."""
    process = multiprocessing.get_context("fork").Process(target=in_copy, args=(folder, seconds, run, *arguments))
    process.start()
    for _ in range(int(20 * seconds)):  # waiting, beside the processor time; a machine that pauses is no timeout
        process.join(1)
        if not process.is_alive():
            break
    else:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return "timeout"
    names = {0: "survived", -signal.SIGXCPU: "timeout", -signal.SIGKILL: "timeout"}
    return names.get(process.exitcode or 0, "killed")


def copy_project(folder: Path) -> None:
    """Copy the files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def tests_of(mutant: Mutant, recorded: dict[str, Any]) -> list[str]:
    """The tests that run the mutant's function (its file, where it is outside functions), the shortest first."""
    nodes = ast.walk(ast.parse((ROOT / mutant.file).read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= mutant.line <= (node.end_lineno or 0)]
    lines = recorded["lines"][mutant.file]
    if around:
        inner = max(around, key=lambda node: node.lineno)
        body = range(inner.body[0].lineno, (inner.end_lineno or 0) + 1)
        lines = {line: tests for line, tests in lines.items() if int(line) in body}
    found = {test for tests in lines.values() for test in tests}
    return sorted(found, key=lambda test: recorded["seconds"][test])


def choices() -> tuple[list[str], list[str]]:
    """Files to mutate and pytest's arguments, from [tool.mutmut]."""
    found = {str(path) for pattern in config().only_mutate for path in Path().glob(pattern)}
    files = sorted(file for file in found if config().should_mutate(file))
    words = []
    for word in config().pytest_add_cli_args_test_selection:
        found = sorted(map(str, Path().glob(word))) if word.startswith("tests/") else [word]
        if not found:
            sys.exit(f"error: pytest_add_cli_args_test_selection in pyproject.toml has {word}, which is no test")
        words += found
    return files, words


def run_mutants(mutants: list[Mutant], files: list[str], words: list[str]) -> list[str]:
    """The outcome of each mutant."""
    for name in PRELOADED:
        import_module(name)
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_project(folder)
        if outcome(folder, 3600, record, files, words) != "survived":
            sys.exit(f"error: the tests fail without a mutant:\n{(folder / 'pytest.txt').read_text()[-3000:]}")
        recorded = json.loads((folder / "recorded.json").read_text())
        for number, mutant in enumerate(mutants):
            tests = tests_of(mutant, recorded)
            target = folder / mutant.file
            target.write_text(mutant.code)
            os.utime(target, (number + 1, number + 1))  # no compiled file of another mutant fits
            seconds = 60 + 5 * sum(recorded["seconds"][test] for test in tests)
            outcomes.append(outcome(folder, seconds, run_chosen, tests))
            shutil.copy2(ROOT / mutant.file, target)
            place = f"{mutant.file}:{mutant.line} ({len(tests)} tests)"
            print(f"{number + 1}/{len(mutants)} {outcomes[-1]} {place}\n{mutant.diff}", flush=True)
    return outcomes


def main(out: Path, size: int, seed: int) -> None:
    os.chdir(ROOT)
    files, words = choices()
    mutants, population = draw(files, size, seed)
    reasons = {}
    if out.exists():
        reasons = {(row["file"], row["diff"]): row["reason"] for row in json.loads(out.read_text())["survivors"]}
    outcomes = run_mutants(mutants, files, words)
    counts = Counter(outcomes)
    survivors = [mutant for mutant, result in zip(mutants, outcomes, strict=True) if result == "survived"]
    row = {
        "tool": f"mutmut {version('mutmut')}",
        **machine(),
        "seed": seed,
        "population": population,
        "sample_size": size,
        **{result: counts[result] for result in ("killed", "survived", "timeout")},
        "kill_rate": round(1 - counts["survived"] / size, 4),
        "files": {
            file: {"sample": [m.file for m in mutants].count(file), "survived": [m.file for m in survivors].count(file)}
            for file in files
        },
        "tests": words,
        "survivors": [
            {"file": m.file, "line": m.line, "diff": m.diff, "reason": reasons.get((m.file, m.diff), "")}
            for m in survivors
        ],
    }
    out.write_text(json.dumps(row, indent=2) + "\n")
    print(f"kill rate {row['kill_rate']:.1%} ({dict(counts)}) -> {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "mutants.json")
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.out.absolute(), given.sample, given.seed)
