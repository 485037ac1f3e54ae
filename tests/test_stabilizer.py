"""The stabilizing term against the formula written out: value, gradient, selection, settings, state."""

from __future__ import annotations

import copy
import inspect
import io
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import COSTLY_PROPERTY, outputs_of_neuron, residual_net, slow_stabilizer_term, some_images

from nsr.errors import InputError
from nsr.sensitivity import activation_difference, neuron_sensitivity
from nsr.stabilizer import SensitivityStabilizer, over_processes, stabilizing_term
from tests.conftest import refusal

SHAPES = {"conv": (3, 5, 2, 2), "block.relu": (3, 4, 1, 3), "block.relu#2": (3, 4, 2, 1), "fc": (3, 7)}
CONVOLUTIONS = {"conv1": (3, 5, 2, 2), "conv2": (3, 4, 1, 3)}


def views(seed=0, shapes=SHAPES):
    """Clean and adversarial features."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    return [{name: value.requires_grad_() for name, value in view.items()} for view in made]


def counts(top, shapes=SHAPES):
    """How many of each layer's neurons: written for tops that no rounding touches."""
    widths = {name: shape[1] for name, shape in shapes.items()}
    if isinstance(top, int):
        return {name: min(top, neurons) for name, neurons in widths.items()}
    return {name: max(1, int(top * neurons)) for name, neurons in widths.items()}


def gradients(term, *of):
    """Of the term, for each layer's features of each view; None where it does not depend on them."""
    sources = [value for view in of for value in view.values()]
    return torch.autograd.grad(term, sources, allow_unused=True, retain_graph=True)


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- value and gradient
@COSTLY_PROPERTY
@given(
    top=st.integers(1, 8) | st.sampled_from([0.25, 0.5, 0.75, 1.0, 0.01]),
    weight=st.sampled_from([0.0, 0.5, 2.0, 30.0]),
    scale=st.sampled_from([1.0, 0.25]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_formula_gradients_included(top, weight, scale, seed):
    """The oracle selects by numbers: nothing flows through the selection."""
    clean, adversarial = views(seed)
    stabilizer = SensitivityStabilizer(weight=weight, top=top)
    stabilizer.scale = scale  # a ramp
    got = stabilizer(clean, adversarial)
    expected = slow_stabilizer_term(clean, adversarial, count=counts(top), weight=scale * weight)
    assert got.shape == ()
    same(got, expected)
    found = gradients(got, clean, adversarial)
    for gradient, wanted in zip(found, gradients(expected, clean, adversarial), strict=True):
        same(gradient, wanted)
    for of_clean, of_adversarial in zip(found[: len(clean)], found[len(clean) :], strict=True):
        same(of_clean, -of_adversarial)


def test_the_gradient_goes_through_both_views_unless_the_clean_one_is_detached():
    clean, adversarial = views()
    both = SensitivityStabilizer()(clean, adversarial)
    one = SensitivityStabilizer(gradient_through_clean=False)(clean, adversarial)
    same(one, both)
    assert all(gradient is None for gradient in gradients(one, clean))
    for gradient, wanted in zip(gradients(one, adversarial), gradients(both, adversarial), strict=True):
        same(gradient, wanted)
        assert wanted.ne(0).any()


def test_equal_views_give_zero_and_no_nan():
    clean, _ = views()
    equal = {name: value.detach().clone().requires_grad_() for name, value in clean.items()}
    term = SensitivityStabilizer()(clean, equal)
    assert term.item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients(term, clean, equal))


@pytest.mark.parametrize("through_clean", [True, False])
def test_through_a_network(through_clean):
    """The weights' gradients of a real net's features."""
    net = residual_net().double().train()
    images = some_images(dtype=torch.float64)
    moved = (images + 0.1).clamp(max=1)
    clean, adversarial = ({name: net.values(x)[name] for name in ("relu", "relu#2", "tanh")} for x in (images, moved))
    got = SensitivityStabilizer(top=2, gradient_through_clean=through_clean)(clean, adversarial)
    reference = clean if through_clean else {name: value.detach() for name, value in clean.items()}
    expected = slow_stabilizer_term(reference, adversarial, count=dict.fromkeys(clean, 2), weight=1.0)
    weights = [net.conv1.weight, net.conv2.weight, net.hidden.weight, net.bn1.bias]
    for one, other in zip(*(torch.autograd.grad(t, weights, retain_graph=True) for t in (got, expected)), strict=True):
        assert other.ne(0).any()
        same(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_features_are_compared_in_float32(dtype):
    clean, adversarial = ({name: value.detach().to(dtype) for name, value in view.items()} for view in views())
    term = SensitivityStabilizer()(clean, adversarial)
    assert term.dtype == torch.float32
    exact = ({name: value.double() for name, value in view.items()} for view in (clean, adversarial))
    torch.testing.assert_close(term.double(), SensitivityStabilizer()(*exact), rtol=1e-5, atol=0)


# ---------------------------------------------------------------- which axis, which layers
def test_tokens_have_their_neurons_last():
    """Those of a FeatureExtractor are (batch, neuron, token); neuron_dim says it of others."""
    clean, adversarial = views(shapes={"block": (3, 6, 4)})
    swapped = [{"block": view["block"].transpose(1, 2)} for view in (clean, adversarial)]  # neurons on axis 1
    expected = slow_stabilizer_term(*swapped, count={"block": 2}, weight=1.0)
    for neuron_dim in (-1, 2):
        same(SensitivityStabilizer(top=2, neuron_dim=neuron_dim)(clean, adversarial), expected)
    same(SensitivityStabilizer(top=2)(*swapped), expected)
    assert not torch.isclose(SensitivityStabilizer(top=2, neuron_dim=1)(clean, adversarial), expected)
    assert "neuron_dim is 0" in refusal(lambda: SensitivityStabilizer(neuron_dim=0)(clean, adversarial))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, list(SHAPES)),
        ("conv", ["conv"]),
        ("block.*", ["block.relu", "block.relu#2"]),
        (["fc", "conv"], ["conv", "fc"]),
        (("*relu#2",), ["block.relu#2"]),
        (["block.*", "*relu"], ["block.relu", "block.relu#2"]),
        ("block.relu#1", ["block.relu"]),
        ("block.relu", ["block.relu", "block.relu#2"]),  # what find_layers understands by it
    ],
)
def test_patterns_choose_layers(layers, names):
    stabilizer = SensitivityStabilizer(layers=layers)
    assert stabilizer.stabilized(list(SHAPES)) == names
    clean, adversarial = views()
    chosen = ({name: view[name] for name in names} for view in (clean, adversarial))
    same(stabilizer(clean, adversarial), slow_stabilizer_term(*chosen, count=counts(0.1), weight=1.0))


