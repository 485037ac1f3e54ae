"""The same numbers for any split into batches and any number of processes, one without a batch included."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from reference import COSTLY_PROPERTY, slow_mean_activation, slow_sensitivity

from nsr.app.attacks import build_metrics
from nsr.errors import InputError
from nsr.layers import Layer
from nsr.metrics.epoch import TrainingMetrics
from nsr.metrics.sensitivity import (
    Accuracy,
    ClassCounts,
    LayerSensitivity,
    Mean,
    NetworkSensitivity,
    NeuronSensitivity,
    network_sums,
)
from nsr.sensitivity import KINDS, neuron_sensitivity
from tests.conftest import refusal

SAMPLES = 12
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
LAYERS = [Layer("conv", 3), Layer("tokens", 4), Layer("fc", 5)]


def features(seed=0, dtype=torch.float64, samples=SAMPLES):
    """{layer: (clean, adversarial)}: sums of very different sizes, one silent neuron."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (samples, 3, 4, 4), "tokens": (samples, 4, 6), "fc": (samples, 5)}
    made = {}
    for name, shape in shapes.items():
        clean = torch.randn(shape, generator=generator, dtype=torch.float64).exp()
        clean *= torch.logspace(-4, 4, samples, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
        # all in one direction, so that the means of mean_first do not cancel what the tolerance is about
        adversarial = clean * (1.5 + torch.rand(shape, generator=generator, dtype=torch.float64))
        if name == "fc":
            clean[:, 2] = adversarial[:, 2] = 0
        made[name] = (clean.to(dtype), adversarial.to(dtype))
    return made


def parts(cuts, samples=SAMPLES):
    """The slices between sorted cuts; empty ones left out."""
    edges = [0, *sorted(cuts), samples]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]


def measured(metric, pair, pieces):
    for piece in pieces:
        metric.update(pair[0][piece], pair[1][piece])
    return metric


def network_measured(made, pieces, metric=None):
    metric = metric or NetworkSensitivity(LAYERS)
    for piece in pieces:
        views = [{name: pair[view][piece] for name, pair in made.items()} for view in (0, 1)]
        metric.update(*network_sums(LAYERS, *views), len(views[0]["conv"]))
    return metric


def close(got, expected, tolerance):
    np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=tolerance, atol=0)


def computed_with(metric, *others):
    """What `metric` computes in a run with the other metrics' processes: torchmetrics' own road, without processes."""
    states = [list(other.metric_state.values()) for other in (metric, *others)]
    gathered = iter(zip(*states, strict=True))
    metric.dist_sync_fn = lambda state, group=None: list(next(gathered))
    metric.distributed_available_fn = lambda: True
    values = metric.compute()
    assert next(gathered, None) is None, "every state takes part"
    return values


@COSTLY_PROPERTY
@given(
    cuts=st.lists(st.integers(0, SAMPLES), max_size=SAMPLES),
    kind=st.sampled_from(KINDS),
    layer=st.sampled_from(LAYERS),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**16),
)
def test_any_split_gives_the_definition(cuts, kind, layer, dtype, seed):
    pair = features(seed, dtype)[layer.name]
    settings = {"kind": kind}
    got = measured(NeuronSensitivity(**settings), pair, parts(cuts)).compute()
    assert got.dtype == torch.float64
    close(got, slow_sensitivity(*pair, **settings), TOLERANCE[dtype])
    close(got, neuron_sensitivity(*pair, **settings), TOLERANCE[dtype])


def test_sums_of_float32_features_are_kept_in_float64():
    """A float32 sum of a million equal small differences behind one large one would stand still."""
    metric = NeuronSensitivity()
    metric.update(torch.tensor([[2.0**24]]), torch.tensor([[0.0]]))
    for _ in range(100):
        metric.update(torch.ones(1, 1), torch.zeros(1, 1))
    assert metric.compute().item() == (2**24 + 100) / 101


def test_a_layer_of_one_neuron_keeps_its_axis():
    """(neuron,) is promised; torchmetrics makes a scalar of one value where it can."""
    clean, adversarial = features()["conv"]
    alone = NeuronSensitivity()
    alone.update(clean[:, :1], adversarial[:, :1])
    assert alone.compute().shape == (1,)
    network = NetworkSensitivity([Layer("conv", 1)])
    network.update(*network_sums(network.layers, {"conv": clean[:, :1]}, {"conv": adversarial[:, :1]}), len(clean))
    assert [value.shape for value in network.compute()["conv"]] == [(1,)] * 3


def test_reset_copies_and_graphs():
    made = features()
    metric = measured(NeuronSensitivity(), made["conv"], parts([5]))
    copies, before = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))], metric.compute()
    metric.reset()
    clean, adversarial = (view.requires_grad_() * 1 for view in made["fc"])
    close(measured(metric, (clean, adversarial), parts([])).compute(), slow_sensitivity(*made["fc"]), 1e-12)
    assert all(torch.equal(other.compute(), before) for other in copies)
    assert not metric.compute().requires_grad
    network = NetworkSensitivity([Layer("fc", 5)])
    network.update(*network_sums(network.layers, {"fc": clean}, {"fc": adversarial}), len(clean))
    assert not network.compute()["fc"].absolute.requires_grad


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match="kind is 'abs'"):
        NeuronSensitivity(kind="abs")


