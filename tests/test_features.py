"""Taps: the values that go on through the network, with their gradients, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    COSTLY_PROPERTY,
    Raising,
    TokenNet,
    hooks,
    inventory,
    residual_net,
    same_inventory,
    some_images,
)
from torch import Tensor, nn

from nsr.errors import InputError
from nsr.features import FeatureTaps, capture_features
from nsr.layers import Layer, find_layers

INNER = ["conv1", "bn1", "relu", "conv2", "bn2", "relu#2", "hidden", "dropout", "tanh"]  # in the order of the calls


@pytest.fixture(autouse=True)
def one_thread():
    """On networks of this size two threads only wait for each other: beside another busy process ten times as long."""
    torch.set_num_threads(1)


def captured(net, images, layers=None):
    with capture_features(net, layers) as features:
        net(images)
        return dict(features)


def tapped(net, images, layers=None):
    taps = FeatureTaps(net, find_layers(net, images, layers))
    try:
        return taps(images)[1]
    finally:
        taps.remove()


def same_features(got, expected, **tolerance):
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("take", [captured, tapped])
def test_values_are_those_that_go_on(take, mode):
    net, images = residual_net().train(mode == "train"), some_images()
    expected = net.values(images)
    if take is tapped:
        del expected["fc"]  # the network's own output is not among the layers found by default or by '*'
        assert [layer.name for layer in find_layers(net, images, "*")] == [*INNER, "fc"]
        got = tapped(net, images, INNER_PATTERNS)
    else:
        got = captured(net, images, "*")
    same_features(got, expected)


INNER_PATTERNS = ["conv?", "bn*", "relu", "hidden", "tanh", "dropout"]


@pytest.mark.parametrize("take", [captured, tapped])
def test_default_layers_are_the_activations_each_call_its_own(take):
    net, images = residual_net(), some_images()
    net.eval()
    expected = net.values(images)
    got = take(net, images)
    assert list(got) == ["relu", "relu#2", "tanh"]
    same_features(got, {name: expected[name] for name in got})


@pytest.mark.parametrize("take", [captured, tapped])
@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("relu", ["relu", "relu#2"]),
        ("relu#2", ["relu#2"]),
        ("relu#1", ["relu"]),
        (["relu#2", "relu#1"], ["relu", "relu#2"]),
        (["relu#2", "relu"], ["relu", "relu#2"]),
        (["relu", "relu#2"], ["relu", "relu#2"]),
        ("bn?", ["bn1", "bn2"]),
        ("*1", ["conv1", "bn1"]),
        (["hidden", "conv1"], ["conv1", "hidden"]),
        ("[ct]*", ["conv1", "conv2", "tanh"]),
        (("fc",), ["fc"]),
    ],
)
def test_names_and_patterns_in_the_order_of_the_calls(take, layers, names):
    net, images = residual_net().eval(), some_images()
    got = take(net, images, layers)
    assert list(got) == names
    expected = net.values(images)
    same_features(got, {name: expected[name] for name in names})


@pytest.mark.parametrize("take", [captured, tapped])
def test_patterns_reach_into_sub_modules(take):
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(inplace=True)))
    net.add_module("head", nn.Linear(3, 2))
    images = torch.rand(2, 4)
    assert list(take(net, images)) == ["body.1", "body.3"]
    # a block's output is the very tensor that its last layer gave
    assert sorted(take(net, images, "body.*")) == ["body.0", "body.1", "body.2", "body.3"]
    assert set(take(net, images, "body")) == {"body"}


@pytest.mark.parametrize("take", [captured, tapped])
def test_no_match_is_one_line_with_the_near_name(take):
    net, images = residual_net(), some_images()
    before = inventory(net)
    text = refusal(lambda: take(net, images, "rellu"))
    assert "no layer matches 'rellu' in ResidualNet (did you mean 'relu'?); it has 'conv1', 'bn1', 'relu', " in text
    assert "more)" in text
    refusal(lambda: take(net, images, ["relu", "layer9"]))
    assert "relu#two" in refusal(lambda: take(net, images, "relu#two"))
    same_inventory(before, inventory(net))


def test_a_call_that_never_comes_is_refused():
    net, images = residual_net(), some_images()
    assert "'relu#3'" in refusal(lambda: find_layers(net, images, "relu#3"))


def test_capture_says_that_there_is_nothing_to_capture():
    """Like find_layers, and not an empty answer."""
    net = nn.Linear(4, 2)
    refusal(lambda: find_layers(net, torch.rand(2, 4)))
    refusal(lambda: captured(net, torch.rand(2, 4)))


def test_capture_holds_the_latest_pass_alone():
    net = residual_net().eval()
    one, other = some_images(3, seed=1), some_images(5, seed=2)
    with capture_features(net) as features:
        net(one)
        first = dict(features)
        net(other)
        same_features(features, {name: net.values(other)[name] for name in ("relu", "relu#2", "tanh")})
    same_features(first, {name: net.values(one)[name] for name in ("relu", "relu#2", "tanh")})


def test_captures_nest():
    net, images = residual_net().eval(), some_images()
    with capture_features(net, "bn1") as outer:
        with capture_features(net, "bn*") as inner:
            net(images)
        assert (list(outer), list(inner)) == (["bn1"], ["bn1", "bn2"])
        first = dict(inner)
        net(images)
    same_features(inner, first)
    assert list(outer) == ["bn1"]


@pytest.mark.parametrize("take", [captured, tapped])
def test_tuples_give_their_first_tensor(take):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.fc(self.rnn(tokens)[0].mean(1))

    net, tokens = Recurrent(), torch.rand(2, 5, 3)
    same_features(take(net, tokens, "rnn"), {"rnn": net.rnn(tokens)[0]})


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("take", [captured, tapped])
def test_features_carry_their_gradients(take):
    net = residual_net().double().train()
    images = some_images(dtype=torch.float64).requires_grad_()
    expected = net.values(images)
    got = take(net, images, "*") if take is captured else take(net, images, INNER_PATTERNS)
    for name, value in got.items():
        # the weights tell the positions apart: in a plain sum those after BatchNorm would cancel
        weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
        sources = [images, net.conv1.weight]
        one, other = (
            torch.autograd.grad((f * weights).sum(), sources, retain_graph=True) for f in (value, expected[name])
        )
        for gradient, wanted in zip(one, other, strict=True):
            assert wanted.ne(0).any()
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_loss_and_features_share_one_graph():
    net, images = residual_net().double().train(), some_images(dtype=torch.float64)
    taps = FeatureTaps(net, find_layers(net, images))
    logits, features = taps(images)
    (logits.square().sum() + sum(value.square().sum() for value in features.values())).backward()
    got = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    values = net.values(images)
    (values["fc"].square().sum() + sum(values[name].square().sum() for name in features)).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_no_grad_gives_features_without_a_graph():
    net, images = residual_net(), some_images()
    taps = FeatureTaps(net, find_layers(net, images))
    with torch.no_grad():
        _, features = taps(images)
    assert not any(value.requires_grad for value in features.values())


# ---------------------------------------------------------------- copies only where they are needed


def test_only_what_is_overwritten_is_copied():
    net, images = residual_net(dropout=0.5), some_images()
    layers = find_layers(net, images, "*")
    assert {layer.name for layer in layers if layer.copied} == {"bn1", "bn2", "hidden"}
    assert find_layers(net, images) == [Layer("relu", 4), Layer("relu#2", 4), Layer("tanh", 6)]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dropout_in_place_is_seen_though_it_works_in_training_alone(mode):
    net, images = residual_net(dropout=0.5).train(mode == "train"), some_images()
    assert find_layers(net, images, "hidden") == [Layer("hidden", 6, copied=True)]
    taps = FeatureTaps(net.train(), find_layers(net, images, ["hidden", "dropout"]))
    _, features = taps(images)
    assert features["dropout"].eq(0).any()
    assert features["hidden"].ne(0).all(), "dropout has overwritten it"


def test_an_uncopied_feature_is_the_tensor_itself():
    """No copy: the memory is the network's own."""
    net, images = residual_net(), some_images()
    seen = {}
    for name in ("relu", "tanh"):
        module = getattr(net, name)
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.setdefault(name, output))
    taps = FeatureTaps(net, [Layer("relu", 4), Layer("tanh", 6, copied=True)])
    _, features = taps(images)
    assert features["relu"].data_ptr() == seen["relu"].data_ptr()
    assert features["tanh"].data_ptr() != seen["tanh"].data_ptr()