def test_what_cannot_be_stabilized_is_refusal():
    clean, adversarial = views()
    text = refusal(lambda: SensitivityStabilizer(layers=["conv", "layer9"])(clean, adversarial))
    assert "'layer9'" in text
    assert "conv, block.relu" in text
    assert "nothing to stabilize" in refusal(lambda: SensitivityStabilizer()({}, {}))
    fewer = {name: value for name, value in adversarial.items() if name != "fc"}
    assert "the same layers" in refusal(lambda: SensitivityStabilizer()(clean, fewer))
    half = {name: value[:1] for name, value in adversarial.items()}
    assert "differ in shape" in refusal(lambda: SensitivityStabilizer()(clean, half))
    text = refusal(lambda: SensitivityStabilizer(distance="cosine")(clean, adversarial))
    assert "distance is 'cosine', but a neuron of fc has one value" in text
    assert SensitivityStabilizer(distance="cosine", layers=["conv", "block.relu"])(clean, adversarial) > 0


# ---------------------------------------------------------------- distances
def slow_difference(clean, adversarial, distance: str, neuron_dim: int) -> list[float]:
    """Neuron by neuron and sample by sample, in Python's floats."""
    answer = []
    for m in range(clean.shape[neuron_dim]):
        total = 0.0
        for i in range(len(clean)):
            first, second = (outputs_of_neuron(view, i, m, neuron_dim) for view in (clean, adversarial))
            pairs = list(zip(first, second, strict=True))
            if distance == "l1":
                total += sum(abs(a - b) for a, b in pairs) / len(pairs)
            elif distance == "l2":
                total += math.sqrt(sum((a - b) ** 2 for a, b in pairs)) / math.sqrt(len(pairs))
            elif distance == "squared":
                total += sum((a - b) ** 2 for a, b in pairs) / len(pairs)
            else:
                lengths = [math.sqrt(sum(value**2 for value in view)) for view in (first, second)]
                total += 1 - sum(a * b for a, b in pairs) / (lengths[0] * lengths[1]) if all(lengths) else any(lengths)
        answer.append(total / len(clean))
    return answer


