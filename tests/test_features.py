"""Features: the values that the network uses, with their gradients; copies only where they are needed, no trace."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import warnings
import weakref
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import COSTLY_PROPERTY, Raising, TokenNet, hooks, inventory, residual_net, same_inventory, some_images
from torch import Tensor, nn

from nsr.features import FeatureExtractor, capture_features
from nsr.layers import Layer, find_layers
from tests.conftest import refusal

INNER = ["conv1", "bn1", "relu", "conv2", "bn2", "relu#2", "hidden", "dropout", "tanh"]  # in the order of the calls
DEFAULT = ["relu", "relu#2", "tanh"]


def captured(net, images, layers=None):
    with capture_features(net, layers) as features:
        net(images)
        return dict(features)


def extracted(net, images, layers=None):
    extractor = FeatureExtractor(net, find_layers(net, images, layers))
    try:
        return extractor(images)[1]
    finally:
        extractor.remove()


both = pytest.mark.parametrize("take", [captured, extracted])


def same_features(got, expected, **tolerance):
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def part(features, names):
    return {name: features[name] for name in names}


# ---------------------------------------------------------------- values and names
@both
@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("*", [*INNER, "fc"]),
        (None, DEFAULT),  # the activations, each call its own
        ("relu", ["relu", "relu#2"]),
        ("relu#2", ["relu#2"]),
        ("relu#1", ["relu"]),
        (["relu#2", "relu#1"], ["relu", "relu#2"]),
        (["relu#2", "relu"], ["relu", "relu#2"]),
        ("bn?", ["bn1", "bn2"]),
        ("*1", ["conv1", "bn1"]),
        (["hidden", "conv1"], ["conv1", "hidden"]),
        ("[ct]*", ["conv1", "conv2", "tanh"]),
        (("fc",), ["fc"]),
    ],
)
def test_values_of_names_and_patterns_in_the_order_of_the_calls(take, layers, names):
    net, images = residual_net(), some_images()
    for mode in (True, False):
        got = take(net.train(mode), images, layers)
        assert list(got) == names
        same_features(got, part(net.values(images), names))


@both
def test_patterns_reach_into_sub_modules(take):
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(inplace=True)))
    net.add_module("head", nn.Linear(3, 2))
    images = torch.rand(2, 4)
    assert list(take(net, images)) == ["body.1", "body.3"]
    # a block's output is the very tensor that its last layer gave
    assert sorted(take(net, images, "body.*")) == ["body.0", "body.1", "body.2", "body.3"]
    assert set(take(net, images, "body")) == {"body"}


@both
def test_no_match_is_one_line_with_the_near_name(take):
    net, images = residual_net(), some_images()
    before = inventory(net)
    text = refusal(lambda: take(net, images, "rellu"))
    assert "no layer matches 'rellu' in ResidualNet (did you mean 'relu'?); it has 'conv1', 'bn1', 'relu', " in text
    assert "more)" in text
    for layers, named in ((["relu", "layer9"], "layer9"), ("relu#two", "relu#two")):
        assert named in refusal(lambda layers=layers: take(net, images, layers))
    same_inventory(before, inventory(net))
    assert "'relu#3'" in refusal(lambda: take(net, images, "relu#3"))
    bare = nn.Linear(4, 2)
    assert "Linear has no" in refusal(lambda: take(bare, torch.rand(2, 4)))
    assert "no layer matches 'x'" in refusal(lambda: FeatureExtractor(bare, [Layer("x", 2)]))


def test_capture_holds_the_latest_pass_alone():
    net = residual_net().eval()
    one, other = some_images(3, seed=1), some_images(5, seed=2)
    with capture_features(net) as features:
        net(one)
        first = dict(features)
        net(other)
        same_features(features, part(net.values(other), DEFAULT))
    same_features(first, part(net.values(one), DEFAULT))


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


def test_capture_of_a_pass_of_a_part():
    """A method of the network that is not its forward: nothing shows where a pass begins."""
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), nn.Linear(3, 2))
    images = torch.rand(2, 4)
    linear = net[0][0](images)
    with capture_features(net, ["0.0", "0.1"]) as features:
        net[0](images)
    same_features(features, {"0.0": linear, "0.1": linear.relu()})


@both
def test_tuples_give_their_first_tensor(take):
    class Recurrent(nn.Sequential):
        def forward(self, tokens):
            return self[1](self[0](tokens)[0].mean(1))

    net, tokens = Recurrent(nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)), torch.rand(2, 5, 3)
    steps = net[0](tokens)[0]
    same_features(take(net, tokens, "0"), {"0": steps.transpose(1, 2) if take is extracted else steps})


# ---------------------------------------------------------------- gradients
@both
def test_features_carry_their_gradients(take):
    net = residual_net().double().train()
    images = some_images(dtype=torch.float64).requires_grad_()
    oracle = net.values(images)
    for name, value in take(net, images, "*").items():
        # the weights tell the positions apart: in a plain sum those after BatchNorm would cancel
        weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
        sources = [images, net.conv1.weight]
        pair = (value, oracle[name])
        one, other = (torch.autograd.grad((f * weights).sum(), sources, retain_graph=True) for f in pair)
        for gradient, wanted in zip(one, other, strict=True):
            assert wanted.ne(0).any()
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- copies only where they are needed
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_find_layers_sees_what_is_overwritten(mode):
    """In-place dropout too, though it writes in training alone."""
    net, images = residual_net(dropout=0.5).train(mode == "train"), some_images()
    four, six = dict.fromkeys(("conv1", "bn1", "relu", "conv2", "bn2", "relu#2"), 4), dict.fromkeys(INNER[-3:], 6)
    neurons, overwritten = {**four, **six, "fc": 3}, ("bn1", "bn2", "hidden")
    assert find_layers(net, images, "*") == [Layer(name, n, 1, name in overwritten) for name, n in neurons.items()]
    assert find_layers(net, images) == [Layer("relu", 4), Layer("relu#2", 4), Layer("tanh", 6)]
    for take in (captured, extracted):
        features = take(net.train(), images, ["hidden", "dropout"])
        assert features["dropout"].eq(0).any()
        assert features["hidden"].ne(0).all(), "dropout has overwritten it"


def no_grad_write(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.add_(1)


# {step: (in place, the same out of place)} of operations that are no modules
OPERATIONS = {
    "iadd": (lambda x: x.__iadd__(1), lambda x: x + 1),
    "method": (lambda x: x.mul_(2), lambda x: x * 2),
    "out": (lambda x: x.mul_(3) if x.requires_grad else torch.mul(x, 3, out=x), lambda x: x * 3),
    "item": (lambda x: x.__setitem__((..., 0), 5) or x, lambda x: x.index_fill(1, torch.tensor([0]), 5)),
    "view": (lambda x: x.view(-1).sub_(1).view_as(x), lambda x: x - 1),
    "no_grad": (no_grad_write, lambda x: x + 1),
}
MODULES = dict(linear=lambda: nn.Linear(4, 4), norm=lambda: nn.BatchNorm1d(4), relu=nn.ReLU)
MODULES |= dict(relu_=lambda: nn.ReLU(inplace=True), tanh=nn.Tanh)
MODULES |= dict(dropout=lambda: nn.Dropout(0.3), dropout_=lambda: nn.Dropout(0.3, inplace=True))
IN_PLACE = ("relu_", "dropout_", *OPERATIONS)


class Chain(nn.Module):
    """Any sequence of steps, some of them in place, some of them no module."""

    def __init__(self, steps: list[str]):
        super().__init__()
        self.steps = steps
        self.first = nn.Linear(4, 4)
        self.parts = nn.ModuleDict({str(k): MODULES[step]() for k, step in enumerate(steps) if step in MODULES})
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.first(x) * 1
        for k, step in enumerate(self.steps):
            x = OPERATIONS[step][0](x) if step in OPERATIONS else self.parts[str(k)](x)
        return self.last(x + 0 * start.detach())

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """The same with nothing in place; draws dropout's numbers in the same order."""
        x = self.first(x) * 1
        values = {}
        for k, step in enumerate(self.steps):
            if step in OPERATIONS:
                x = OPERATIONS[step][1](x)
                continue
            module = copy.deepcopy(self.parts[str(k)])
            if hasattr(module, "inplace"):
                module.inplace = False
            x = values[f"parts.{k}"] = module(x)
        return values

    def overwritten(self) -> set[str]:
        """A module's output is overwritten where the next step works in place."""
        pairs = enumerate(zip(self.steps, [*self.steps[1:], "end"], strict=True))
        return {f"parts.{k}" for k, (step, after) in pairs if step in MODULES and after in IN_PLACE}


