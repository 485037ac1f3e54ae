"""benchmarks/gpu.sh: what it measures without a GPU, and that nothing is lost where a part fails."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import (
    commands,
    compiled_taps,
    gpu_tests,
    runner,
    sensitivities,
    step_times,
    training,
    two_processes,
)
from benchmarks.gpu.given import FULL, TINY, Given, Report, Skip, check_packages

ROOT = Path(__file__).parent.parent
PARTS = list(runner.LIMITS)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def figures(out: Path) -> dict:
    return json.loads((out / "gpu.json").read_text())


# ---------------------------------------------------------------- the runner


def run_scripts(out: Path, scripts: dict[str, str], **limits: float) -> int:
    """The runner over parts that are a line of Python each; `report` in it is their report's path."""

    def command_of(part: str, seconds: float, report: Path) -> list[str]:
        return python(f"import json, os, pathlib, sys, time; report = pathlib.Path({str(report)!r}); {scripts[part]}")

    return runner.run_all(out, None, limits={part: limits.get(part, 30.0) for part in scripts}, command_of=command_of)


@pytest.mark.slow
def test_a_part_that_fails_is_recorded_and_the_others_are_not_lost(tmp_path):
    scripts = {
        "good": 'report.write_text(json.dumps({"figure": 1}))',
        "bad": 'report.write_text(json.dumps({"figure": 2})); sys.exit(3)',
        "crashed": "os.abort()",
        "late": 'report.write_text(json.dumps({"figure": 3})); time.sleep(60)',
        "last": 'report.write_text(json.dumps({"skipped": "no GPU"}))',
    }
    assert run_scripts(tmp_path, scripts, late=2.0) == 1
    record = figures(tmp_path)
    parts = record["parts"]
    assert list(parts) == list(scripts)
    assert all(part.pop("seconds") >= 0 for part in parts.values())
    assert parts["good"] == {"figure": 1}
    assert parts["bad"] == {"figure": 2, "failed": "ended with exit code 3"}
    assert parts["crashed"] == {"failed": "ended with exit code -6"}
    assert parts["late"] == {"figure": 3, "failed": "ran past its 2 s"}
    assert parts["last"] == {"skipped": "no GPU"}
    assert record["total_seconds"] < 30
    assert record["machine"]["commit"] is None or len(record["machine"]["commit"]) == 40


def test_nothing_failed_is_exit_code_0_and_the_json_is_there_before_the_first_part(tmp_path):
    scripts = {"reads": f"report.write_text(pathlib.Path({str(tmp_path / 'gpu.json')!r}).read_text())"}
    assert run_scripts(tmp_path, scripts) == 0
    assert figures(tmp_path)["parts"]["reads"]["parts"] == {}


@pytest.mark.slow
def test_parts_for_which_no_time_is_left_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("NSR_GPU_SECONDS", "11")
    assert run_scripts(tmp_path, {"long": "time.sleep(1.5)", "second": "sys.exit(1)"}) == 0
    assert figures(tmp_path)["parts"]["second"] == {"skipped": "no time is left of 11 s", "seconds": 0.0}


def test_parts_that_are_not_asked_for_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("NSR_GPU_PARTS", "second")
    assert run_scripts(tmp_path, {"first": "sys.exit(1)", "second": "pass"}) == 0
    assert figures(tmp_path)["parts"]["first"] == {"skipped": "not among NSR_GPU_PARTS", "seconds": 0.0}
    monkeypatch.setenv("NSR_GPU_PARTS", "third")
    with pytest.raises(SystemExit, match="third"):
        run_scripts(tmp_path, {"first": "pass"})