MAPS, TOKENS, UNITS = ((3, 5, 2, 2), 1), ((3, 4, 6), -1), ((4, 7), 1)


@pytest.mark.parametrize(
    ("distance", "shape", "neuron_dim"),
    [(distance, *layout) for distance in ("l1", "l2", "squared") for layout in (MAPS, TOKENS, UNITS)]
    + [("cosine", *layout) for layout in (MAPS, TOKENS)],
)
def test_each_distance_is_its_equation(distance, shape, neuron_dim):
    generator = torch.Generator().manual_seed(1)
    clean, adversarial = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    clean.movedim(neuron_dim, 1)[0, 1] = 0  # silent in one view
    clean.movedim(neuron_dim, 1)[1, 2] = adversarial.movedim(neuron_dim, 1)[1, 2] = 0  # and in both
    got = activation_difference(clean, adversarial, distance=distance, neuron_dim=neuron_dim)
    expected = slow_difference(clean, adversarial, distance, neuron_dim)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("distance", ["l1", "l2", "squared", "cosine"])
def test_a_neuron_without_difference_has_a_finite_gradient(distance):
    clean = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    clean[:, 0] = 0  # silent in both views
    clean[0, 1] = 0
    adversarial = clean.clone()
    adversarial[:, 2] += 1
    clean.requires_grad_()
    difference = activation_difference(clean, adversarial, distance=distance)
    assert difference[[0, 1, 3]].abs().max() < 1e-12
    assert difference[2] > 0.01
    (gradient,) = torch.autograd.grad(difference.sum(), clean)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("distance", ["l1", "l2", "squared", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sensitivity_selects_whatever_the_distance(distance, reduction):
    clean, adversarial = views(shapes=CONVOLUTIONS)
    stabilizer = SensitivityStabilizer(weight=0.7, top=2, distance=distance, reduction=reduction)
    layers = []
    for name in clean:
        sensitivity = neuron_sensitivity(clean[name], adversarial[name]).tolist()
        chosen = sorted(range(len(sensitivity)), key=lambda neuron, row=sensitivity: -row[neuron])[:2]
        differences = slow_difference(clean[name], adversarial[name], distance, 1)
        layers.append([differences[neuron] for neuron in chosen])
    expected = sum(map(sum, layers)) if reduction == "sum" else sum(sum(layer) / 2 for layer in layers) / len(layers)
    assert stabilizer(clean, adversarial).item() == pytest.approx(0.7 * expected, rel=1e-9)


# ---------------------------------------------------------------- scores: what selects, and where it is kept
def selected(stabilizer, seed, neurons):
    """Asserts that with top=1 these neurons, {layer: id}, are the selected ones."""
    clean, adversarial = views(seed, CONVOLUTIONS)
    expected = sum(neuron_sensitivity(clean[n], adversarial[n])[neurons[n]].item() for n in clean) / len(clean)
    assert stabilizer(clean, adversarial).item() == pytest.approx(expected, rel=1e-12)


def test_a_running_average_selects():
    stabilizer, average = SensitivityStabilizer(top=1, refresh="average", decay=0.75), None
    for seed in range(4):
        clean, adversarial = views(seed, CONVOLUTIONS)
        batch = {name: neuron_sensitivity(clean[name], adversarial[name]).detach() for name in clean}
        average = batch if average is None else {n: 0.75 * average[n] + 0.25 * batch[n] for n in batch}
        selected(stabilizer, seed, {name: int(average[name].argmax()) for name in batch})


@pytest.mark.parametrize(("refresh", "neuron"), [("epoch", 3), ("once", 2)])
def test_remembered_sensitivities_select(refresh, neuron):
    stabilizer = SensitivityStabilizer(top=1, refresh=refresh)
    text = refusal(lambda: stabilizer(*views(shapes=CONVOLUTIONS)))
    assert f"stabilizer.refresh is '{refresh}', but no sensitivities of conv1, conv2 were given" in text
    for k in (2, 3):
        stabilizer.remember({"conv1": torch.eye(5)[k], "conv2": torch.eye(4)[k]})
    selected(stabilizer, 0, {"conv1": neuron, "conv2": neuron})
    SensitivityStabilizer().remember({})  # no use for it


@pytest.mark.parametrize("refresh", ["batch", "average", "epoch"])
def test_the_scores_are_in_the_state_dict_of_the_module_around(refresh):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), SensitivityStabilizer(top=1, refresh=refresh))
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    net[1].remember({"conv1": torch.eye(5)[2], "conv2": torch.eye(4)[3]})
    net[1](*views(5, CONVOLUTIONS))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    restored = torch.nn.Sequential(torch.nn.Linear(2, 2), SensitivityStabilizer(top=1, refresh=refresh))
    restored.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(net)
    before = copy.deepcopy(net[1].scores)
    pairs = views(6, CONVOLUTIONS)
    expected = net[1](*pairs).item()
    for other in (restored[1], copied[1]):
        torch.testing.assert_close(other.scores, before, rtol=0, atol=0)
        assert other(*pairs).item() == expected
    torch.testing.assert_close(restored[1].scores, net[1].scores, rtol=0, atol=0)
    assert (refresh == "batch") == (not net[1].scores)


