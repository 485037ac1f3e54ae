"""Run directories and checkpoints from others run nothing, and exhaust nothing; own runs resume with nothing typed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import nsr
from nsr.app.allowlist import admitted
from nsr.app.command_line import one_line_errors
from nsr.app.composition import compose_checked, plain, without_hydra
from nsr.app.evaluate import evaluate
from nsr.app.job import make_job
from nsr.app.third_party import admitted_command
from nsr.compare import read_runs
from nsr.comparison.reading import read_run
from nsr.errors import InputError
from nsr.models.build import Allocations
from nsr.models.weights import read_checkpoint
from nsr.run.directory import DEEPEST, find_runs
from nsr.run.own import is_own, is_trusted, remember, trusted_names
from nsr.run.processes import tolerate_closed_streams
from nsr.run.resumption import earlier_run, resumed_command
from nsr.run.signals import Interrupted, interruptible
from tests.conftest import job


@pytest.fixture
def theirs(trained, tmp_path, monkeypatch) -> Path:
    """A copy of a run that another user started, who has not finished it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    directory = tmp_path / "theirs"
    shutil.copytree(trained, directory)
    (directory / "metrics.json").unlink()
    return directory


def change(directory: Path, dotted: str, value: object) -> None:
    """Set one value of config.yaml."""
    content = yaml.safe_load((directory / "config.yaml").read_text())
    *road, last = dotted.split(".")
    part = content
    for name in road:
        part = part.setdefault(name, {})
    part[last] = value
    (directory / "config.yaml").write_text(yaml.safe_dump(content))


COMMANDS = [
    "+callbacks.x._target_=os.mkdir",
    "hydra.job.env_set.LD_PRELOAD=/tmp/evil.so",
    "hydra.searchpath=[file:///tmp/evil]",
    "hydra.job_logging.handlers.file.filename=/tmp/evil.log",
    "hydra.run.dir=/tmp/evil",
    "hydra/launcher=evil",
    "model=../../tmp/evil",
]


def test_a_recorded_command_of_another_is_never_used(theirs):
    marker = json.loads((theirs / "status.json").read_text())
    (theirs / "status.json").write_text(json.dumps({**marker, "status": "failed", "overrides": COMMANDS}))
    change(theirs, "overrides", COMMANDS)
    change(theirs, "choices.model", "../../tmp/evil")
    change(theirs, "hydra", {"job": {"chdir": True}, "verbose": True})  # numbers, as other settings that are not ours
    command = resumed_command([f"resume={theirs}"], admitted_command)
    names = {entry.lstrip("+~").partition("=")[0] for entry in command}
    assert not any("evil" in entry or "callbacks" in entry for entry in command)
    assert {name for name in names if name.startswith("hydra")} == {"hydra.run.dir"}
    evaluation = theirs / "evaluations" / "1"
    evaluation.mkdir(parents=True)
    marker = {"status": "failed", "program": "evaluate.py", "overrides": COMMANDS}
    (evaluation / "status.json").write_text(json.dumps(marker))
    printed = read_run(theirs).command
    assert "best.ckpt" in printed and not any(row in printed for row in COMMANDS)