@pytest.mark.slow
def test_a_part_that_is_ended_takes_what_it_started_with_it(tmp_path):
    started = tmp_path / "pid"
    script = (
        f"import subprocess; child = subprocess.Popen(['sleep', '60']); "
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    assert run_scripts(tmp_path, {"part": script}, part=2.0) == 1
    status = Path(f"/proc/{started.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_a_part_of_this_program_tells_why_it_failed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", str(tmp_path), "--part=no_such_part"]
    (tmp_path / "gpu.json").write_text('{"parts": {}}')
    done = subprocess.run([*command, f"--report={tmp_path / 'report.json'}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in json.loads((tmp_path / "report.json").read_text())["failed"]


# ---------------------------------------------------------------- the parts


def test_what_is_missing_is_said_by_name():
    with pytest.raises(Skip, match="no_such_package not installed"):
        check_packages("torch", "no_such_package")
    with pytest.raises(Skip, match="no DATA_DIR"):
        training.measure(Given(TINY), Report(Path()))


def test_tests_are_counted(tmp_path):
    path = tmp_path / "results.xml"
    path.write_text(
        "<testsuites><testsuite>"
        '<testcase name="one"/><testcase name="two"><skipped/></testcase>'
        '<testcase name="three"><failure/></testcase><testcase name="four"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    counts, failed = gpu_tests.read_results(path)
    assert (counts["passed"], counts["skipped"], counts["failed"]) == (1, 1, 2)
    assert failed == ["three", "four"]


def test_the_largest_difference_is_relative_to_the_neuron_and_nan_is_the_largest():
    import torch

    expected = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0, 0.0])}
    found = {"a": torch.tensor([1.0, 2.2]), "b": torch.tensor([4.2, 0.0])}
    difference, layer = sensitivities.largest_difference(expected, found)
    assert (difference, layer) == (pytest.approx(0.1), "a")
    found["b"][0] = torch.nan
    assert sensitivities.largest_difference(expected, found) == (float("inf"), "b")
    assert compiled_taps.furthest([found], [expected]) == float("inf")
    assert compiled_taps.furthest([expected], [expected]) == 0


def test_epochs_are_as_many_as_both_trainings_have_time_for():
    counts = {"train": 50_000, "test": 10_000}
    times = {
        "batch": 128,
        "evaluation_pass": {"batch": 250, "pass_ms": {"median": 25.0}},
        "bf16-mixed_channels_last": {"step_ms": {"median": 30.0}},
    }
    given = Given(FULL, seconds=415.0, earlier={"step_times": times})
    # 200 s a training: 40 to begin, 3 of validation before it, 24 of tests; 80 % of the 133 left, 14.1 s an epoch
    assert training.affordable_epochs(given, counts) == 7
    assert training.affordable_epochs(Given(FULL, seconds=30.0, earlier={"step_times": times}), counts) == 1
    assert training.affordable_epochs(Given(FULL, seconds=415.0), counts) == 1
    assert training.affordable_epochs(Given(FULL, seconds=1e6, earlier={"step_times": times}), counts) == 30


def test_a_command_that_fails_ends_those_that_wait_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "PATIENCE_SECONDS", 1.0)
    pair = {"waits": python("import time; time.sleep(60)"), "fails": python("print('why\\n'); raise SystemExit(2)")}
    finished = commands.run_side_by_side(pair, tmp_path, seconds=60)
    assert (finished["waits"].code, finished["fails"].code) == (None, 2)
    assert finished["waits"].seconds < 20
    told = commands.what_failed(finished)
    assert "fails ended with exit code 2" in told and told.endswith("why")
    assert "why" in capsys.readouterr().out
    assert commands.what_failed(commands.run_side_by_side({"fine": python("pass")}, tmp_path, seconds=60)) is None


def test_two_nodes_of_one_process_have_the_run_of_one_process(tmp_path):
    made = two_processes.training_commands(tmp_path / "images", tmp_path, True)
    assert list(made) == ["one_process", "two_processes_node0", "two_processes_node1"]
    one, *both = made.values()
    for rank, node in enumerate(both):
        assert {"--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", "trainer=ddp"} <= set(node)
        assert "trainer.strategy.process_group_backend=gloo" in node
        assert set(one) - set(node) == {f"hydra.run.dir={tmp_path / 'one_process'}"}
    assert {"compile=true", "trainer.precision=bf16-mixed", "stabilizer=sns"} <= set(one)
    assert [word for word in both[0] if "master-port" in word] == [word for word in both[1] if "master-port" in word]