@COSTLY_PROPERTY
@given(
    steps=st.lists(st.sampled_from([*MODULES, *OPERATIONS]), min_size=1, max_size=7),
    training=st.booleans(),
    gradients=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chain_of_steps_in_place_is_captured_and_copied_only_where_overwritten(steps, training, gradients, seed):
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
    outputs: dict[str, int] = {}
    for name, module in net.parts.items():
        module.register_forward_hook(lambda *call, name=name: outputs.update({f"parts.{name}": call[2].data_ptr()}))
    extractor = FeatureExtractor(net, layers)
    with torch.set_grad_enabled(gradients):
        torch.manual_seed(seed)
        expected = net.values(images)
        for run in (lambda: extractor(images)[1], lambda: captured(net, images, "parts.*")):
            torch.manual_seed(seed)
            features = run()
            same_features(features, expected, rtol=0, atol=0)
            assert {value.requires_grad for value in features.values()} == {gradients}
            copied = {name for name, value in features.items() if value.data_ptr() != outputs[name]}
            assert copied == {layer.name for layer in layers if layer.copied}


@both
def test_views_and_inputs_that_are_handed_on_are_protected_too(take):
    class Flattening(nn.Sequential):
        def forward(self, images):
            flat = self[1](self[0](images)).flatten(1)
            flat *= 0  # reaches the ReLU's output through the view
            return self[2](flat)

    net, images = Flattening(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(32, 2)), some_images()
    same_features(take(net, images), {"1": net[0](images).relu()})
    # dropout in eval mode returns its input
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    expected = net[0](images := torch.randn(3, 4)).tanh()
    same_features(take(net, images, ["1", "2"]), {"1": expected, "2": expected})


def test_the_output_of_the_network_belongs_to_the_caller():
    net, images = residual_net().eval(), some_images()
    with capture_features(net, "fc") as features, torch.inference_mode():
        logits = net(images)
        expected = logits.clone()
        logits.zero_()
    same_features(features, {"fc": expected})


def test_capture_changes_no_value():
    """A function mode would switch torch's fused attention off."""
    net, images = TokenNet().eval(), some_images(4, size=4)
    with torch.no_grad():
        with capture_features(net, "embed"):
            logits = net(images)
        assert torch.equal(logits, net(images))


@torch.library.custom_op("nsr_tests::write", mutates_args={"x"})
def write(x: Tensor) -> None:
    x.add_(1)


def test_a_write_that_no_name_shows_is_an_error():
    class Hidden(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            write(x)
            return self[1](x)

    net, images = Hidden(nn.Linear(4, 4), nn.Linear(4, 2)), torch.rand(2, 4)
    assert "'0': overwritten in place" in refusal(lambda: captured(net, images, "0"))
    same_features(extracted(net, images, "0"), {"0": net[0](images)})


# ---------------------------------------------------------------- which layers
@dataclass
class Answer:
    logits: Tensor


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x, 1), lambda x: {"logits": x}, lambda x: UserDict(a=[x]), Answer]
)
def test_the_output_is_left_out_even_where_it_is_an_activation(wrap):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softplus())

        def forward(self, x):
            return wrap(self.body(x))

    net, images = Wrapped(), torch.rand(2, 4)
    assert [layer.name for layer in find_layers(net, images)] == ["body.1"]
    assert list(captured(net, images)) == ["body.1", "body.3"]