STEPS = ("linear", "norm", "relu", "relu_", "tanh", "dropout", "dropout_", "add_", "mul_")
IN_PLACE = ("relu_", "dropout_", "add_", "mul_")


class Chain(nn.Module):
    """Any sequence of steps, some of them in place, some of them no module."""

    def __init__(self, steps: list[str]):
        super().__init__()
        self.steps = steps
        make = {
            "linear": lambda: nn.Linear(4, 4),
            "norm": lambda: nn.BatchNorm1d(4),
            "relu": nn.ReLU,
            "relu_": lambda: nn.ReLU(inplace=True),
            "tanh": nn.Tanh,
            "dropout": lambda: nn.Dropout(0.3),
            "dropout_": lambda: nn.Dropout(0.3, inplace=True),
        }
        self.first = nn.Linear(4, 4)
        self.parts = nn.ModuleDict({str(k): make[step]() for k, step in enumerate(steps) if step in make})
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.first(x) * 1
        for k, step in enumerate(self.steps):
            if step == "add_":
                x += 1
            elif step == "mul_":
                x *= 2
            else:
                x = self.parts[str(k)](x)
        return self.last(x + 0 * start.detach())

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """The same with nothing in place; draws dropout's numbers in the same order."""
        x = self.first(x) * 1
        values = {}
        for k, step in enumerate(self.steps):
            if step in ("add_", "mul_"):
                x = x + 1 if step == "add_" else x * 2
                continue
            module = copy.deepcopy(self.parts[str(k)])
            if hasattr(module, "inplace"):
                module.inplace = False
            x = values[f"parts.{k}"] = module(x)
        return values

    def overwritten(self) -> set[str]:
        """A module's output is overwritten where the next step works in place."""
        after = zip(self.steps, [*self.steps[1:], "end"], strict=True)
        return {
            f"parts.{k}" for k, (step, following) in enumerate(after) if str(k) in self.parts and following in IN_PLACE
        }