def test_the_admitted_settings_are_those_of_the_run(theirs):
    change(theirs, "seed", 3)
    change(theirs, "optimizer.amsgrad", True)  # a setting that conf/ does not have
    change(theirs, "logger", {"x": {"_target_": "os.mkdir"}})
    change(theirs, "trusted", ["os.mkdir"])
    command = resumed_command([f"resume={theirs}"], admitted_command)
    config = compose_checked("train", command)
    assert list(config.logger) == ["csv"] and config.trusted == []
    found = earlier_run(theirs, make_job(without_hydra(config), "train").record, resume=str(theirs), changed=False)
    assert found.checkpoint == theirs / "checkpoints" / "last.ckpt"  # and no setting differs
    assert OverridesParser.create().parse_overrides(command)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("callbacks.x", {"_target_": "os.mkdir", "path": "/tmp/evil"}, "its callbacks.x is os.mkdir, which is none of"),
        ("callbacks.x", {"_target_": "nsr.loggers.csv.csv_logger", "save_dir": "/"}, "which is none of the classes"),
        ("model._target_", "os.mkdir", "its model is os.mkdir, which is none of"),
        ("data._target_", "os.mkdir", "its data is os.mkdir, which is none of"),
        ("module", {"_target_": "os.mkdir"}, "its module is os.mkdir"),
        ("metrics.x", {"_target_": "os.mkdir"}, "its metrics.x is os.mkdir"),
        ("trainer.profiler", {"_target_": "os.mkdir"}, "its trainer.profiler is os.mkdir"),
        ("trainer.default_root_dir", "/tmp/evil", "settings that conf/ does not have must be numbers"),
        ("trainer.profiler", "simple", "settings that conf/ does not have must be numbers"),
        ("optimizer._args_", ["a"], "has _args_, which is hydra's: refused"),
        ("trainer._partial_", True, "has _partial_, which is hydra's: refused"),
        ("test_attacks.pgd._target_", "nsr.run.files.write_text", "its test_attacks.pgd is nsr.run.files.write_text"),
        ("name", "${oc.env:HOME}", "settings that look something up are refused"),
        ("checks.a b", 1, "has the key 'a b'"),
        ("objective", None, "config.yaml has no objective"),
    ],
)
def test_settings_of_another_are_refused_in_one_line(theirs, place, value, message):
    change(theirs, place, value)
    with pytest.raises(InputError) as caught:
        resumed_command([f"resume={theirs}"], admitted_command)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert f"{theirs} is a run that this user did not start" in str(caught.value)


def test_links_in_the_directory_of_another_are_refused(theirs, tmp_path):
    (theirs / "metrics.csv").unlink()
    (theirs / "metrics.csv").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(InputError, match=r"metrics.csv is a link"):
        resumed_command([f"resume={theirs}"], admitted_command)


def test_a_pipe_in_the_directory_of_another_is_refused(theirs):
    os.mkfifo(theirs / "checkpoints" / "previous.ckpt.partial")
    with pytest.raises(InputError, match=r"previous.ckpt.partial is neither a file nor a folder"):
        resumed_command([f"resume={theirs}"], admitted_command)


def test_no_file_beside_the_run_is_written_to_through_a_link(theirs, tmp_path):
    """Not even where config.yaml is the same as that of an own run, which the default command's is."""
    (tmp_path / "mine.txt").write_text("mine")
    (theirs / "train.log").unlink(missing_ok=True)
    (theirs / "train.log").symlink_to(tmp_path / "mine.txt")
    content = yaml.safe_load((theirs / "config.yaml").read_text())
    remember(content)
    with pytest.raises(InputError, match=r"train.log is a link; resuming would write to .*mine.txt"):
        earlier_run(theirs, content, resume=str(theirs), changed=False)


def test_an_own_run_resumes_with_its_command_until_its_config_is_edited(theirs):
    content = yaml.safe_load((theirs / "config.yaml").read_text())
    remember(content)
    command = resumed_command([f"resume={theirs}"], admitted_command)
    assert command[: len(content["overrides"])] == content["overrides"]
    change(theirs, "overrides", ["hydra.job.env_set.A=b"])
    assert "hydra.job.env_set.A=b" not in resumed_command([f"resume={theirs}"], admitted_command)


def test_a_run_of_this_user_is_remembered(trained):
    assert is_own(yaml.safe_load((trained / "config.yaml").read_text()))
    assert is_own(torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["nsr_settings"])
    assert not is_own({"data": {}}) and not is_own({1: 2, "a": object}) and not is_own(None)


