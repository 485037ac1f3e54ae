"""compile=true: the same run on compiled passes; without a compiler that works, the run without one."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import inventory, residual_net, same_inventory, some_images

from nsr.app import train as assembly
from nsr.attacks import GradientAttack
from nsr.features import FeatureTaps
from nsr.layers import find_layers, is_compiled
from nsr.objectives import AdversarialTraining
from nsr.stabilizer import SensitivityStabilizer
from nsr.training.compilation import Compilation, compile_in_place, try_training, try_validation
from tests.conftest import TINY, job
from tests.test_training import batch, module_of

WHOLE = (*TINY, "trainer.max_epochs=2", "trainer.limit_train_batches=1.0")  # a last batch that is smaller among it


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that runs graphs as they are and counts them; from the graph `broken` on, or in backward, it breaks."""

    def __init__(self, *, broken: int | None = None, broken_backward: bool = False):
        self.broken, self.broken_backward = broken, broken_backward
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        self.count += 1
        if self.broken is not None and self.count > self.broken:
            raise ValueError("no compiler\nin this test")
        if not self.broken_backward:
            return graph.forward
        from torch._dynamo.backends.common import aot_autograd

        return aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=_breaks)(graph, inputs)


def _breaks(graph, inputs):
    raise ValueError("no backward")


def run_with(monkeypatch, directory: Path, backend, *overrides: str) -> Path:
    monkeypatch.setattr(assembly, "Compilation", partial(Compilation, backend))
    assembly.train(job("train", directory, *overrides, "compile=true"))
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A run without compiler, of two whole epochs."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("plain") / "run"
    assembly.train(job("train", directory, *WHOLE))
    return directory


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_run(one: Path, other: Path) -> None:
    """Every record and every weight, bit by bit."""
    for name in ("metrics.csv", "sensitivity.csv", "metrics.json"):
        assert (one / name).read_text() == (other / name).read_text(), name
    for name in ("best.ckpt", "last.ckpt"):
        states = [torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"] for run in (one, other)]
        assert list(states[0]) == list(states[1])
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), name


# ---------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_compiled_run_is_the_run_and_takes_no_more_graphs_than_kinds_of_passes(tmp_path, monkeypatch, plain, caplog):
    limit, graphs = torch._dynamo.config.recompile_limit, Graphs()
    calls = []
    monkeypatch.setattr(assembly, "test_best_and_last", _watched(assembly.test_best_and_last, calls))
    run = run_with(monkeypatch, tmp_path / "run", graphs, *WHOLE)
    same_run(plain, run)
    # the attack's for training and for validation, training's, the stabiliser's, validation's
    assert graphs.count == 5
    assert calls == [False]  # the tests at the end go without
    assert torch._dynamo.config.recompile_limit == limit
    assert "compiler failed" not in caplog.text


def _watched(function, calls):
    def call(trainer, module, *arguments):
        calls.append(is_compiled(module.net))
        return function(trainer, module, *arguments)

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Graphs(broken=2), "no compiler in this test"),
        pytest.param(Graphs(broken=0), "no compiler in this test", marks=pytest.mark.slow),
        pytest.param(Graphs(broken_backward=True), "no backward", marks=pytest.mark.slow),
        pytest.param("no_such_compiler", "no_such_compiler", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_breaks_is_told_once_and_changes_nothing(tmp_path, monkeypatch, plain, caplog, backend, reason):
    same_run(plain, run_with(monkeypatch, tmp_path / "run", backend, *WHOLE))
    told = [record.getMessage() for record in caplog.records if "compile=true" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("compile=true: the compiler failed (") and reason in told[0]
    assert told[0].endswith("); the run goes on without it") and "\n" not in told[0]


@pytest.mark.slow
def test_a_compiler_that_breaks_for_another_process_is_none_for_this_one(tmp_path, monkeypatch, plain, caplog):
    from pytorch_lightning.strategies import SingleDeviceStrategy

    monkeypatch.setattr(SingleDeviceStrategy, "reduce_boolean_decision", lambda self, decision, all=True: False)
    graphs = Graphs()
    same_run(plain, run_with(monkeypatch, tmp_path / "run", graphs, *WHOLE))
    assert graphs.count == 5  # tried, and no more
    assert "(that of another process)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (("callbacks=[awp,ema]", "trainer.precision=bf16-mixed"), 6),  # AWP's own, without taps
        pytest.param(("stabilizer.batch_norm=frozen", "attack.mode=train"), 6, marks=pytest.mark.slow),
        pytest.param(("objective=trades", "trainer.precision=64-true"), 6, marks=pytest.mark.slow),  # TRADES' clean one
    ],
)
def test_settings_that_compile_goes_with(tmp_path, monkeypatch, caplog, settings, count):
    """A backend that runs a graph as it is gives the same run bit by bit; validation is of the averaged weights."""
    assembly.train(job("train", tmp_path / "plain", *TINY, *settings))
    graphs = Graphs()
    same_run(tmp_path / "plain", run_with(monkeypatch, tmp_path / "run", graphs, *TINY, *settings))
    assert graphs.count == count
    assert "compiler failed" not in caplog.text