@COSTLY_PROPERTY
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), training=st.booleans(), seed=st.integers(0, 99))
def test_any_chain_of_steps_in_place_is_tapped_right(steps, training, seed):
    if "dropout" in steps and not training:
        # in eval mode it hands its input on, and then in-place steps reach further back: another test's matter
        steps = [step for step in steps if step != "dropout"] or ["relu"]
    torch.manual_seed(seed)
    net, images = Chain(steps).train(training), torch.randn(5, 4)
    if not net.parts:
        return
    before = inventory(net)
    layers = find_layers(net, images, "parts.*")
    same_inventory(before, inventory(net))
    if "dropout" not in steps:
        assert {layer.name for layer in layers if layer.copied} == net.overwritten()
    taps = FeatureTaps(net, layers)
    results = []
    for run in (lambda: net.values(images), lambda: taps(images)[1], lambda: captured(net, images, "parts.*")):
        torch.manual_seed(seed)
        results.append({name: value.clone() for name, value in run().items()})
    expected, of_taps, of_capture = results
    same_features(of_taps, expected, rtol=0, atol=0)
    same_features(of_capture, expected, rtol=0, atol=0)


def test_a_view_is_protected_too():
    class Flattening(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(32, 2)

        def forward(self, images):
            flat = self.relu(self.conv(images)).flatten(1)
            flat *= 0  # reaches the ReLU's output through the view
            return self.fc(flat)

    net, images = Flattening(), some_images()
    expected = net.conv(images).relu()
    same_features(tapped(net, images), {"relu": expected})


def test_an_eval_mode_dropout_that_hands_its_input_on_is_protected_too():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    images = torch.randn(3, 4)
    expected = net[0](images).tanh()
    same_features(tapped(net, images, ["1", "2"]), {"1": expected, "2": expected})


# ---------------------------------------------------------------- which layers


def test_layers_tell_their_neurons():
    net, images = residual_net(), some_images()
    assert {layer.name: (layer.neurons, layer.neuron_dim) for layer in find_layers(net, images, "*")} == {
        **dict.fromkeys(("conv1", "bn1", "relu", "conv2", "bn2", "relu#2"), (4, 1)),
        **dict.fromkeys(("hidden", "tanh", "dropout"), (6, 1)),
        "fc": (3, 1),
    }


def test_the_last_layer_is_left_out_even_where_it_is_an_activation():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softplus())
    assert [layer.name for layer in find_layers(net, torch.rand(2, 4))] == ["1"]


def test_without_activations_the_named_children_are_taken_and_said(caplog):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7))
            self.unused, self.head = nn.Linear(1, 1), nn.Linear(7, 2)

        def forward(self, x):
            return self.head(self.body(self.stem(x).relu()).relu())

    net, images = Plain(), torch.rand(2, 4)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager")
    with caplog.at_level(logging.INFO, logger="nsr"):
        layers = find_layers(net, images)
    assert [(layer.name, layer.neurons) for layer in layers] == [("stem", 5), ("body", 7)]
    (record,) = caplog.records
    assert "Plain" in record.getMessage()
    assert "stem, body" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert find_layers(compiled, images) == layers
    assert list(captured(net, images)) == ["stem", "body"]
    assert list(captured(compiled, images)) == ["stem", "body"]