@COSTLY_PROPERTY
@given(cuts=st.lists(st.integers(0, SAMPLES), max_size=4), dtype=st.sampled_from(list(TOLERANCE)))
def test_network_is_each_layer(cuts, dtype):
    made = features(dtype=dtype)
    values = network_measured(made, parts(cuts)).compute()
    assert list(values) == [layer.name for layer in LAYERS]
    for layer in LAYERS:
        for kind in ("absolute", "relative"):
            alone = measured(NeuronSensitivity(kind=kind), made[layer.name], parts(cuts))
            assert torch.equal(getattr(values[layer.name], kind), alone.compute())
        mean_activation = slow_mean_activation(made[layer.name][0])
        close(values[layer.name].mean_activation, mean_activation, TOLERANCE[dtype])


def test_network_ignores_other_entries_and_takes_them_in_any_order():
    made = features()
    more = {"other": made["fc"], **dict(reversed(made.items()))}
    one, other = (network_measured(entries, parts([])).compute() for entries in (made, more))
    assert list(one) == list(other)
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("absolute", "activation", "relative"),
    [([1.0, 0.0, 2.0], [2.0, 4.0, 0.0], 0.5), ([0.0], [0.0], 0.0), ([0.0], [3.0], 0.0), ([1.0], [0.0], math.inf)],
)
def test_layer_means_are_of_the_layer(absolute, activation, relative):
    """Not the mean of the neurons' ratios, which one that is silent on clean images would make infinite."""
    made = LayerSensitivity(*(torch.tensor(each, dtype=torch.float64) for each in (absolute, absolute, activation)))
    means = [sum(values) / len(values) for values in (absolute, activation)]
    assert made.means() == {"absolute": means[0], "relative": relative, "mean_activation": means[1]}


# torchmetrics says so of a process that has seen no batch; its empty sums are what is meant
EMPTY_PROCESS = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")


