"""`evaluate.py analyses=[interventions]`: the rows of the Python call, files, pictures, what is told in one line."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict

import pytest

from nsr.app.build import build_data, build_module
from nsr.app.checkpoints import take_over_checkpoint
from nsr.app.command_line import check_command_line
from nsr.app.train import evaluate
from nsr.data import TensorImages
from nsr.interventions import intervene
from nsr.interventions.command import progress_line
from tests.conftest import job

SMALL = [f"analysis.interventions.{setting}" for setting in ("shares=[0.5]", "draws=3", "replicates=100")]


@pytest.fixture
def command(trained) -> list[str]:
    best = trained / "checkpoints" / "best.ckpt"
    return [
        f"checkpoint={best}",
        "attacks=[clean]",
        "alarms.judge=false",
        "limit=60",
        "analyses=[interventions]",
        *SMALL,
    ]


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_writes_what_the_call_returns(command, tmp_path, capsys):
    command += ["epsilon=0.1", "data.evaluation_batch_size=20", "seed=3"]
    config = job("evaluate", tmp_path / "run", *command)
    evaluate(config)
    shown = capsys.readouterr().out
    saved = take_over_checkpoint(config)
    data = build_data(config)
    module = build_module(config, data, saved=saved)
    data.setup("test")
    data.limit_test(60, "balanced")
    images, labels = data.test_set.__getitems__(range(60))
    attack = module.suite.sensitivity_attack
    settings = {"shares": [0.5], "draws": 3, "replicates": 100, "seed": 3, "batch_size": 20, "within": module.net.net}
    expected = intervene(module.net, images, labels, attack=attack, **settings)
    written = rows(tmp_path / "run" / "interventions.csv")
    assert [row["layer"] for row in written] == [row.layer for row in expected.rows]
    for row, each in zip(written, expected.rows, strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in asdict(each).items()}
    content = json.loads((tmp_path / "run" / "interventions.json").read_text())
    assert content["images"] == expected.images
    assert content["settings"]["epsilon"] == 0.1
    layers = [layer.name for layer in module.taps.layers]
    assert list(content["layers"]) == layers
    pictures = {path.name for path in (tmp_path / "run" / "interventions").iterdir()}
    assert pictures == {f"{name}.{kind}" for name in ("network", *layers) for kind in ("png", "pdf")}
    for text in (
        "restore: % of",
        "corrupt: % of",
        "most sensitive set minus each control",
        *layers,
        "interventions  100 %",
        "written to",
    ):
        assert text in shown


def test_no_layer_but_those_that_are_asked_for(command, tmp_path):
    evaluate(job("evaluate", tmp_path / "run", *command, "analysis.interventions.layers=[relu1,relu4]", "epsilon=0.1"))
    assert {row["layer"] for row in rows(tmp_path / "run" / "interventions.csv")} == {"relu1", "relu4"}


def test_nothing_fooled_is_said_and_not_drawn(command, tmp_path, capsys):
    evaluate(job("evaluate", tmp_path / "run", *command, "epsilon=0"))
    shown = capsys.readouterr().out
    assert "interventions  nothing measured: none of the" in shown
    assert "is fooled by the attack: nothing to restore; take a larger epsilon" in shown
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert not list((tmp_path / "run").glob("interventions*"))


def test_masks_need_nothing_fooled(command, tmp_path, capsys):
    evaluate(
        job("evaluate", tmp_path / "run", *command, "epsilon=0", "analysis.interventions.kinds=[corrupt,mask_zero]")
    )
    shown = capsys.readouterr().out
    assert "interventions  no corrupt: none of the" in shown
    assert "mask_zero: % of" in shown
    assert {row["kind"] for row in rows(tmp_path / "run" / "interventions.csv")} == {"mask_zero"}


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path, command):
    def check(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            check_command_line("evaluate", [*command, *arguments])
        assert stopped.value.code == 1
        assert sorted(tmp_path.rglob("*")) == before, "something was made"
        text = capsys.readouterr().err
        assert text.count("\n") == 1, text
        return text

    return check


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analysis.interventions.shares=[0.5,1.5]"], "shares entry is 1.5; it must be a number above 0 and at most 1"),
        (["analysis.interventions.shares=[]"], "analysis.interventions.shares is []; it must be a list of shares"),
        (["analysis.interventions.kinds=[restor]"], "kinds entry is 'restor'; it must be one of restore, corrupt"),
        (["analysis.interventions.rankings=activation"], "it must be a list of activation, relative, conductance"),
        (["analysis.interventions.draws=1"], "analysis.interventions.draws is 1"),
        (["analysis.interventions.sahres=[1]"], "did you mean 'analysis.interventions.shares'?"),
        (
            ["analyses=[intervention]"],
            "analyses=[intervention]: there is no such choice (did you mean 'interventions'?)",
        ),
        (
            ["analysis.interventions.layers=[relu9]"],
            "analysis.interventions.layers: no tapped layer matches 'relu9' (did you mean 'relu4'?); tapped are ",
        ),
        (["limit=19"], "19 images are too few for two halves"),
        (["trainer.devices=2", "trainer.accelerator=cpu"], "trainer.devices is 2; analyses work on one"),
    ],
)
def test_what_is_refused_before_anything_is_made(refused, arguments, message):
    assert message in refused(*arguments)


def test_a_small_test_set_is_refused_before_it_is_attacked(command, tmp_path, monkeypatch):
    from nsr.data import ImageData
    from nsr.errors import InputError
    from nsr.evaluation.suite import Suite

    load = ImageData._loaded

    def few(self, split):
        images = load(self, split)
        return TensorImages(images.images[:15], images.labels[:15]) if split == "test" else images

    monkeypatch.setattr(ImageData, "_loaded", few)
    monkeypatch.setattr(Suite, "start", lambda *_: pytest.fail("attacked"))
    config = job("evaluate", tmp_path / "run", *(word for word in command if not word.startswith("limit")))
    with pytest.raises(InputError, match="15 images are too few for two halves"):
        evaluate(config)


@pytest.mark.parametrize("total", [1, 7, 10, 40, 333])
def test_progress_elsewhere_than_on_a_terminal_is_ten_rows(total, capsys):
    with progress_line("interventions", total) as advance:
        for _ in range(total):
            advance()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == min(total, 10)
    assert lines[-1].startswith("interventions  100 %  ")
    assert all(" s left" in line for line in lines)