class Auxiliary(nn.Module):
    """A head that runs in train mode alone, a part that never runs, children that do."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 5), activation())
        self.head, self.auxiliary, self.unused = nn.Linear(5, 2), nn.Linear(5, 2), activation()
        self.auxiliary_relu = activation()

    def forward(self, x):
        x = self.stem(x)
        return (self.head(x), self.auxiliary(self.auxiliary_relu(x))) if self.training else self.head(x)


def test_layers_that_no_pass_reaches(caplog):
    net, images = Auxiliary(), torch.rand(2, 4)
    with caplog.at_level(logging.INFO, logger="nsr"):
        assert find_layers(net, images) == [Layer("stem.1", 5)]
    training, never = [record.getMessage() for record in caplog.records]
    assert ("train mode only" in training, "'auxiliary_relu'" in training, "unused" in training) == (True, True, False)
    assert ("no forward pass" in never, "'unused'" in never, "auxiliary" in never) == (True, True, False)
    caplog.clear()
    assert [layer.name for layer in find_layers(net, images, ["head", "stem.*"])] == ["stem.0", "stem.1", "head"]
    assert not caplog.records
    for layers in ("auxiliary", ["stem.*", "auxiliary*"]):
        assert "'auxiliary" in (text := refusal(lambda layers=layers: find_layers(net, images, layers)))
        assert "train mode only" in text
    assert "'unused' gives no" in refusal(lambda: find_layers(net, images, ["stem.1", "unused"]))
    # in a capture: with the mode that the pass was made in
    text = refusal(lambda: captured(net.eval(), images, "aux*"))
    assert "'aux*' gives no tensor in a forward pass in eval mode" in text
    assert list(captured(net.train(), images, "aux*")) == ["auxiliary_relu", "auxiliary"]


def test_without_activations_the_named_children_are_used(caplog):
    net, images = Auxiliary(nn.Identity), torch.rand(2, 4)
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager")
    with caplog.at_level(logging.INFO, logger="nsr"):
        layers = find_layers(net, images)
    assert layers == [Layer("stem", 5)]
    messages = [record.getMessage() for record in caplog.records]
    assert "Auxiliary has no activation modules" in messages[0]
    assert "stem" in messages[0]
    assert ["auxiliary" in text for text in messages[1:]] == [True, False]
    assert find_layers(compiled, images) == layers
    for each in (net.eval(), compiled.eval()):
        assert list(captured(each, images)) == ["stem", "head"]


def traced(net, images, how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if how == "export":
            return torch.export.export(net, (images,)).module()
        return torch.jit.trace(net, images) if how == "trace" else torch.jit.script(net)


@pytest.mark.parametrize("how", ["trace", "script", "export"])
def test_a_traced_network_is_refused(how):
    images = torch.rand(3, 4)
    net = traced(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), images, how)
    wrapped = nn.Sequential(nn.LayerNorm(4), net)
    for each in (net, wrapped):
        for take in (captured, extracted):
            assert "calls none of its sub-modules" in refusal(lambda each=each, take=take: take(each, images))
    assert "calls none of its sub-modules" in refusal(lambda: find_layers(wrapped, images, root=net))
    refusal(lambda: captured(net, images, "1"))


def test_a_network_of_torch_fx_is_not():
    net, images = residual_net().eval(), some_images()
    for take in (captured, extracted):
        same_features(take(torch.fx.symbolic_trace(net), images), part(net.values(images), DEFAULT))


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.GELU(), nn.ReLU()], ids=str)
def test_a_token_model_gives_its_blocks(activation):
    """Whether the activation is a module or a function: nn.TransformerEncoderLayer's default is a function."""
    torch.manual_seed(0)
    net, images = TokenNet(activation), some_images(4, size=4)
    blocks = [Layer(f"encoder.layers.{k}", 8, -1) for k in range(2)]
    assert find_layers(net, images) == blocks
    assert find_layers(net, images, "encoder.layers.1") == blocks[1:]
    assert find_layers(net, images, "*.linear1") == [Layer(f"encoder.layers.{k}.linear1", 16, -1) for k in range(2)]
    for mode in (True, False):
        features, expected = extracted(net.train(mode), images), {}
        tokens = net.embed(images.flatten(1).unflatten(1, (-1, 4)))
        for k, block in enumerate(net.encoder.layers):
            tokens = block(tokens)
            expected[f"encoder.layers.{k}"] = tokens.transpose(1, 2)  # -> (batch, neuron, token)
        same_features(features, expected)