@EMPTY_PROCESS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 5, SAMPLES])
def test_two_processes_give_the_single_process_numbers(kind, cut):
    """cut = SAMPLES: the second process has no batch at all."""
    pair = features()["conv"]
    expected = slow_sensitivity(*pair, kind=kind)
    ranks = [NeuronSensitivity(kind=kind, neurons=3) for _ in range(2)]
    measured(ranks[0], pair, parts([cut // 2], cut))
    for piece in (slice(cut, SAMPLES),) if cut < SAMPLES else ():
        ranks[1].update(pair[0][piece], pair[1][piece])
    for rank, other in ((0, 1), (1, 0)):
        close(computed_with(copy.deepcopy(ranks[rank]), ranks[other]), expected, 1e-12)


@EMPTY_PROCESS
@pytest.mark.parametrize("cut", [4, SAMPLES])
def test_two_processes_measure_a_network(cut):
    made = features()
    whole = network_measured(made, parts([])).compute()
    ranks = [network_measured(made, pieces) for pieces in ([slice(0, cut)], [slice(cut, SAMPLES)][: cut < SAMPLES])]
    got = computed_with(ranks[1], ranks[0])
    for name, values in whole.items():
        for a, b in zip(got[name], values, strict=True):
            close(a, b, 1e-12)


def test_processes_exchange_three_vectors_whatever_the_number_of_layers():
    empty, full = NetworkSensitivity(LAYERS), network_measured(features(dtype=torch.float32), parts([]))
    for metric in (empty, full):  # of one type, or two processes could not add them up
        states = metric.metric_state.values()
        assert [list(state.shape) for state in states] == [[12], [12], []]
        assert [state.dtype for state in states] == [torch.float64, torch.float64, torch.int64]
    alone = NeuronSensitivity(neurons=3)
    assert [list(state.shape) for state in alone.metric_state.values()] == [[3], [3], []]
    assert [state.dtype for state in alone.metric_state.values()] == [torch.float64, torch.float64, torch.int64]


@COSTLY_PROPERTY
@given(cuts=st.lists(st.integers(0, SAMPLES), max_size=4), seed=st.integers(0, 2**16))
def test_accuracy_and_class_counts_are_counted(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SAMPLES, 4, generator=generator)
    labels = torch.randint(4, (SAMPLES,), generator=generator)
    predicted = [max(range(4), key=row.__getitem__) for row in logits.tolist()]
    right = sum(p == y for p, y in zip(predicted, labels.tolist(), strict=True))
    counts = [[each.count(k) for k in range(4)] for each in (predicted, labels.tolist())]
    more = (torch.eye(4)[[2, 2]], torch.tensor([2, 3]))  # another process's, which has the first right
    both = (torch.tensor(counts) + torch.tensor([[0, 0, 2, 0], [0, 0, 1, 1]])).tolist()
    for metric, other, alone, together, dtype in (
        (Accuracy(), Accuracy(), right / SAMPLES, (right + 1) / (SAMPLES + 2), torch.float64),
        (ClassCounts(4), ClassCounts(4), counts, both, torch.int64),
    ):
        for piece in parts(cuts):
            metric.update(logits[piece], labels[piece])
        assert metric.compute().tolist() == alone
        assert metric.compute().dtype == dtype
        other.update(*more)
        metric.update(logits[:0], labels[:0])
        assert computed_with(metric, other).tolist() == together


def test_mean_weighs_by_samples_and_is_exact_for_any_split():
    values = torch.tensor([0.1, 0.7, 0.4, 0.9, 0.2], dtype=torch.float64)
    for cut in range(1, 5):
        mean = Mean()
        for part in (values[:cut], values[cut:]):
            mean.update(part.mean().float() if cut == 1 else part.mean(), len(part))
        assert float(mean.compute()) == pytest.approx(0.46, rel=1e-7 if cut == 1 else 1e-12)
    mean.reset()
    mean.update(torch.tensor(2.0, requires_grad=True), 3)
    assert not mean.compute().requires_grad


def training_metrics(steps: range) -> TrainingMetrics:
    """Metrics of those of six training steps, of 2 to 7 images."""
    generator = torch.Generator().manual_seed(0)
    metrics = TrainingMetrics(["own"], ["clean", "adversarial"])
    for step in range(6):
        loss, own = torch.rand(2, generator=generator)
        logits = {view: torch.randn(step + 2, 4, generator=generator) for view in ("clean", "adversarial")}
        labels = torch.randint(4, (step + 2,), generator=generator)
        if step in steps:
            metrics.update(loss, {"own": own}, logits, labels, step=step)
    return metrics


@pytest.mark.filterwarnings("error")  # torchmetrics' of a metric without an update
def test_an_interrupted_epoch_continues_with_its_sums():
    before, after, whole = (training_metrics(range(*steps)) for steps in ((0, 3), (3, 6), (0, 6)))
    continued = training_metrics(range(0))
    continued.load_sums(before.sums())
    assert continued.compute() == before.compute()
    continued.load_sums(before.sums() + after.sums())
    assert continued.compute() == pytest.approx(whole.compute(), rel=1e-12)
    for loaded, own in zip(continued.children(), whole.children(), strict=True):
        for name, metric in loaded.items():
            assert [state.dtype for state in metric.metric_state.values()] == [
                state.dtype for state in own[name].metric_state.values()
            ]
    other = TrainingMetrics([], ["clean"])
    other.load_sums(before.sums())  # a term that it does not know yet: its means begin here
    other.update(torch.tensor(0.5), {}, {"clean": torch.eye(4)}, torch.arange(4), step=0)
    assert other.compute() == {"train/loss": 0.5, "train/clean_accuracy": 1.0}


def test_the_first_loss_that_is_not_finite_is_that_of_all_processes(monkeypatch):
    metrics = TrainingMetrics([], [])
    for step in range(6):
        assert metrics.first_not_finite() == (4 if step > 4 else None)
        metrics.update(torch.tensor(torch.inf if step > 3 else 1.0), {}, {}, torch.arange(2), step=step)
    assert metrics.first_not_finite() == 4
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for theirs, first in ((2, 2), (9, 4)):
        another = {torch.distributed.ReduceOp.MIN: lambda mine, theirs=theirs: mine.clamp_(max=theirs)}
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine, op, another=another: another[op](mine))
        assert metrics.first_not_finite() == first


class Returning(torchmetrics.Metric):
    """A metric of (logits, labels) that computes `value`; probabilities are demanded where `of_probabilities`."""

    def __init__(self, value=1.0, of_probabilities=False):
        super().__init__()
        self.value, self.of_probabilities = value, of_probabilities
        self.add_state("images", torch.zeros(()))

    def update(self, logits, labels):
        if self.of_probabilities and (logits.min() < 0 or logits.max() > 1):
            raise ValueError("not probabilities")
        self.images += len(labels)

    def compute(self):
        return self.value


DESCRIPTION = SimpleNamespace(classes=4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("own", {"value": value}) for value in (None, "good", (1.0, 2.0))),
        ("own", {"of_probabilities": True}),
        ("accuracy", {}),  # it would take the place of the accuracy that chooses best.ckpt
        ("median_distance", {}),
        ("own", {"value": {"low": 0.1, "high": 0.2}}),  # the interval of an accuracy in evaluation.csv
        ("own_high", {}),
    ],
)
def test_a_metric_that_is_no_number_of_logits_or_has_a_name_of_nsr_is_refused(name, settings):
    own = {name: {"_target_": f"{__name__}.Returning", **settings}}
    assert refusal(build_metrics, {"metrics": own}, DESCRIPTION).startswith(f"metrics.{name}")


@pytest.mark.parametrize("value", [1, 0.5, {"top": 1.0}, {"top_accuracy": 1.0, "lower": 0.5}, math.nan])
def test_numbers_and_dicts_of_them_are_metrics(value):
    own = {"own": {"_target_": f"{__name__}.Returning", "value": value}}
    assert list(build_metrics({"metrics": own}, DESCRIPTION)) == ["own"]