# ---------------------------------------------------------------- settings
def test_defaults():
    stabilizer = SensitivityStabilizer()
    assert (stabilizer.weight, stabilizer.top, stabilizer.layers, stabilizer.scale) == (1.0, 0.1, None, 1.0)
    assert (stabilizer.gradient_through_clean, stabilizer.batch_norm) == (True, "batch")
    parameters = inspect.signature(SensitivityStabilizer).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert "top=0.1" in repr(stabilizer)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("weight", value) for value in (-1, float("nan"), float("inf"), "2", True)],
        *[("top", value) for value in (0, 1.5, True, None)],
        *[("gradient_through_clean", value) for value in ("no", None)],
        *[("batch_norm", value) for value in ("eval", None)],
        *[("refresh", "always"), ("distance", "l3"), ("reduction", "max"), ("decay", 1.5), ("layers", [])],
    ],
)
def test_a_wrong_setting_names_itself(setting, value):
    text = refusal(lambda: SensitivityStabilizer(**{setting: value}))
    assert text.startswith(f"stabilizer.{setting} is {value!r}; ")


# ---------------------------------------------------------------- controls of the selection


def by_hand(clean, adversarial, ids):
    """The mean over layers of the mean over these neurons of |difference|, as sums over samples and positions."""
    means = []
    for name, chosen in ids.items():
        each = (clean[name] - adversarial[name]).abs().flatten(2).mean(2) if clean[name].ndim > 2 else None
        each = (clean[name] - adversarial[name]).abs() if each is None else each
        means.append(each.mean(0)[chosen].mean())
    return torch.stack(means).mean()


def ordered(clean, adversarial):
    """Neuron ids by sensitivity, largest first."""
    return {
        name: (clean[name] - adversarial[name])
        .abs()
        .reshape(3, clean[name].shape[1], -1)
        .mean((0, 2))
        .argsort()
        .flip(0)
        for name in clean
    }


@pytest.mark.parametrize(("select", "part"), [("least_sensitive", slice(-2, None)), ("all", slice(None))])
def test_other_neurons_against_the_formula(select, part):
    clean, adversarial = views()
    got = SensitivityStabilizer(select=select, top=2)(clean, adversarial)
    expected = by_hand(clean, adversarial, {name: ids[part] for name, ids in ordered(clean, adversarial).items()})
    same(got, expected)
    for gradient, wanted in zip(gradients(got, clean), gradients(expected, clean), strict=True):
        same(gradient, wanted)