def test_blocks_within_blocks_are_part_of_the_outer_ones():
    class Block(nn.Sequential):
        def forward(self, tokens):
            return super().forward(tokens) + tokens

    class Mixer(nn.Sequential):
        def forward(self, tokens):
            return self[1](self[0](tokens).mean(1))

    blocks = [Block(*(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))) for _ in range(3)]
    names = [layer.name for layer in find_layers(Mixer(nn.Sequential(*blocks), nn.Linear(4, 2)), torch.rand(2, 5, 4))]
    assert names == ["0.0", "0.1", "0.2"]


def test_names_refer_to_the_root():
    core = residual_net()
    net, images = nn.Sequential(nn.BatchNorm2d(1), core), some_images()
    layers = find_layers(net, images, root=core)
    assert [layer.name for layer in layers] == DEFAULT
    extractor = FeatureExtractor(net.eval(), layers, root=core)
    logits, features = extractor(images)
    expected = core.values(net[0](images))
    torch.testing.assert_close(logits, expected["fc"])
    same_features(features, part(expected, DEFAULT))
    assert [layer.name for layer in find_layers(net, images)] == ["1.relu", "1.relu#2", "1.tanh"]


# ---------------------------------------------------------------- no trace
@pytest.mark.parametrize("fails", [False, True])
def test_find_layers_leaves_no_trace(fails):
    net, images = Raising(residual_net(dropout=0.5).train(), at=3 if fails else 99), some_images()
    net.net.bn1.eval()
    net.net.bn1.weight.requires_grad_(False)
    net.net.fc.bias.grad = torch.ones(3)
    logits = net(images)
    before, random, kept = inventory(net), torch.get_rng_state(), images.clone()
    if fails:
        with pytest.raises(RuntimeError, match="the network broke"):
            find_layers(net, images)
    else:
        layers = find_layers(net, images)
    assert net.passes == (3 if fails else 5)
    same_inventory(before, inventory(net))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(images, kept)
    logits.sum().backward()  # of a pass made before
    for context in (torch.no_grad, torch.inference_mode) if not fails else ():
        with context():
            assert find_layers(net, images) == layers