def test_with_activations_nothing_is_said(caplog):
    with caplog.at_level(logging.DEBUG, logger="nsr"):
        find_layers(residual_net(), some_images())
    assert not caplog.records


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", pytest.param(nn.GELU(), id="GELU"), pytest.param(nn.ReLU(), id="ReLU")]
)
def test_a_token_model_gives_its_blocks(activation):
    """Whether the activation is a module or a function: nn.TransformerEncoderLayer's default is a function."""
    torch.manual_seed(0)
    net, images = TokenNet(activation), some_images(4, size=4)
    layers = find_layers(net, images)
    blocks = ["encoder.layers.0", "encoder.layers.1"]
    assert [(layer.name, layer.neurons, layer.neuron_dim) for layer in layers] == [(name, 8, -1) for name in blocks]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_blocks_have_the_values_of_a_pass_without_taps(mode):
    torch.manual_seed(0)
    net, images = TokenNet(nn.GELU(), blocks=3).train(mode == "train"), some_images(4, size=4)
    taps = FeatureTaps(net, find_layers(net, images))
    _, features = taps(images)
    taps.remove()
    tokens = net.embed(images.flatten(1).unflatten(1, (-1, 4)))
    for k, block in enumerate(net.encoder.layers):
        tokens = block(tokens)
        torch.testing.assert_close(features[f"encoder.layers.{k}"], tokens)
    assert len(features) == 3


def test_blocks_within_blocks_are_part_of_the_outer_ones():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))

        def forward(self, tokens):
            return self.two(self.one(tokens)) + tokens

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.Sequential(Block(), Block(), Block()), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.head(self.blocks(tokens).mean(1))

    names = [layer.name for layer in find_layers(Mixer(), torch.rand(2, 5, 4))]
    assert names == ["blocks.0", "blocks.1", "blocks.2"]


def test_patterns_of_a_token_model():
    net, images = TokenNet(), some_images(4, size=4)
    assert find_layers(net, images, "encoder.layers.1") == [Layer("encoder.layers.1", 8, -1)]
    assert find_layers(net, images, "*.linear1") == [Layer(f"encoder.layers.{k}.linear1", 16, -1) for k in range(2)]


def test_names_refer_to_within():
    core = residual_net()
    net, images = nn.Sequential(nn.BatchNorm2d(1), core), some_images()
    layers = find_layers(net, images, within=core)
    assert [layer.name for layer in layers] == ["relu", "relu#2", "tanh"]
    taps = FeatureTaps(net.eval(), layers, within=core)
    logits, features = taps(images)
    expected = core.values(net[0](images))
    torch.testing.assert_close(logits, expected["fc"])
    same_features(features, {name: expected[name] for name in features})
    assert len(features) == 3
    assert [layer.name for layer in find_layers(net, images)] == ["1.relu", "1.relu#2", "1.tanh"]


# ---------------------------------------------------------------- no trace


@pytest.mark.parametrize("frozen", [False, True])
def test_find_layers_leaves_no_trace(frozen):
    net, images = residual_net(dropout=0.5).train(), some_images()
    if frozen:
        net.bn1.eval()
        net.bn1.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(3)
    before, random = inventory(net), torch.get_rng_state()
    kept = images.clone()
    find_layers(net, images)
    same_inventory(before, inventory(net))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(images, kept)


def test_find_layers_leaves_other_statistics_too():
    """Spectral normalisation and an InstanceNorm that tracks write in training passes; neither is a BatchNorm."""
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3))
    net = nn.Sequential(
        spectral, nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )
    before = inventory(net)
    find_layers(net, some_images())
    same_inventory(before, inventory(net))


def test_a_pass_made_before_find_layers_can_still_be_differentiated():
    net, images = residual_net().train(), some_images()
    logits = net(images)
    find_layers(net, images)
    logits.sum().backward()


def test_find_layers_leaves_no_trace_of_a_pass_that_fails():
    net = Raising(residual_net(dropout=0.5).train(), at=2)
    before, random = inventory(net), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the network broke"):
        find_layers(net, some_images())
    assert net.passes == 2
    same_inventory(before, inventory(net))
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_find_layers_works_where_gradients_are_off(context):
    net, images = residual_net(), some_images()
    expected = find_layers(net, images)
    with context():
        assert find_layers(net, images) == expected