def test_the_largest_squared_difference_or_activation_selects():
    clean, adversarial = views(2)
    for select, score in {
        "squared_difference": lambda a, b: (a - b) ** 2,
        "activation": lambda a, b: a.abs(),
    }.items():
        ids = {
            name: score(clean[name], adversarial[name]).transpose(0, 1).flatten(1).mean(1).argsort().flip(0)[:2]
            for name in clean
        }
        assert any(set(ids[name].tolist()) != set(ordered(clean, adversarial)[name][:2].tolist()) for name in clean)
        got = SensitivityStabilizer(select=select, top=2)(clean, adversarial)
        expected = by_hand(clean, adversarial, ids)
        same(got, expected)
        for gradient, wanted in zip(gradients(got, adversarial), gradients(expected, adversarial), strict=True):
            same(gradient, wanted)


def causes(tail, clean, adversarial, labels):
    """How fast each neuron's step towards its clean outputs lowers the margin, by differences, one neuron at a time."""
    step, rates = 1e-6, []
    for neuron in range(clean.shape[1]):
        margins = []
        for part in (-step, step):
            moved = adversarial.clone()
            moved[:, neuron] += part * (adversarial - clean)[:, neuron]
            for logits, label in zip(tail(moved).tolist(), labels.tolist(), strict=True):
                margins.append(max(z for k, z in enumerate(logits) if k != label) - logits[label])
        rates.append((sum(margins[len(labels) :]) - sum(margins[: len(labels)])) / (2 * step) / len(labels))
    return rates


def pass_through_two_layers(seed=0, neurons=6):
    """Two convolutions' features of two views, the adversarial logits, labels, and what follows each layer."""
    torch.manual_seed(seed)
    first, second = torch.nn.Conv2d(2, neurons, 3).double(), torch.nn.Conv2d(neurons, neurons, 2).double()
    last = torch.nn.Linear(neurons, 4).double()
    tails = {
        "first": lambda x: last(second(x.tanh()).sigmoid().mean((2, 3))),
        "second": lambda x: last(x.sigmoid().mean((2, 3))),
    }
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    clean, adversarial = (
        {"first": first(x), "second": second(first(x).tanh())}
        for x in (images, images + 0.3 * torch.randn_like(images))
    )
    x = adversarial["first"]
    adversarial["second"] = second(x.tanh())  # on the way from the first layer to the logits
    return clean, adversarial, tails["second"](adversarial["second"]), torch.arange(5) % 4, tails


@pytest.mark.parametrize("soft", [False, True])
def test_the_largest_attribution_selects(soft):
    clean, adversarial, logits, labels, tails = pass_through_two_layers()
    given = torch.nn.functional.one_hot(labels, 4).double() * 0.6 + 0.1 if soft else labels
    stabilizer = SensitivityStabilizer(select="attribution", top=2)
    got, ids = stabilizer(clean, adversarial, logits, given), {}
    for name, tail in tails.items():
        with torch.no_grad():
            rates = causes(tail, clean[name], adversarial[name], labels)
        ids[name] = sorted(range(6), key=lambda neuron, rates=rates: -rates[neuron])[:2]
    assert any(set(ids[name]) != set(ordered_by_difference(clean[name], adversarial[name])[:2]) for name in ids)
    expected = by_hand(clean, adversarial, ids)
    same(got, expected)
    weights = [adversarial["first"], adversarial["second"]]
    for gradient, wanted in zip(
        *(torch.autograd.grad(t, weights, retain_graph=True) for t in (got, expected)), strict=True
    ):
        same(gradient, wanted)
    logits.sum().backward()  # the graph is whole


def ordered_by_difference(clean, adversarial):
    return (clean - adversarial).abs().mean((0, 2, 3)).argsort().flip(0).tolist()


def test_attribution_needs_logits_that_depend_on_the_features():
    clean, adversarial, logits, labels, _ = pass_through_two_layers()
    stabilizer = SensitivityStabilizer(select="attribution")
    assert "needs adversarial_logits and labels" in refusal(lambda: stabilizer(clean, adversarial))
    copies = {name: values.clone() for name, values in adversarial.items()}
    frozen = {name: values.detach() for name, values in adversarial.items()}
    for features in (copies, frozen):
        for use in (partial(stabilizer, clean), stabilizer.check_features):  # in a step, and before the first one
            text = refusal(lambda features=features, use=use: use(features, logits, labels))
            assert "do not depend on the captured features of first" in text
    stabilizer.check_features(adversarial, logits, labels)
    for refresh in ("epoch", "once"):
        text = refusal(lambda refresh=refresh: SensitivityStabilizer(select="attribution", refresh=refresh))
        assert "stabilizer.refresh=batch or average" in text