def test_a_user_without_a_home_remembers_nothing(monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    remember({"a": 1})
    assert not is_own({"a": 1}) and trusted_names(["a.B"]) == ["a.B"]


def test_who_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert trusted_names(["a.B"]) == ["a.B"]
    (tmp_path / "nsr").mkdir()
    (tmp_path / "nsr" / "trusted").write_text("# of the group\nlab.*  # all\n\nother.Net\n")
    assert trusted_names(["a.B"]) == ["a.B", "lab.*", "other.Net"]
    names = ["lab.*", "other.Net"]
    assert is_trusted("lab.nets.Net", names) and is_trusted("other.Net", names)
    assert not any(is_trusted(name, names) for name in ("laboratory.Net", "lab", "other.Net2", "other.Net.forward"))


def test_a_trusted_package_is_what_it_defines_not_what_it_imports(tmp_path, monkeypatch):
    (tmp_path / "lab_nets").mkdir()
    (tmp_path / "lab_nets" / "__init__.py").write_text("from lab_nets.net import Net")
    (tmp_path / "lab_nets" / "net.py").write_text("import os\nfrom os import system\nclass Net: pass\nrun = eval\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lab_nets.Net", "lab_nets.net.Net"):
        assert admitted("model", {"_target_": name}, trusted=["lab_nets.*"]) == {"_target_": name}
    for name in ("net.os.system", "net.system", "net.os.path.os.mkdir", "net.run", "net.Net.__init_subclass__"):
        with pytest.raises(InputError, match="which is none of the networks of nsr"):
            admitted("model", {"_target_": f"lab_nets.{name}"}, trusted=["lab_nets.*"])
    named = {"_target_": "lab_nets.net.system"}
    assert admitted("model", named, trusted=["lab_nets.net.system"]) == named


def test_a_trusted_class_of_another_resumes(theirs):
    change(theirs, "callbacks.x", {"_target_": "mypackage.Mine", "path": "anything"})
    command = resumed_command([f"resume={theirs}", "trusted=['mypackage.*']"], admitted_command)
    assert "++callbacks={x:{_target_:mypackage.Mine,path:anything}}" in command


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_run_without_settings_is_never_trained_over(theirs, damage):
    (theirs / "config.yaml").unlink() if damage == "missing" else (theirs / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=f"holds a run whose config.yaml is {damage}; set hydra.run.dir to another"):
        earlier_run(theirs, {}, resume="auto", changed=True)


def bomb() -> str:
    """Write 9**9 values in a few bytes."""
    rows = [f"a{index}: &a{index} [{','.join([f'*a{index - 1}'] * 9)}]" for index in range(1, 10)]
    return "\n".join(["a0: &a0 [1]", *rows])


def merge_bomb() -> str:
    """Merge 9**9 keys in a few bytes."""
    rows = [f"a{index}: &a{index} {{<<: [{','.join([f'*a{index - 1}'] * 9)}]}}" for index in range(1, 10)]
    return "\n".join(["a0: &a0 {b: 1}", *rows])


@pytest.mark.parametrize("damage", ["pipe", "images", "merge", "tag", "number", "bomb", "deep", "class"])
def test_one_bad_run_hides_no_other(theirs, trained, damage):
    if damage == "pipe":
        (theirs / "metrics.csv").unlink()
        os.mkfifo(theirs / "metrics.csv")
    elif damage == "images":
        shutil.copy(trained / "metrics.json", theirs)
        (theirs / "images.csv").unlink(missing_ok=True)
        os.mkfifo(theirs / "images.csv")
    elif damage == "class":
        change(theirs, "norm", {"_target_": "os.mkdir"})
        shutil.copy(trained / "metrics.json", theirs)
    else:
        texts = {"bomb": bomb(), "merge": merge_bomb(), "tag": "a: !!int ''", "number": f"a: 1{':59' * 400}.5"}
        (theirs / "config.yaml").write_text(texts.get(damage, "[" * 20_000))
    table = read_runs(trained, theirs, allow_different=True)
    assert list(table["run"]) == [str(trained), str(theirs)] and table["status"][0] == "finished"
    assert not any("os.mkdir" in command for command in table["command"])


def test_runs_are_looked_for_in_few_folders_below_each_other(theirs, tmp_path):
    """A chain of folders, of links too, ends neither in an error nor in an endless search."""
    folder = (tmp_path / "sweep").joinpath(*"a" * (DEEPEST - 1))
    folder.mkdir(parents=True)
    theirs.rename(folder / "run")
    assert find_runs([tmp_path / "sweep"]) == [folder / "run"]
    (folder / "b").mkdir()
    (folder / "run").rename(folder / "b" / "run")
    with pytest.raises(InputError, match="holds no run"):
        find_runs([tmp_path / "sweep"])


def test_a_signal_of_a_closed_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with interruptible() as signals:
            signals.patient = True
            for _ in range(2):  # the shell's and the system's own
                os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGHUP and Interrupted(signals.received).exit_code == 129
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_goes_away_ends_nothing(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", io.StringIO())  # a caller's own stays
        tolerate_closed_streams()
        os.close(reader)
        print("nobody reads this", flush=True)
        sys.stdout.close()


def test_places_that_are_no_paths_are_refused(tmp_path):
    with pytest.raises(InputError, match="a place is a list; it must be a path; a list is given as"):
        read_runs([tmp_path, tmp_path])


@pytest.mark.parametrize("name", ["stdout", "stderr", "stdin"])
def test_a_stream_that_was_closed_is_nowhere(name):
    """As `>&-` closes it: no file that is opened later gets its number, and what asks for a terminal gets an answer."""
    number = ["stdin", "stdout", "stderr"].index(name)
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(nsr.__file__).parents[1])!r})
from nsr.run.processes import tolerate_closed_streams
tolerate_closed_streams()
assert sys.{name} is not None and not sys.{name}.isatty()
assert os.open({__file__!r}, os.O_RDONLY) > 2
print("dropped where stdout is closed", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=lambda: os.close(number), stdout=None, stderr=None, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "worker (pid(s) 7) exited unexpectedly; killed, or out"),
        ("[gloo/pair.cc:5] Connection closed by peer [::1]:2", "another process of this run has ended"),
    ],
)
def test_faults_of_other_processes_are_one_line(text, line, capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise RuntimeError(text)
    printed = capsys.readouterr().err
    assert line in printed and printed.count("\n") == 1
    with pytest.raises(SystemExit), one_line_errors():
        raise RuntimeError("of the user's own code")
    printed = capsys.readouterr().err
    assert "of the user's own code" in printed and line not in printed and printed.count("\n") == 1


# ---------------------------------------------------------------- the machine


def saved_with(trained: Path, path: Path, part: str, **values: object) -> list[str]:
    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    saved["nsr_settings"][part] |= values
    torch.save(saved, path)
    return [f"checkpoint={path}", "test_attacks=[clean]", "trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("model", {"width": 3000}, "a network much larger than its weights"),
        ("data", {"image_size": 200_000}, r"a batch of 250 images of data.image_size=200000 takes"),
    ],
)
def test_settings_in_a_checkpoint_that_would_exhaust_the_machine(trained, tmp_path, part, values, message):
    arguments = saved_with(trained, tmp_path / "theirs.ckpt", part, **values)
    with pytest.raises(InputError, match=message):
        evaluate(job("evaluate", tmp_path / "run", *arguments))