def test_capture_leaves_no_trace():
    net, images = residual_net().eval(), some_images()
    net.bn1.register_forward_hook(lambda module, inputs, output: None)  # the caller's own
    before = inventory(net)
    with capture_features(net, "*"):
        assert hooks(net) != before["hooks"]
        net(images)
    same_inventory(before, inventory(net))


@pytest.mark.parametrize("of_network", [True, False])
def test_capture_leaves_no_hook_after_an_exception(of_network):
    net = Raising(residual_net(), at=1 if of_network else 99)
    before = hooks(net)

    def body():
        with capture_features(net, "net.*"):
            net(some_images())
            raise KeyError

    with pytest.raises(RuntimeError if of_network else KeyError):
        body()
    assert hooks(net) == before


def test_taps_are_silent_in_other_passes_and_can_be_removed():
    net, images = residual_net().eval(), some_images()
    before = hooks(net)
    taps = FeatureTaps(net, find_layers(net, images))
    assert hooks(net) != before
    _, first = taps(images)
    net(some_images(2, seed=5))
    _, second = taps(images)
    assert list(second) == ["relu", "relu#2", "tanh"]
    same_features(second, first)
    taps.remove()
    assert hooks(net) == before
    taps.remove()  # once more does no harm


def test_two_taps_on_one_network_do_not_meet():
    net, images = residual_net().eval(), some_images()
    one = FeatureTaps(net, find_layers(net, images, "relu"))
    other = FeatureTaps(net, find_layers(net, images, ["relu#2", "bn1"]))
    assert list(one(images)[1]) == ["relu", "relu#2"]
    assert list(other(images)[1]) == ["bn1", "relu#2"]
    other.remove()
    assert list(one(images)[1]) == ["relu", "relu#2"]


@pytest.mark.parametrize("gradients", [False, True])
def test_taps_keep_no_features_alive(gradients):
    net, images = residual_net(), some_images()
    taps = FeatureTaps(net, find_layers(net, images, "*"))
    with torch.set_grad_enabled(gradients):
        logits, features = taps(images)
    references = [weakref.ref(value) for value in (logits, *features.values())]
    assert len(references) == 11
    del logits, features
    gc.collect()
    assert [reference() for reference in references] == [None] * 11


def test_taps_keep_no_features_alive_after_an_exception():
    """Out of memory is one: what is tried next must not stand on what the failed pass had kept."""
    net, images = Raising(residual_net(), at=1), some_images()
    taps = FeatureTaps(net, [Layer("net.relu", 4)])
    kept = []
    net.net.relu.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    try:
        taps(images)
    except RuntimeError as error:
        error.__traceback__ = None
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    copy.deepcopy(net)  # which a kept tensor with a graph would prevent
    net.passes = -10
    assert list(taps(images)[1]) == ["net.relu"]


def test_after_an_exception_the_taps_start_anew():
    net, images = Raising(residual_net(), at=1), some_images()
    taps = FeatureTaps(net, [Layer("net.relu", 4), Layer("net.tanh", 6)])
    with pytest.raises(RuntimeError, match="the network broke"):
        taps(images)
    net.passes = -10
    net(images)
    assert list(taps(images)[1]) == ["net.relu", "net.tanh"]


# ---------------------------------------------------------------- copies of a network with taps


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda taps: pickle.loads(pickle.dumps(taps))], ids=["copy", "pickle"]
)
def test_the_taps_of_a_copy_are_its_own(twin_of):
    net, images = residual_net().eval(), some_images()
    taps = FeatureTaps(net, find_layers(net, images))
    before = hooks(net)
    twin = twin_of(taps)
    assert twin.net is not net
    with torch.no_grad():
        twin.net.conv1.weight += 1
    expected, other = net.values(images), twin.net.values(images)
    for _ in range(2):
        same_features(taps(images)[1], {name: expected[name] for name in ("relu", "relu#2", "tanh")})
        same_features(twin(images)[1], {name: other[name] for name in ("relu", "relu#2", "tanh")})
    twin.remove()
    assert not any(sum(counts) for counts in hooks(twin.net).values())
    assert hooks(net) == before
    same_features(taps(images)[1], {name: expected[name] for name in ("relu", "relu#2", "tanh")})


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_a_network_with_taps_can_be_copied_alone(twin_of):
    net, images = residual_net().eval(), some_images()
    taps = FeatureTaps(net, find_layers(net, images))
    logits, _ = taps(images)
    twin = twin_of(net)
    torch.testing.assert_close(twin(images), logits, rtol=0, atol=0)
    fresh = FeatureTaps(twin, find_layers(twin, images))
    same_features(fresh(images)[1], taps(images)[1], rtol=0, atol=0)


