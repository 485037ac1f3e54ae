"""compile=true: the same run on compiled passes; a compiler that fails ends it in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from reference import residual_net, some_images

from nsr.app import train as command
from nsr.attacks import GradientAttack
from nsr.attacks.folding import foldable_pairs, folded_batch_norm
from nsr.errors import RunStopped
from nsr.features import FeatureExtractor
from nsr.layers import find_layers
from nsr.training.compilation import Compilation, compile_in_place
from tests.conftest import REPEATED, TINY, assert_repeats, assert_same_rows, evaluated, job, rows

pytestmark = pytest.mark.usefixtures("fresh_compiler")
WHOLE = (*TINY, "trainer.max_epochs=2", "trainer.limit_train_batches=1.0")  # the last batch is smaller


class Graphs:
    """A backend that runs graphs as they are and counts them; from the graph `broken` on it breaks."""

    def __init__(self, *, broken: int | None = None):
        self.broken = broken
        self.norms: list[int] = []  # BatchNorm operations of each graph

    @property
    def count(self) -> int:
        return len(self.norms)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        self.norms.append(sum("batch_norm" in str(node.target) for node in graph.graph.nodes))
        if self.broken is not None and self.count > self.broken:
            raise ValueError("no compiler\nin this test")
        return graph.forward


def run_with(monkeypatch, directory: Path, backend, *overrides: str) -> Path:
    monkeypatch.setattr(command, "Compilation", partial(Compilation, backend=backend))
    command.train(job("train", directory, *overrides, "compile=true"))
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A run without compiler, of two whole epochs."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("plain") / "run"
    command.train(job("train", directory, *WHOLE))
    return directory


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def same_run(one: Path, other: Path) -> None:
    """Every record and every weight, bit-identically."""
    for name in ("metrics.csv", "sensitivity.csv", "metrics.json"):
        assert (one / name).read_text() == (other / name).read_text(), name
    for name in ("best.ckpt", "last.ckpt"):
        states = [weights(run / "checkpoints" / name) for run in (one, other)]
        assert list(states[0]) == list(states[1])
        torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.slow
def test_a_compiled_run_is_the_run_and_takes_no_more_graphs_than_kinds_of_passes(tmp_path, monkeypatch, plain):
    limit, graphs = torch._dynamo.config.recompile_limit, Graphs()
    calls = []
    monkeypatch.setattr(command, "test_best_and_last", _watched(command.test_best_and_last, calls))
    run = run_with(monkeypatch, tmp_path / "run", graphs, *WHOLE)
    same_run(plain, run)
    # the attack's for training, folded, and for validation, training's, the stabilizer's, validation's
    assert sorted(graphs.norms) == [0, 3, 3, 3, 3]
    assert calls == [False]  # the tests at the end go without
    assert torch._dynamo.config.recompile_limit == limit


def _watched(function, calls):
    def call(trainer, made, *arguments):
        calls.append(made.module.net._compiled_call_impl is not None)
        return function(trainer, made, *arguments)

    return call


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Graphs(broken=2), "no compiler in this test"),
        pytest.param("no_such_compiler", "no_such_compiler", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_fails_ends_the_run_in_one_line(tmp_path, monkeypatch, backend, reason):
    with pytest.raises(RunStopped, match="compile is true; the compiler failed") as caught:
        run_with(monkeypatch, tmp_path / "run", backend, *TINY)
    assert reason in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (("callbacks=[awp,ema]", "trainer.precision=bf16-mixed"), 6),  # AWP's own, without hooked layers
        (("stabilizer.batch_norm=frozen", "train_attack.batch_norm=batch"), 6),
        (("objective=trades", "trainer.precision=64-true", "performance=off"), 6),  # TRADES' clean one
        (("stabilizer.batch_norm=frozen", "objective=trades"), 6),  # in eval mode, and yet not folded
    ],
)
def test_settings_that_work_with_compile(tmp_path, monkeypatch, settings, count):
    """A backend that runs a graph as it is gives a bit-identical run; validation is of the averaged weights."""
    command.train(job("train", tmp_path / "plain", *TINY, *settings))
    graphs = Graphs()
    same_run(tmp_path / "plain", run_with(monkeypatch, tmp_path / "run", graphs, *TINY, *settings))
    assert 1 < graphs.count <= count


@pytest.mark.slow
def test_with_torchs_own_compiler(tmp_path, plain):
    """Sensitivities and metrics to float tolerance, the layers hooked; the checkpoint is one without compiler."""
    run = tmp_path / "run"
    command.train(job("train", run, *WHOLE, "compile=true"))
    for name in ("sensitivity.csv", "metrics.csv"):
        assert_same_rows(run / name, plain / name, rel=1e-3, abs=1e-4)
    assert any(float(row["absolute"]) > 0 for row in rows(run / "sensitivity.csv"))
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    assert_repeats(run, evaluated(tmp_path / "evaluation", checkpoint, *REPEATED))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_attack_finds_the_same_images(backend):
    """The BatchNorm of its passes is folded."""
    net, images = residual_net().double().eval(), some_images(dtype=torch.float64)
    pairs = foldable_pairs(net, images)
    labels = torch.arange(len(images)) % 3
    attack = GradientAttack(epsilon=0.1, steps=3)
    torch.manual_seed(0)
    expected = attack(net, images, labels)
    compile_in_place(net, sizes=(len(images),), backend=backend, pairs=pairs)
    torch.manual_seed(0)
    with folded_batch_norm(pairs):
        torch.testing.assert_close(attack(net, images, labels), expected, rtol=1e-9, atol=1e-9)
    assert len(pairs) == 2


def test_only_full_batches_are_compiled():
    net, images = residual_net().eval(), some_images()
    extractor = FeatureExtractor(net, find_layers(net, images))
    expected = [extractor(images[:count])[1] for count in (4, 3)]
    graphs = Graphs()
    compile_in_place(net, sizes=(4,), backend=graphs)
    for count, features in zip((4, 3), expected, strict=True):
        got = extractor(images[:count])[1]
        assert list(got) == list(features)
        assert all(torch.equal(value, features[name]) for name, value in got.items())
    assert graphs.count == 1
