"""The package: its declared versions, what a wheel holds, and its commands in an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
COMMANDS = {f"nsr-{name}": f"nsr.app.main:{name}" for name in ("train", "evaluate")} | {
    "nsr-compare": "nsr.compare:main",
    "nsr-report": "nsr.report.__main__:main",
}
DECLARED = re.findall(r'"([a-z-]+[<>=!~][^"]*)"', (ROOT / "pyproject.toml").read_text())
PINNED = re.findall(r"^[a-z].*$", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)


def run(*command: str | Path, cwd: Path, **settings) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # runs extend it
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ranges_are_declared_and_pinned():
    pins = {}
    for line in PINNED:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line)
        pins.setdefault(line.partition("==")[0], []).append(re.search(r"==([\w.]+)", line)[1])
    for requirement in map(Requirement, DECLARED):
        bounds = {part.operator for part in requirement.specifier}
        if requirement.name != "setuptools":  # of the build
            assert bounds == {">=", "<"}, requirement
            assert all(requirement.specifier.contains(version) for version in pins[requirement.name]), requirement


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree, for a build leaves files behind."""
    made = ("build", "dist", "runs", "datasets", "wandb", "*.egg-info", "__pycache__")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "nsr", ignore=shutil.ignore_patterns(".*", *made))


@pytest.fixture(scope="module")
def built(tree) -> Path:
    """The folder with the source distribution and the wheel that was built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=tree)
    return tree / "dist"


@pytest.fixture
def environment(tmp_path) -> Path:
    """The bin/ of an empty environment that borrows the libraries, but not the checkout, of the running one."""
    venv.create(tmp_path / "venv")
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "venv" / "bin"


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_its_configurations(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        (information,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = message_from_string(file.read(f"{information}/METADATA").decode())
        scripts = file.read(f"{information}/entry_points.txt").decode()
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nsr").rglob("*.py")} | {"nsr/py.typed"}
    expected |= {f"nsr/report/templates/page.{suffix}" for suffix in ("html", "css", "js")}
    expected |= {f"nsr/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*") if path.is_file()}
    expected |= {f"nsr/zoo/{path.name}" for path in (ROOT / "nsr" / "zoo").iterdir() if path.is_file()}
    assert {name for name in names if not name.startswith(information)} == expected
    assert {"nsr/conf/train.yaml", "nsr/conf/hydra/help/train.yaml"} < names
    assert dict(re.findall(r"^(\S+) = (\S+)$", scripts, flags=re.MULTILINE)) == COMMANDS
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{information}/licenses/LICENSE" in names
    assert metadata["Requires-Python"] == "<3.14,>=3.10"
    assert sorted(metadata.get_all("Provides-Extra")) == ["attribution", "dev", "docs", "examples", "models", "sweeps"]
    with tarfile.open(source) as file:
        folders = {name.split("/")[1] for name in file.getnames() if name.count("/") > 1}
    assert folders == {"nsr", "conf", "nsr.egg-info"}


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_the_commands_work_from_any_folder(editable, tree, built, environment, tmp_path):
    what = ["--no-build-isolation", "--editable", tree] if editable else list(built.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "--python", environment / "python")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", *what, cwd=tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    home = Path(run(environment / "python", "-c", "import nsr; print(nsr.__file__)", cwd=folder).strip()).parent
    assert home == (tree / "nsr" if editable else next(environment.parent.glob("lib/*/site-packages/nsr")))
    for command in COMMANDS:
        assert command.partition("-")[2] in run(environment / command, "--help", cwd=folder)
    settings = run(environment / "nsr-train", "--cfg", "job", "model=resnet20", "objective=trades", cwd=folder)
    assert "nsr.models.ResNet" in settings
    assert "nsr.objectives.Trades" in settings
    assert not list(folder.iterdir())
