"""Relative paths of a run's data from another working directory: as typed, then absolute, refused where it is other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nsr.data import origin as origins
from nsr.data.origin import data_origin, found_again
from nsr.errors import InputError
from nsr.run.directory import changes


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run's working directory, with a folder of images (their bytes are not decoded here) and a file."""
    here = tmp_path / "run"
    for split in ("train", "test"):
        for name in "ab":
            (here / "photos" / split / name).mkdir(parents=True)
            (here / "photos" / split / name / "0.png").write_bytes(f"{split} {name}".encode())
    (here / "digits.npz").write_bytes(b"arrays")
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("typed", ["photos", "digits.npz", "./photos/"])
def test_elsewhere_the_absolute_path_is_taken(typed, run, tmp_path, monkeypatch):
    origin = data_origin({"root": typed, "_target_": "photos", "image_size": 8, "augmentation": "none"})
    assert list(origin) == ["root"] and found_again("root", typed, origin["root"]) == typed
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert Path(found_again("root", typed, origin["root"])) == run / typed
    shutil.move(run, tmp_path / "gone")
    assert found_again("root", typed, origin["root"]) == typed  # reported as missing by the data set
    monkeypatch.chdir(tmp_path / "gone")
    assert found_again("root", typed, origin["root"]) == typed


def test_a_large_file_takes_a_bounded_time(tmp_path, monkeypatch):
    """Its size and blocks of it are compared, the first and the last among them."""
    monkeypatch.setattr(origins, "WHOLE", 1000)
    monkeypatch.setattr(origins, "BLOCK", 10)
    path, before = tmp_path / "x.npz", bytes(range(250)) * 40
    path.write_bytes(before)
    known = origins.content(path)
    for changed in (b"x" + before[1:], before[:-1] + b"x", before + b"x", before[:-1]):
        path.write_bytes(changed)
        assert origins.content(path) != known
    path.write_bytes(before)
    assert origins.content(path) == known
    read = []
    digest = origins.hashlib.sha256

    class Counted:
        def __init__(self):
            self.digest = digest()

        def update(self, block):
            read.append(len(block))
            self.digest.update(block)

        def hexdigest(self):
            return self.digest.hexdigest()

    monkeypatch.setattr(origins.hashlib, "sha256", Counted)
    assert origins.content(path) == known and sum(read) <= 10 * origins.BLOCKS + len(str(len(before)))


@pytest.mark.parametrize("change", ["content", "name", "more", "layout", "file"])
def test_other_content_under_the_same_name_is_refused(change, run, tmp_path, monkeypatch):
    typed = "digits.npz" if change == "file" else "photos"
    origin = data_origin({"root": typed})["root"]
    shutil.copytree(run, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    assert found_again("root", typed, origin) == typed  # a copy is the same
    first = Path("photos/test/a/0.png")
    if change == "content":
        first.write_bytes(b"another")
    elif change == "name":
        first.rename(first.with_name("1.png"))
    elif change == "more":
        shutil.copy(first, first.with_name("1.png"))
    elif change == "layout":
        shutil.rmtree("photos")
        Path("photos").mkdir()
    else:
        Path(typed).write_bytes(b"others")
    with pytest.raises(InputError, match=f"holds other content than the run's in {run / typed}; give data.root") as no:
        found_again("root", typed, origin)
    assert "\n" not in str(no.value)


def test_a_part_that_both_have_is_compared(run, tmp_path, monkeypatch):
    origin = data_origin({"root": "photos"})["root"]
    shutil.copytree(run / "photos" / "test", tmp_path / "other" / "photos" / "test")
    monkeypatch.chdir(tmp_path / "other")
    assert found_again("root", "photos", origin) == "photos"


@pytest.mark.parametrize("origin", [None, 3, {}, {"path": 3}, {"path": "/nowhere"}, {"path": "/nowhere", "content": 3}])
def test_a_checkpoint_with_something_else(origin, run):
    assert found_again("root", "photos", origin) == "photos"
    assert found_again("root", str(run), origin) == str(run) and found_again("root", None, origin) is None


def test_absolute_paths_are_not_recorded(run):
    assert data_origin({"root": str(run / "photos"), "path": "nothing", "other": "~/photos", "empty": ""}) == {}


def test_a_run_is_resumed_with_data_that_moved_not_with_others(run, tmp_path, monkeypatch):
    before = {"data": {"root": "photos"}, "data_origin": data_origin({"root": "photos"})}
    shutil.copytree(run, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    now = {"data": {"root": "photos"}, "data_origin": data_origin({"root": "photos"})}
    assert changes(before, now) == changes({"data": {"root": "photos"}}, now) == {}
    Path("photos/test/a/0.png").write_bytes(b"another")
    now["data_origin"] = data_origin({"root": "photos"})
    assert list(changes(before, now)) == ["data_origin.root.content.test"]