def test_a_running_average_of_another_score_selects():
    stabilizer, average = SensitivityStabilizer(top=1, refresh="average", decay=0.5, select="activation"), None
    for seed in range(4):
        clean, _ = views(seed, CONVOLUTIONS)
        batch = {name: clean[name].detach().abs().mean((0, 2, 3)) for name in clean}
        average = batch if average is None else {name: (average[name] + batch[name]) / 2 for name in batch}
        selected(stabilizer, seed, {name: int(average[name].argmax()) for name in batch})


def test_random_neurons_are_as_many_and_follow_the_seed():
    clean, adversarial = views(shapes=CONVOLUTIONS)
    stabilizer, counted, values = SensitivityStabilizer(select="random", top=2), torch.zeros(5), []
    for seed in (*range(200), 0):
        torch.manual_seed(seed)
        term = stabilizer(clean, adversarial)
        moved = [gradient.abs().sum((0, 2, 3)) > 0 for gradient in gradients(term, adversarial)]
        assert [int(each.sum()) for each in moved] == [2, 2]
        same(term, by_hand(clean, adversarial, dict(zip(clean, (each.nonzero()[:, 0] for each in moved), strict=True))))
        values.append(term.item())
        counted += moved[0]
    assert values[0] == values[-1] != values[1]
    assert (counted - 80).abs().max() < 5 * (200 * 0.4 * 0.6) ** 0.5


def test_another_process_counts_by_its_images(monkeypatch):
    """Its three images beside this process's one: exchanged as sums, one flat tensor."""
    mine, other = ({"a": torch.tensor([1.0, 2.0]) * size, "b": torch.tensor([3.0]) * size} for size in (1, 2))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(torch.tensor([6.0, 12.0, 18.0, 3.0])))
    together = over_processes(mine, samples=1)
    assert list(together) == ["a", "b"]
    for layer, values in together.items():
        torch.testing.assert_close(values, (mine[layer] + 3 * other[layer]) / 4)
    drawn = SensitivityStabilizer(select="random", top=2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.copy_(torch.tensor([0.0, 2, 1, 3, 9])))
    assert drawn._selected({"a": torch.zeros(4)}, samples=5)["a"].tolist() == [3, 1]  # not those drawn here


@pytest.mark.parametrize("select", ["random", "least_sensitive", "all", "squared_difference", "activation"])
@pytest.mark.parametrize("settings", [{}, {"distance": "l2", "reduction": "sum"}])
def test_equal_term_size_keeps_the_direction(select, settings):
    clean, adversarial = views(shapes={"conv": (3, 5, 2, 2)})
    values = []
    for own in ({"select": select}, {"select": select, "equal_term_size": True}, {}):
        torch.manual_seed(3)
        term = SensitivityStabilizer(top=2, **own, **settings)(clean, adversarial)
        values.append((term, *gradients(term, adversarial)))
    (plain, direction), (scaled, gradient), (wanted, _) = values
    same(scaled, wanted)
    same(gradient, direction * (wanted / plain).detach())
    equal = {name: value.detach().clone().requires_grad_() for name, value in clean.items()}
    term = SensitivityStabilizer(select=select, equal_term_size=True)(clean, equal)
    assert term.item() == 0 and torch.isfinite(gradients(term, equal)[0]).all()


@pytest.mark.parametrize("settings", [{"select": "most"}, {"equal_term_size": 2}])
def test_wrong_selections(settings):
    with pytest.raises(InputError, match=f"stabilizer.{next(iter(settings))} is .*; it must be"):
        SensitivityStabilizer(**settings)


@pytest.mark.parametrize("value", [None, 0.1, torch.ones(2), (torch.ones(()),)])
def test_a_term_of_the_users_own_is_one_number(value):
    given = {"adversarial_logits": torch.ones(2, 3), "labels": torch.zeros(2)}
    assert "scalar" in refusal(stabilizing_term, lambda clean, adversarial: value, {}, {}, **given)
    for one in (torch.ones(()), torch.ones(1), torch.ones(1, 1)):
        assert stabilizing_term(lambda clean, adversarial, one=one: one, {}, {}, **given).shape == ()
