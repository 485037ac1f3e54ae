"""The stabilising term against the formula written out, and what of it carries a gradient."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import COSTLY_PROPERTY, residual_net, slow_stabilizer_term, some_images

from nsr.errors import InputError
from nsr.stabilizer import SensitivityStabilizer

SHAPES = {"conv": (3, 5, 2, 2), "block.relu": (3, 4, 1, 3), "block.relu#2": (3, 4, 2, 1), "fc": (3, 7)}


def sides(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    made = [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    return [{name: value.requires_grad_() for name, value in side.items()} for side in made]


def counts(top, shapes=SHAPES):
    """How many of each layer's neurons: written for tops that no rounding touches."""
    widths = {name: shape[1] for name, shape in shapes.items()}
    if isinstance(top, int):
        return {name: min(top, neurons) for name, neurons in widths.items()}
    return {name: max(1, int(top * neurons)) for name, neurons in widths.items()}


def gradients(term, *of, retain=False):
    """Of the term, for each layer's features of each side; None where it does not depend on them."""
    sources = [value for side in of for value in side.values()]
    return torch.autograd.grad(term, sources, allow_unused=True, retain_graph=retain)


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- value and gradient


@COSTLY_PROPERTY
@given(
    top=st.integers(1, 8) | st.sampled_from([0.25, 0.5, 0.75, 1.0, 0.01]),
    weight=st.sampled_from([0.0, 0.5, 2.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_formula_gradients_included(top, weight, seed):
    clean, adversarial = sides(seed)
    got = SensitivityStabilizer(weight=weight, top=top)(clean, adversarial)
    expected = slow_stabilizer_term(clean, adversarial, count=counts(top), weight=weight)
    assert got.shape == ()
    same(got, expected)
    pairs = zip(gradients(got, clean, adversarial), gradients(expected, clean, adversarial), strict=True)
    for gradient, wanted in pairs:
        same(gradient, wanted)


def test_only_the_chosen_neurons_are_pulled():
    clean, adversarial = sides()
    term = SensitivityStabilizer(top=2)(clean, adversarial)
    for name, gradient in zip(clean, gradients(term, clean), strict=True):
        moved = [m for m in range(SHAPES[name][1]) if gradient[:, m].ne(0).any()]
        movement = [(clean[name][:, m] - adversarial[name][:, m]).abs().mean().item() for m in range(SHAPES[name][1])]
        assert sorted(moved) == sorted(sorted(range(len(movement)), key=movement.__getitem__)[-2:])


def test_the_choice_carries_no_gradient():
    """The gradient is the sum's over the chosen neurons: the same when these are given by number."""
    clean, adversarial = sides()
    got = gradients(SensitivityStabilizer(weight=1, top=3)(clean, adversarial), clean)
    terms = []
    for name in clean:
        movement = (clean[name] - adversarial[name]).abs()[..., None].flatten(2).mean(2)  # (batch, neuron)
        chosen = sorted(range(SHAPES[name][1]), key=lambda m, movement=movement: -movement[:, m].sum().item())[:3]
        terms.append(movement.mean(0)[chosen].mean())
    for gradient, wanted in zip(got, gradients(sum(terms) / len(terms), clean), strict=True):
        same(gradient, wanted)


def test_the_weight_scales_and_the_layers_are_averaged():
    clean, adversarial = sides()
    one = SensitivityStabilizer(weight=1.0)(clean, adversarial)
    same(SensitivityStabilizer(weight=7.0)(clean, adversarial), 7 * one)
    alone = [SensitivityStabilizer(weight=1.0)({name: clean[name]}, {name: adversarial[name]}) for name in clean]
    same(one, sum(alone) / len(alone))


def test_the_gradient_goes_through_both_sides_unless_told_otherwise():
    clean, adversarial = sides()
    both = SensitivityStabilizer()(clean, adversarial)
    one = SensitivityStabilizer(gradient_through_clean=False)(clean, adversarial)
    same(one, both)
    assert all(gradient is None for gradient in gradients(one, clean, retain=True))
    for gradient, wanted in zip(gradients(one, adversarial), gradients(both, adversarial), strict=True):
        same(gradient, wanted)
        assert wanted.ne(0).any()


def test_the_two_sides_gradients_are_opposite():
    clean, adversarial = sides()
    term = SensitivityStabilizer()(clean, adversarial)
    both = gradients(term, clean, adversarial)
    for of_clean, of_adversarial in zip(both[: len(clean)], both[len(clean) :], strict=True):
        assert of_clean.ne(0).any()
        same(of_clean, -of_adversarial)


def test_equal_sides_give_zero_and_no_nan():
    clean, _ = sides()
    twin = {name: value.detach().clone().requires_grad_() for name, value in clean.items()}
    term = SensitivityStabilizer()(clean, twin)
    assert term.item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients(term, clean, twin))


def test_through_a_network():
    """The weights' gradients of a real net's features, clean side detached or not."""
    net = residual_net().double().train()
    images = some_images(dtype=torch.float64)
    moved = (images + 0.1).clamp(max=1)
    for through_clean in (True, False):
        clean, adversarial = (
            {name: net.values(x)[name] for name in ("relu", "relu#2", "tanh")} for x in (images, moved)
        )
        got = SensitivityStabilizer(top=2, gradient_through_clean=through_clean)(clean, adversarial)
        reference = clean if through_clean else {name: value.detach() for name, value in clean.items()}
        expected = slow_stabilizer_term(reference, adversarial, count=dict.fromkeys(clean, 2), weight=1.0)
        weights = [net.conv1.weight, net.conv2.weight, net.hidden.weight, net.bn1.bias]
        for one, other in zip(
            *(torch.autograd.grad(term, weights, retain_graph=True) for term in (got, expected)), strict=True
        ):
            assert other.ne(0).any()
            same(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_features_are_compared_in_float32(dtype):
    clean, adversarial = ({name: value.detach().to(dtype) for name, value in side.items()} for side in sides())
    term = SensitivityStabilizer()(clean, adversarial)
    assert term.dtype == torch.float32
    expected = SensitivityStabilizer()(
        *({name: v.double() for name, v in side.items()} for side in (clean, adversarial))
    )
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=0)


# ---------------------------------------------------------------- which axis, which layers


def test_tokens_have_their_neurons_last():
    """(batch, token, dim) by default, as find_layers says of them; neuron_dim overrides."""
    clean, adversarial = sides(shapes={"block": (3, 6, 4)})
    swapped = [{"block": side["block"].transpose(1, 2)} for side in (clean, adversarial)]  # neurons on axis 1
    expected = slow_stabilizer_term(*swapped, count={"block": 2}, weight=1.0)
    same(SensitivityStabilizer(top=2)(clean, adversarial), expected)
    same(SensitivityStabilizer(top=2, neuron_dim=-1)(clean, adversarial), expected)
    same(SensitivityStabilizer(top=2, neuron_dim=2)(clean, adversarial), expected)
    same(SensitivityStabilizer(top=2, neuron_dim=1)(*swapped), expected)
    assert not torch.isclose(SensitivityStabilizer(top=2, neuron_dim=1)(clean, adversarial), expected)


def test_a_batch_axis_is_no_neurons():
    clean, adversarial = sides()
    with pytest.raises(InputError, match="neuron_dim is 0"):
        SensitivityStabilizer(neuron_dim=0)(clean, adversarial)


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
    clean, adversarial = sides()
    expected = slow_stabilizer_term(
        *({name: side[name] for name in names} for side in (clean, adversarial)), count=counts(0.1), weight=1.0
    )
    same(stabilizer(clean, adversarial), expected)


def one_line(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_stabilised_is_told_in_one_line():
    clean, adversarial = sides()
    text = one_line(lambda: SensitivityStabilizer(layers=["conv", "layer9"])(clean, adversarial))
    assert "'layer9'" in text
    assert "conv, block.relu" in text
    assert "nothing to stabilise" in one_line(lambda: SensitivityStabilizer()({}, {}))
    fewer = {name: value for name, value in adversarial.items() if name != "fc"}
    assert "different layers" in one_line(lambda: SensitivityStabilizer()(clean, fewer))
    half = {name: value[:1] for name, value in adversarial.items()}
    assert "differ in shape" in one_line(lambda: SensitivityStabilizer()(clean, half))


def test_no_pattern_at_all_is_told_in_one_line():
    clean, adversarial = sides()
    one_line(lambda: SensitivityStabilizer(layers=[])(clean, adversarial))


# ---------------------------------------------------------------- settings


def test_defaults():
    stabilizer = SensitivityStabilizer()
    assert (stabilizer.weight, stabilizer.top, stabilizer.layers) == (1.0, 0.1, None)
    assert stabilizer.gradient_through_clean is True
    assert stabilizer.batch_norm == "batch"
    parameters = inspect.signature(SensitivityStabilizer).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("weight", -1),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("weight", "2"),
        ("weight", True),
        ("top", 0),
        ("top", 1.5),
        ("top", True),
        ("top", None),
        ("gradient_through_clean", "no"),
        ("gradient_through_clean", None),
        ("batch_norm", "eval"),
        ("batch_norm", None),
    ],
)
def test_a_wrong_setting_names_itself(setting, value):
    assert one_line(lambda: SensitivityStabilizer(**{setting: value})).startswith(
        f"stabilizer.{setting} is {value!r}; "
    )


@pytest.mark.parametrize("handling", ["batch", "frozen", "update"])
def test_batch_norm_handlings(handling):
    assert SensitivityStabilizer(batch_norm=handling).batch_norm == handling