def test_find_layers_leaves_other_statistics_too():
    """Spectral normalization and an InstanceNorm that tracks write in training passes; neither is a BatchNorm."""
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3))
    tracking = nn.InstanceNorm2d(4, track_running_stats=True)
    net = nn.Sequential(spectral, tracking, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    before = inventory(net)
    find_layers(net, some_images())
    same_inventory(before, inventory(net))


@pytest.mark.parametrize("fails", [None, "network", "body"])
def test_capture_leaves_no_trace(fails):
    net = Raising(residual_net().eval(), at=1 if fails == "network" else 99)
    net.net.bn1.register_forward_hook(lambda module, inputs, output: None)  # the caller's own
    before = inventory(net)

    def body():
        with capture_features(net, "net.*"):
            assert hooks(net) != before["hooks"]
            net(some_images())
            if fails == "body":
                raise RuntimeError

    if fails is None:
        body()
    else:
        with pytest.raises(RuntimeError):
            body()
    same_inventory(before, inventory(net))
    assert not torch.overrides._get_current_function_mode_stack()


def test_extractors_are_silent_in_other_passes_independent_and_removable():
    net, images = residual_net().eval(), some_images()
    before = hooks(net)
    one = FeatureExtractor(net, find_layers(net, images, "relu"))
    other = FeatureExtractor(net, find_layers(net, images, ["relu#2", "bn1"]))
    first = one(images)[1]
    assert list(first) == ["relu", "relu#2"]
    net(some_images(2, seed=5))
    assert list(other(images)[1]) == ["bn1", "relu#2"]
    other.remove()
    same_features(one(images)[1], first)
    one.remove()
    assert hooks(net) == before
    one.remove()  # once more does no harm
    assert "no output of 'relu', 'relu#2': the pass does not call them" in refusal(lambda: one(images))


@pytest.mark.parametrize("gradients", [False, True])
def test_extractors_keep_no_features_alive(gradients):
    net, images = residual_net(), some_images()
    extractor = FeatureExtractor(net, find_layers(net, images, "*"))
    with torch.set_grad_enabled(gradients):
        logits, features = extractor(images)
    references = [weakref.ref(value) for value in (logits, *features.values())]
    assert len(references) == 11
    del logits, features
    gc.collect()
    assert [reference() for reference in references] == [None] * 11


def test_extractors_restart_after_an_exception_and_keep_no_features_alive():
    """Out of memory is one: the next attempt must not stand on what the failed pass had kept."""
    net, images = Raising(residual_net(), at=1), some_images()
    extractor = FeatureExtractor(net, [Layer("net.relu", 4)])
    kept = []
    net.net.relu.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    try:
        extractor(images)
    except RuntimeError as error:
        error.__traceback__ = None
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    copy.deepcopy(net)  # which a kept tensor with a graph would prevent
    net.passes = -10
    net(images)
    assert list(extractor(images)[1]) == ["net.relu"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_of_extractors_and_hooked_networks(copied):
    net, images = residual_net().eval(), some_images()
    extractor = FeatureExtractor(net, find_layers(net, images))
    before = hooks(net)
    other = copied(extractor)
    assert other.net is not net
    with torch.no_grad():
        other.net.conv1.weight += 1
    for _ in range(2):
        same_features(extractor(images)[1], part(net.values(images), DEFAULT))
        same_features(other(images)[1], part(other.net.values(images), DEFAULT))
    other.remove()
    assert not any(sum(counts) for counts in hooks(other.net).values())
    assert hooks(net) == before
    alone = copied(net)
    torch.testing.assert_close(alone(images), net(images), rtol=0, atol=0)
    same_features(extracted(alone, images), extractor(images)[1], rtol=0, atol=0)


# ---------------------------------------------------------------- torch.compile
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


def compiled_in_place(net, layers, backend):
    extractor = FeatureExtractor(net, layers)
    net.compile(backend=backend, fullgraph=True)
    return extractor


def compiled_before(net, layers, backend):
    return FeatureExtractor(torch.compile(net, backend=backend, fullgraph=True), layers)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [compiled_in_place, compiled_before])
def test_compiled_extractors_give_the_eager_training_step(compiled, backend):
    """Clean pass, adversarial pass, a loss on both views' features, backward; fullgraph refuses a graph break."""
    net = residual_net().double().train()
    plain = copy.deepcopy(net)
    images = some_images(dtype=torch.float64)
    layers = find_layers(net, images, ["bn*", "relu", "tanh"])
    extractor = compiled(net, layers, backend)

    def eager(images):
        values = plain.values(images)
        plain(images)  # for the running statistics
        return values["fc"], {layer.name: values[layer.name] for layer in layers}

    results = []
    for model, passes in ((net, extractor), (plain, eager)):
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
def test_compiled_extractors_are_silent_in_other_passes(backend):
    net, images = residual_net().eval(), some_images()
    expected = net.values(images)
    extractor = compiled_in_place(net, find_layers(net, images), backend)
    for _ in range(2):
        torch.testing.assert_close(net(images), expected["fc"])
        assert not extractor._recorder.features
        logits, features = extractor(images)
        torch.testing.assert_close(logits, expected["fc"])
        same_features(features, part(expected, DEFAULT))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("in_place", [True, False])
def test_capture_in_a_compiled_network_compiles_nothing_again(in_place):
    """Neither the network itself nor anything else that this process has compiled."""
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    other, net, images = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), residual_net().eval(), some_images()
    expected, layers = net.values(images), find_layers(net, images)
    compiled, other = (torch.compile(each, backend=backend, fullgraph=True) for each in (net, other))
    if in_place:
        net.compile(backend=backend, fullgraph=True)
        compiled = net
    with torch.no_grad():
        compiled(images), other(images[0, 0, :, :4])
        count, before = len(compilations), hooks(compiled)
        assert count == 2
        for names in (None, ["bn1", "relu#2"]):
            with capture_features(compiled, names) as features:
                other(images[0, 0, :, :4])
                torch.testing.assert_close(compiled(images), expected["fc"])
                kept = dict(features)
            same_features(kept, part(expected, names or DEFAULT))
            assert hooks(compiled) == before
            compiled(images), other(images[0, 0, :, :4])  # whose features must reach nobody any more
            assert find_layers(compiled, images) == layers
            same_features(features, kept, rtol=0, atol=0)
        assert len(compilations) == count
        # the compiled code knows nothing of hooks that come late
        text = refusal(lambda: FeatureExtractor(compiled, layers)(images))
        assert "build the FeatureExtractor before the first compiled pass" in text