# ---------------------------------------------------------------- torch.compile

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_in_place(net, layers, backend):
    taps = FeatureTaps(net, layers)
    net.compile(backend=backend, fullgraph=True)
    return taps


def compiled_before(net, layers, backend):
    return FeatureTaps(torch.compile(net, backend=backend, fullgraph=True), layers)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [compiled_in_place, compiled_before])
def test_compiled_taps_give_the_eager_training_step(compiled, backend):
    """Clean pass, adversarial pass, a loss on both sides' features, backward; fullgraph refuses a graph break."""
    net = residual_net().double().train()
    twin = copy.deepcopy(net)
    images = some_images(dtype=torch.float64)
    layers = find_layers(net, images, ["bn*", "relu", "tanh"])
    taps = compiled(net, layers, backend)

    def eager(images):
        values = twin.values(images)
        twin(images)  # for the running statistics
        return values["fc"], {layer.name: values[layer.name] for layer in layers}

    results = []
    for model, passes in ((net, taps), (twin, eager)):
        for step in range(2):
            (logits, clean), (other, adversarial) = passes(images), passes((images + 0.1 * (step + 1)).clamp(max=1))
            weights = [k + 1 for k in range(len(layers))]
            loss = logits.square().mean() + other.exp().mean()
            for weight, name in zip(weights, clean, strict=True):
                loss = loss + weight * (clean[name] - adversarial[name]).abs().mean()
            loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        buffers = dict(model.named_buffers())
        results.append(({"loss": loss, "logits": logits, **clean}, adversarial, gradients, buffers))
    for got, expected in zip(*results, strict=True):
        assert list(got) == list(expected)
        same_features(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_taps_are_silent_in_other_passes(backend):
    net, images = residual_net().eval(), some_images()
    expected = net.values(images)
    taps = compiled_in_place(net, find_layers(net, images), backend)
    for _ in range(2):
        torch.testing.assert_close(net(images), expected["fc"])
        assert not taps._recorder.features
        logits, features = taps(images)
        torch.testing.assert_close(logits, expected["fc"])
        same_features(features, {name: expected[name] for name in ("relu", "relu#2", "tanh")})


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_place", [True, False])
def test_capture_of_a_network_that_was_compiled_and_called(in_place, backend):
    net, images = residual_net().eval(), some_images()
    expected = net.values(images)
    compiled = torch.compile(net, backend=backend)
    if in_place:
        net.compile(backend=backend)
        compiled = net
    before = hooks(compiled)
    with torch.no_grad():
        compiled(images)
        for layers in (None, ["bn1", "relu#2"]):
            with capture_features(compiled, layers) as features:
                torch.testing.assert_close(compiled(images), expected["fc"])
                names = ["relu", "relu#2", "tanh"] if layers is None else layers
                same_features(dict(features), {name: expected[name] for name in names})
                kept = dict(features)
            assert hooks(compiled) == before
            other = some_images(seed=9)  # whose features must reach nobody any more
            torch.testing.assert_close(compiled(other), net.values(other)["fc"])
            same_features(features, kept, rtol=0, atol=0)


@pytest.mark.usefixtures("fresh_compiler")
def test_layers_of_a_network_that_was_compiled_and_called():
    """The hooks of the trial pass come after the compilation, as those of capture_features do."""
    net, images = residual_net().eval(), some_images()
    expected = find_layers(net, images)
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        compiled(images)
        assert find_layers(compiled, images) == expected


@pytest.mark.usefixtures("fresh_compiler")
def test_taps_that_come_after_the_compilation_are_not_silently_empty():
    net, images = residual_net().eval(), some_images()
    layers = find_layers(net, images)
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        compiled(images)
        try:
            features = FeatureTaps(compiled, layers)(images)[1]
        except InputError:
            return  # an error that says so would do
    assert list(features) == [layer.name for layer in layers]


def test_a_tap_that_a_pass_does_not_reach_is_told():
    """Code that was compiled without taps, for another network of the class, would hand out no features at all."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    images = torch.rand(2, 3)
    taps = FeatureTaps(net, find_layers(net, images))
    assert list(taps(images)[1]) == ["1"]
    taps.remove()
    with pytest.raises(RuntimeError, match="no features of 1: the pass does not reach them"):
        taps(images)
