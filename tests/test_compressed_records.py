"""sensitivity.csv.gz, of many neurons and epochs: the same rows as sensitivity.csv, and damage in one line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pandas
import pytest

from nsr.compare import main, read_runs
from nsr.errors import InputError
from nsr.report.files import read_files
from nsr.run import files
from nsr.run.files import COMPRESSED, append_rows, layer_means, sensitivity_file, whole_rows
from nsr.run.resumption import remove_records
from nsr.run.signals import Interrupted
from tests.made_runs import make_run
from tests.test_resumption import ask_to_end, run
from tests.test_sensitivity_logger import fit, sensitivity_logger


@pytest.fixture
def compressed(tmp_path) -> Path:
    """A made run whose sensitivities are compressed, a member for each epoch."""
    directory = make_run(tmp_path / "run", "stabilizer=none", epochs=12, best=1)
    frame = pandas.read_csv(directory / "sensitivity.csv")
    (directory / "sensitivity.csv").unlink()
    for _, rows in frame.groupby("epoch"):
        append_rows(directory / COMPRESSED, list(frame), rows.to_numpy(dtype=object).tolist())
    return directory


def test_the_same_rows_as_a_plain_file(compressed, tmp_path):
    plain = make_run(tmp_path / "plain", "stabilizer=none", epochs=12, best=1) / "sensitivity.csv"
    packed = compressed / COMPRESSED
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()  # any tool reads all members
    for starting in ("", "0,", "1,", "12,", "13,"):
        assert list(whole_rows(packed, starting=starting)) == list(whole_rows(plain, starting=starting))
    assert layer_means(packed, 1) == layer_means(plain, 1) != layer_means(plain, 12)
    one, other = (read_runs(path.parent).iloc[0] for path in (plain, packed))
    assert other["absolute/relu1"] == one["absolute/relu1"] > 0 and other["detail"] == ""
    pages = [read_files(path.parent) for path in (plain, packed)]
    assert pages[0].neurons(1).equals(pages[1].neurons(1)) and len(pages[1].neurons(1)) == 5
    assert not pages[1].problems


def test_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    for name, moment in (("one.csv.gz", 1e9), ("two.csv.gz", 2e9)):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        append_rows(tmp_path / name, ["epoch"], [[0]])
        append_rows(tmp_path / name, ["epoch"], [[1]])
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_every_cut_is_one_line_or_whole_epochs(compressed):
    packed = compressed / COMPRESSED
    content, rows, ends = packed.read_bytes(), list(whole_rows(packed)), [0]
    for epoch in range(13):
        ends.append(ends[-1] + len(gzip.compress(member(rows, epoch), mtime=0)))
    assert ends[-1] == len(content)
    for end in sorted({*range(30), *range(30, len(content), 13), *ends[:-1]}):
        packed.write_bytes(content[:end])
        if end in ends:
            assert list(whole_rows(packed)) == [row for row in rows if int(row["epoch"]) < ends.index(end)]
        else:
            with pytest.raises(InputError, match=r"^sensitivity.csv.gz ends within a gzip member: it is cut short"):
                list(whole_rows(packed))


def member(rows: list[dict[str, str]], epoch: int) -> bytes:
    lines = [",".join(row.values()) for row in rows if row["epoch"] == str(epoch)]
    return "".join(f"{line}\n" for line in ([",".join(rows[0])] if epoch == 0 else []) + lines).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"\x1f", "ends within a gzip member: it is cut short, or still being written"),
        (lambda content: b"epoch,layer\n", "is damaged: Error -3 while decompressing data: incorrect header check"),
        (lambda content: content[:-8] + b"\0" * 8, "incorrect data check"),
        (lambda content: content + b"\0\0", "is damaged: Error -3 while decompressing data"),
        (lambda content: gzip.compress(b"\xff\n"), "sensitivity.csv.gz is damaged: UnicodeDecodeError"),
        (lambda content: gzip.compress(b"epoch,layer\n1,a\n"), "sensitivity.csv.gz is damaged: KeyError 'absolute'"),
        (lambda content: gzip.compress(b"a" * 2000), "a gzip member holds more than 1,000 bytes"),
    ],
)
def test_damage_is_one_line_everywhere(compressed, capsys, monkeypatch, damage, message):
    packed = compressed / COMPRESSED
    packed.write_bytes(damage(packed.read_bytes()))
    if "1,000 bytes" in message:
        monkeypatch.setattr(files, "LARGEST_MEMBER", 1000)
    row = read_runs(compressed).iloc[0]
    assert row["status"] == "finished" and message in row["detail"] and "\n" not in row["detail"]
    assert row["pgd_accuracy"] == 0.5  # the other files stand
    assert main([str(compressed)]) == 0 and "Traceback" not in "".join(capsys.readouterr())
    page = read_files(compressed)
    if "KeyError" not in message:  # the page shows the columns that are there
        assert page.neurons(1).empty and page.problems[-1].startswith("sensitivity.csv.gz is damaged: ")


def test_which_file_is_decided_before_training(tmp_path, monkeypatch, capsys):
    assert sensitivity_file(tmp_path, 999_999).name == "sensitivity.csv"
    assert sensitivity_file(tmp_path, 1_000_000).name == COMPRESSED
    monkeypatch.setattr("nsr.run.files.COMPRESSED_FROM", 18)  # 6 neurons, epochs 0, 1 and 2
    fit(tmp_path / "many", sensitivity_logger())
    assert f"sensitivities are written to {COMPRESSED}: 18 rows, compressed from" in capsys.readouterr().out
    assert not (tmp_path / "many" / "sensitivity.csv").exists()
    fit(tmp_path / "few", sensitivity_logger(), max_epochs=1)
    assert [row["epoch"] for row in whole_rows(tmp_path / "many" / COMPRESSED)] == [*"000000111111222222"]
    assert (tmp_path / "few" / "sensitivity.csv").exists() and COMPRESSED not in os.listdir(tmp_path / "few")
    remove_records(tmp_path / "many")
    assert not (tmp_path / "many" / COMPRESSED).exists()


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    choice = ["train_attack.steps=1", "stabilizer=none", "report=false"]
    monkeypatch.setattr("nsr.run.files.COMPRESSED_FROM", 1)
    run(tmp_path / "whole", *choice)
    expected = (tmp_path / "whole" / COMPRESSED).read_bytes()
    with monkeypatch.context() as patch:
        ask_to_end(patch, "training_step", 10)  # in the third epoch
        with pytest.raises(Interrupted):
            run(tmp_path / "run", *choice)
    monkeypatch.setattr("nsr.run.files.COMPRESSED_FROM", 10**9)  # a run keeps the kind that it has
    packed = tmp_path / "run" / COMPRESSED
    with packed.open("ab") as file:
        file.write(expected[:100])  # half a member, after the checkpoint
    run(tmp_path / "run", *choice)
    assert packed.read_bytes() == expected
    assert not (tmp_path / "run" / "sensitivity.csv").exists()
