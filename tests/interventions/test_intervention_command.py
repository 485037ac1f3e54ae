"""`evaluate.py analyses=[interventions]`: the rows of the Python call, files, plots, messages, own analyses."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from omegaconf import open_dict

from nsr.app.evaluate import evaluate
from nsr.errors import InputError
from nsr.interventions import AnalysisContext, Interventions, intervene
from nsr.interventions.experiment import progress_bar
from tests.conftest import evaluated, job, made, rows

SMALL = {"fractions": [0.5], "n_random_sets": 3, "n_bootstrap": 100}


@pytest.fixture
def command(best) -> list[str]:
    small = [f"analysis.interventions.{name}={value}" for name, value in SMALL.items()]
    chosen = ["test_attacks=[clean]", "checks.enabled=false", "evaluation.n_examples=60", "analyses=[interventions]"]
    return [best, *chosen, *small]


@pytest.mark.slow
def test_the_command_writes_what_the_call_returns(command, tmp_path, capsys):
    command += ["epsilon=0.1", "data.evaluation_batch_size=20", "seed=3"]
    evaluated(tmp_path / "run", *command)
    shown = capsys.readouterr().out
    again = made("evaluate", *command)
    data, module = again.data, again.module
    data.setup("test")
    data.limit_test(60, "balanced")
    images, labels = data.test_set.__getitems__(range(60))
    attack, settings = module.suite.sensitivity_attack, Interventions(**SMALL, seed=3)
    expected = intervene(module.net, images, labels, attack, settings=settings, root=module.net.net, batch_size=20)
    written = rows(tmp_path / "run" / "interventions.csv")
    assert [row["layer"] for row in written] == [row.layer for row in expected.rows]
    for row, each in zip(written, expected.rows, strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in asdict(each).items()}
    content = json.loads((tmp_path / "run" / "interventions.json").read_text())
    assert content["images"] == expected.images
    assert content["settings"]["epsilon"] == 0.1
    layers = [layer.name for layer in module.extractor.layers]
    assert list(content["layers"]) == layers
    plots = {path.name for path in (tmp_path / "run" / "interventions").iterdir()}
    assert plots == {f"{name}.{kind}" for name in ("network", *layers) for kind in ("png", "pdf")}
    tables = ("patch_clean: % of", "patch_adversarial: % of", "minus each control")
    for text in (*tables, *layers, "interventions  100 %", "written to"):
        assert text in shown


@pytest.mark.slow
def test_selected_layers_without_a_fooled_image(command, tmp_path, capsys):
    kinds = "analysis.interventions.kinds=[patch_adversarial,zero_ablation]"
    layers = "analysis.interventions.layers=[relu1,relu4]"
    evaluated(tmp_path / "run", *command, "epsilon=0", kinds, layers)
    shown = capsys.readouterr().out
    assert "interventions  no patch_adversarial: none of the" in shown
    assert "zero_ablation: % of" in shown
    written = rows(tmp_path / "run" / "interventions.csv")
    assert {row["kind"] for row in written} == {"zero_ablation"}
    assert {row["layer"] for row in written} == {"relu1", "relu4"}


def test_no_fooled_image_is_reported_and_not_drawn(command, tmp_path, capsys):
    evaluated(tmp_path / "run", *command, "epsilon=0")
    shown = capsys.readouterr().out
    assert "interventions  nothing measured: none of the" in shown
    assert "patch_clean needs one that is: take a larger epsilon" in shown
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert not list((tmp_path / "run").glob("interventions*"))


class MeanLogit:
    """An analysis as a user writes it."""

    def run(self, context: AnalysisContext):
        images, labels = next(iter(context.batches(torch.arange(8))))
        with torch.no_grad():
            logits = context.net(context.attack(context.net, images, labels))
        (context.directory / "mine.txt").write_text(f"{logits.mean():.6f}")
        return [f"mine  {len(context.labels)} images, {len(context.layers)} layers"]


@pytest.mark.parametrize(("name", "message"), [("MeanLogit", None), ("NoAnalysis", "it must have a method run")])
def test_an_analysis_of_the_users_own(command, tmp_path, capsys, name, message):
    config = job("evaluate", tmp_path / "run", *(word for word in command if "analys" not in word))
    with open_dict(config):
        config.analysis = {"mine": {"_target_": f"{__name__}.{name}"}}
    if message:
        with pytest.raises(InputError, match=message):
            evaluate(config)
        return
    evaluate(config)
    assert "mine  60 images, 4 layers" in capsys.readouterr().out
    assert (tmp_path / "run" / "mine.txt").exists()


class NoAnalysis:
    """An object that is no analysis."""


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (7, 1), (10, 1), (333, 1), (300, 15)])
def test_progress_without_a_terminal_is_a_row_per_tenth(total, steps, capsys):
    with progress_bar("interventions", total) as advance:
        for _ in range(total // steps):
            advance(steps)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == min(total, 10)
    assert lines[-1] == "interventions  100 %"