@pytest.mark.parametrize("kind", ["compressed", "overlapping"])
def test_a_checkpoint_that_is_larger_unpacked_is_refused(tmp_path, kind):
    path = tmp_path / "bomb.ckpt"
    torch.save({"weight": torch.zeros(2**20)}, path)
    assert read_checkpoint(path)["weight"].shape == (2**20,)
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(tmp_path / "other", "w", zipfile.ZIP_DEFLATED) as after:
        for part in before.infolist():
            after.writestr(part.filename, before.read(part))
        if kind == "overlapping":
            after.filelist *= 500
    with pytest.raises(InputError, match="is damaged: its list of parts, larger together than the file"):
        read_checkpoint(tmp_path / "other")


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"cannot open .*best.ckpt.*no regular file"):
        read_checkpoint(tmp_path / "best.ckpt")


def test_a_view_of_one_number_is_no_large_network():
    assert Allocations({"a": torch.zeros(1).expand(2**40)}).most < 2**29


def test_a_checkpoint_starts_few_processes_and_downloads_nothing(trained, tmp_path, monkeypatch):
    from nsr.app.network import with_checkpoint

    monkeypatch.setattr("os.cpu_count", lambda: 3)
    arguments = saved_with(trained, tmp_path / "theirs.ckpt", "data", num_workers=5000)
    assert with_checkpoint(without_hydra(compose_checked("evaluate", arguments)))[0]["data"]["num_workers"] == 3
    cifar = plain(without_hydra(compose_checked("train", ["data=cifar10"])))["data"]
    arguments = saved_with(trained, tmp_path / "theirs.ckpt", "data", **{**cifar, "root": str(tmp_path / "none")})
    theirs = without_hydra(compose_checked("evaluate", arguments))
    with pytest.raises(InputError, match=r"CIFAR10 is not in .*download is false.*or data.download=true"):
        make_job(theirs, "evaluate")
    assert not (tmp_path / "none").exists()
    settings = compose_checked("evaluate", [*arguments, "++data.download=true"])  # typed
    assert with_checkpoint(without_hydra(settings))[0]["data"]["download"] is True