def test_differences_of_two_runs():
    one = [
        {"epoch": 0, "loss": None, "clean_accuracy": 0.5, "robust_accuracy": 0.25},
        {"epoch": 1, "loss": 2.0, "clean_accuracy": 0.5, "robust_accuracy": 0.5},
    ]
    two = [one[0], {**one[1], "loss": 1.5, "robust_accuracy": 0.75}]
    expected = {"loss": 0.5, "clean_accuracy": 0.0, "robust_accuracy": 0.25}
    assert two_processes.largest_differences(one, two) == expected


def test_spread_of_times():
    assert step_times.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "median": 3.0,
        "lower_quartile": 2.0,
        "upper_quartile": 4.0,
        "n": 5,
    }


def test_epochs_without_a_file_and_with_one(tmp_path):
    assert commands.epochs_of(tmp_path) == []
    columns = ["epoch", "train/loss", "validation/clean_accuracy", "validation/robust_accuracy"]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, [0, "", 0.5, 0.25], [1, 1.5, 0.75, 0.5]])
    assert commands.epochs_of(tmp_path)[0] == {
        "epoch": 0,
        "loss": None,
        "clean_accuracy": 0.5,
        "robust_accuracy": 0.25,
    }


# ---------------------------------------------------------------- whole, on the CPU

# what a machine that has torch, Lightning and hydra may lack
WITHOUT = """
from importlib.machinery import PathFinder

MISSING = ("wandb", "foolbox", "pyautoattack", "sklearn", "tensorboard", "pandas", "timm")
find_spec = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in MISSING else find_spec(name, *rest)
)
"""


@pytest.mark.slow
def test_the_whole_script_on_a_cpu_that_lacks_what_may_be_missing(tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    two_processes.write_images(tmp_path / "data", TINY)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path / "without")}
    environment |= {"NSR_GPU_TINY": "1", "CUDA_VISIBLE_DEVICES": ""}
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):  # ten processes would compile torch anew
        environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "pycache")
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(out), str(tmp_path / "data")]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-5000:]
    assert (out / "gpu.log").read_text() == done.stdout
    record = figures(out)
    parts = record["parts"]
    assert list(parts) == PARTS
    assert record["machine"]["not_installed"][:2] == ["wandb", "foolbox"]
    assert record["machine"]["gpu"] is None and record["tiny"]
    assert all(part["seconds"] > 0 and "failed" not in part for part in parts.values()), parts

    tests = parts["gpu_tests"]["tests"]
    assert tests == {"passed": 0, "failed": 0, "skipped": tests["skipped"]} and tests["skipped"] >= 7
    for row in (parts["sensitivities"][name] for name in ("float64", "float32")):
        assert row["attack_and_measure"]["largest_relative_difference"] <= row["attack_and_measure"]["bound"]
        assert row["layers"] == 4
    assert parts["compiled_taps"]["default"]["largest_relative_difference"] <= 1e-4
    assert parts["compiled_taps"]["cuda_graphs"] == {"skipped": "CUDA graphs need a GPU"}
    assert "skipped" in parts["two_processes"] or parts["two_processes"]["two_processes"]
    for name in step_times.VARIANTS:
        assert parts["step_times"][name]["step_ms"]["n"] == 2
        assert parts["step_times"][name]["ratio_to_floor"] > 0
    for name in training.TRAININGS:
        assert [row["epoch"] for row in parts["training"][name]["validation"]] == [0, 1]
        assert set(parts["training"][name]["test"]) == {"clean_accuracy", "pgd_accuracy"}
        assert len(parts["training"][name]["seconds_of_epochs"]) == 1
