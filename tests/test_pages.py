"""Every command and snippet of the pages, as tests/pages.py says; `make docs` checks the links."""

from __future__ import annotations

import re
import shlex
import subprocess
import warnings
from pathlib import Path

import pytest
import yaml

from tests.conftest import image_folder, in_a_process, job
from tests.made_runs import make_run
from tests.pages import (
    PAGES,
    PROGRAMS,
    QUICKER,
    ROOT,
    RUN_ELSEWHERE,
    SHORT,
    Command,
    blocks,
    commands,
    name,
    parsed,
    sessions,
)

COMMANDS = commands()
QUICK = ("README.md", "conf/hydra/help/train.yaml", "conf/hydra/help/evaluate.yaml")
WITH_COMMANDS = [page for page in PAGES if any(kind == "sh" for kind, _ in sessions(page))]
WITH_PYTHON = [
    page
    for page in PAGES
    if page not in WITH_COMMANDS
    and name(page) not in RUN_ELSEWHERE
    and any(kind == "python" for kind, _ in sessions(page))
]


def slow(page: str) -> tuple:
    return () if page in QUICK else (pytest.mark.slow,)


def test_the_pages_have_commands_and_sessions():
    assert len(COMMANDS) > 100 and len(WITH_COMMANDS) >= 5 and len(WITH_PYTHON) >= 5
    assert {command.program for command in COMMANDS} == {*PROGRAMS.values()}
    assert sum(command.needs is None for command in COMMANDS) > len(COMMANDS) / 2
    assert all((ROOT / page).exists() and (ROOT / test).exists() for page, test in RUN_ELSEWHERE.items())


def test_a_shell_reads_every_command():
    lines = [command.typed for command in COMMANDS]
    lines += [step for page in WITH_COMMANDS for kind, step in sessions(page) if kind == "sh"]
    done = subprocess.run(["bash", "-n"], input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), size=32)


def filled(command: Command, *, checkpoint: Path, folder: Path) -> list[str]:
    """The arguments with a checkpoint and a folder of images where the page has placeholders."""
    settings = []
    for argument in command.arguments:
        argument = re.sub(r"(?<=checkpoint=)(\.\.\.|RUN\S*|runs/\S*)", str(checkpoint), argument)
        argument = re.sub("=(FILE|WEIGHTS|IMAGES)", "=/file", argument)
        settings.append(argument.replace("FOLDER", str(folder)))
    return settings


@pytest.mark.parametrize("command", [pytest.param(each, marks=slow(each.page), id=str(each)) for each in COMMANDS])
def test_every_command_is_composed_or_preflighted(command, trained, folder, tmp_path, monkeypatch):
    from nsr.app.command_line import check_command_line
    from nsr.app.composition import compose_checked, jobs, without_null

    monkeypatch.chdir(tmp_path)
    arguments = filled(command, checkpoint=trained / "checkpoints" / "best.ckpt", folder=folder)
    if command.needs is None:
        check_command_line(command.program, arguments)
    else:
        settings = [row for row in arguments if "=" in row and not row.startswith("--") and row != "experiment=bars"]
        for row in jobs(without_null(settings), is_sweep=True):
            compose_checked(command.program, row)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("page", [pytest.param(page, marks=slow(name(page)), id=name(page)) for page in WITH_PYTHON])
def test_every_snippet_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "digits_small_cnn_pgd_sns_seed0" / "2030", best=2)
    names: dict = {"__name__": "page"}
    run_snippets([code for kind, code in sessions(page) if kind == "python"], page, names)
    if page == ROOT / "README.md":
        assert names["loss"].requires_grad and names["sensitivity"].shape == (16,)
        assert "tensor([" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_session_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for kind, content in sessions(page):
        if kind == "python":
            run_snippets([content], page, names)
        else:
            run_command(content, tmp_path)


def run_snippets(snippets: list[str], page: Path, names: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code in snippets:
            exec(compile(code, name(page), "exec"), names)


def run_command(line: str, folder: Path) -> None:
    """Run a command of a `sh` block as its program would, in this process but for a sweep."""
    from nsr import compare
    from nsr.app.composition import compose_checked
    from nsr.app.evaluate import evaluate
    from nsr.app.train import train
    from nsr.report import __main__ as report

    words = shlex.split(line)
    for module, main in (("nsr.compare", compare.main), ("nsr.report", report.main)):
        if words[:3] == ["python", "-m", module]:
            assert main([*words[3:], *SHORT[module.partition(".")[2]]]) == 0, line
            return
    command = parsed("", line)
    assert command is not None, line
    typed = [word for word in command.arguments if "=" in word]
    attacks = "|".join(QUICKER)
    short = [re.sub(rf"(?<=[\[,])({attacks})(?=[\],])", lambda name: QUICKER[name[0]], word) for word in typed]
    short += SHORT[command.program]
    if "-m" in command.arguments:
        done = in_a_process(f"{command.program}.py", "-m", *short, folder=folder)
        assert done.returncode == 0, done.stderr
        return
    directory = Path(compose_checked(command.program, typed).hydra.run.dir)
    if not {"--help", "--cfg"} & {*command.arguments}:
        {"train": train, "evaluate": evaluate}[command.program](job(command.program, directory, *short))


def test_yaml_blocks_are_yaml():
    found = [content for page in PAGES for language, content in blocks(page) if language == "yaml"]
    assert len(found) >= 3 and all(isinstance(yaml.safe_load(content), dict) for content in found)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", text, flags=re.MULTILINE))
    assert {"train", "test", "docs"} <= named <= targets