@pytest.mark.slow
def test_with_torchs_own_compiler(tmp_path, plain, caplog):
    """Sensitivities and figures to float tolerance, the taps alive; the checkpoint is one without compiler."""
    caplog.set_level(logging.INFO, "nsr")
    run = tmp_path / "run"
    assembly.train(job("train", run, *WHOLE, "compile=true"))
    assert "the compiler failed" not in caplog.text
    assert "compile=true: compiled in " in caplog.text
    for name in ("sensitivity.csv", "metrics.csv"):
        tables = [rows(directory / name) for directory in (run, plain)]
        assert len(tables[0]) == len(tables[1])
        for got, expected in zip(*tables, strict=True):
            assert list(got) == list(expected)
            numbers = [key for key, value in got.items() if value and key != "layer"]
            figures = [[float(row[key]) for key in numbers] for row in (got, expected)]
            assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-4)
    assert any(float(row["absolute"]) > 0 for row in rows(run / "sensitivity.csv"))
    best = run / "checkpoints" / "best.ckpt"
    assembly.evaluate(
        job("evaluate", tmp_path / "evaluation", f"checkpoint={best}", "attacks=[clean,fgsm,pgd]", "suite.pgd.steps=2")
    )
    figures = json.loads((run / "metrics.json").read_text())
    repeated = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert repeated == {name: value for name, value in figures.items() if name.startswith("test/")}


# ---------------------------------------------------------------- the network


def generators() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [try_training, try_validation])
def test_trying_it_out_leaves_no_trace(attempt):
    module = module_of(AdversarialTraining(), stabilizer=SensitivityStabilizer())
    module.net.net.bn1.eval()  # frozen by its owner
    before, drawn = inventory(module.net), generators()
    compile_in_place(module.net, sizes=(8,), backend="aot_eager")
    attempt(module, batch(8)[0])
    module.net._compiled_call_impl = None
    same_inventory(before, inventory(module.net))
    assert generators() == drawn
    assert all(parameter.grad is None for parameter in module.net.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_attack_finds_the_same_images(backend):
    net, images = residual_net().double().eval(), some_images(dtype=torch.float64)
    labels = torch.arange(len(images)) % 3
    attack = GradientAttack(epsilon=0.1, steps=3)
    torch.manual_seed(0)
    expected = attack(net, images, labels)
    compile_in_place(net, sizes=(len(images),), backend=backend)
    torch.manual_seed(0)
    torch.testing.assert_close(attack(net, images, labels), expected, rtol=1e-9, atol=1e-9)


def test_only_full_batches_are_compiled():
    net, images = residual_net().eval(), some_images()
    taps = FeatureTaps(net, find_layers(net, images))
    expected = [taps(images[:count])[1] for count in (4, 3)]
    graphs = Graphs()
    compile_in_place(net, sizes=(4,), backend=graphs)
    for count, features in zip((4, 3), expected, strict=True):
        got = taps(images[:count])[1]
        assert list(got) == list(features)
        assert all(torch.equal(value, features[name]) for name, value in got.items())
    assert graphs.count == 1


def test_a_compiler_that_breaks_in_the_middle_of_a_run(caplog):
    """At a kind of pass that was not tried out: nothing is lost, and it is not asked again."""
    net, images = residual_net().train(), some_images()
    twin = residual_net().train()
    twin.load_state_dict(net.state_dict())
    graphs = Graphs(broken=1)
    compile_in_place(net, sizes=(len(images),), backend=graphs)
    for mode in (True, False, True):
        torch.testing.assert_close(net.train(mode)(images), twin.train(mode)(images), rtol=0, atol=0)
    same_inventory(inventory(net), inventory(twin))
    assert graphs.count == 2
    told = [record.getMessage() for record in caplog.records if record.name == "nsr.training.compilation"]
    assert len(told) == 1 and "goes on without it" in told[0]


def test_a_mistake_of_the_network_itself_is_told_as_without_compiler():
    net, images = residual_net().eval(), some_images()
    compile_in_place(net, sizes=(len(images),), backend="eager")
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.cat([images, images], dim=1))
