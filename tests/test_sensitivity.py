"""The measure against double loops from its definition, its choice of neurons, its histogram."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import COSTLY_PROPERTY, PROPERTY, slow_most_sensitive, slow_sensitivity

from nsr.errors import InputError
from nsr.sensitivity import KINDS, most_sensitive, neuron_sensitivity, sensitivity_histogram

LAYOUTS = {  # shape, neuron_dim
    "units": ((5, 4), 1),
    "units_last": ((5, 4), -1),
    "channels": ((3, 4, 2, 3), 1),
    "channels_last": ((3, 2, 3, 4), -1),
    "channels_from_the_end": ((3, 4, 2, 3), -3),
    "tokens": ((3, 5, 4), -1),
    "tokens_by_number": ((3, 5, 4), 2),
    "volume": ((2, 3, 2, 2, 2), 1),
    "one_sample": ((1, 4, 2, 2), 1),
    "one_neuron": ((3, 1, 2, 2), 1),
}


def pairs(shape, neuron_dim, seed=0, dtype=torch.float64):
    """Clean and adversarial features; neuron 0 is silent in both views, the last one does not change."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(shape, generator=generator, dtype=torch.float64)
    adversarial = clean + torch.randn(shape, generator=generator, dtype=torch.float64)
    if shape[neuron_dim] > 2:
        for view in (clean, adversarial):
            view.select(neuron_dim, 0).zero_()
        adversarial.select(neuron_dim, -1).copy_(clean.select(neuron_dim, -1))
    return clean.to(dtype), adversarial.to(dtype)


def close(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(got.detach().double().numpy(), np.asarray(expected), rtol=tolerance, atol=0)


@pytest.mark.parametrize("kind", ["absolute", "relative", "mean_first"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_double_loop(layout, kind):
    shape, neuron_dim = LAYOUTS[layout]
    clean, adversarial = pairs(shape, neuron_dim)
    settings = {"kind": kind, "neuron_dim": neuron_dim}
    got = neuron_sensitivity(clean, adversarial, **settings)
    assert got.shape == (shape[neuron_dim],)
    close(got, slow_sensitivity(clean, adversarial, **settings))
    for dtype in (torch.float32, torch.float64):
        assert neuron_sensitivity(clean.to(dtype), adversarial.to(dtype), **settings).dtype == dtype


@COSTLY_PROPERTY
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    axis=st.integers(1, 3),
    from_the_end=st.booleans(),
    kind=st.sampled_from(["absolute", "relative", "mean_first"]),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_equals_the_double_loop_in_any_layout(shape, axis, from_the_end, kind, seed, scale):
    axis = min(axis, len(shape) - 1)
    neuron_dim = axis - len(shape) if from_the_end else axis
    clean, adversarial = pairs(tuple(shape), neuron_dim, seed)
    clean, adversarial = clean * scale, adversarial * scale
    got = neuron_sensitivity(clean, adversarial, kind=kind, neuron_dim=neuron_dim)
    # the mean is taken before the difference in mean_first: what cancels there is gone in both
    tolerance = 1e-12 if kind != "mean_first" else 1e-9
    close(got, slow_sensitivity(clean, adversarial, kind=kind, neuron_dim=neuron_dim), tolerance)


def test_defaults_kinds_units_and_scale():
    """absolute is in the activation's units, relative is a ratio; in mean_first opposite differences cancel."""
    parameters = inspect.signature(neuron_sensitivity).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == ["clean", "adversarial"]
    assert KINDS == ("absolute", "relative", "mean_first")
    clean, adversarial = pairs((3, 4, 2, 2), 1)
    assert torch.equal(neuron_sensitivity(clean, adversarial), neuron_sensitivity(clean, adversarial, kind="absolute"))
    for kind, factor in (("absolute", 10.0), ("relative", 1.0), ("mean_first", 10.0)):
        once, tenfold = (neuron_sensitivity(s * clean, s * adversarial, kind=kind) for s in (1, 10))
        torch.testing.assert_close(tenfold, factor * once)
        assert torch.equal(neuron_sensitivity(clean, clean.clone(), kind=kind), torch.zeros(4, dtype=torch.float64))
    seesaw, still = torch.tensor([[[[1.0, -1.0]]]]), torch.zeros(1, 1, 1, 2)
    assert neuron_sensitivity(still, seesaw).item() == 1
    assert neuron_sensitivity(still, seesaw, kind="mean_first").item() == 0


def test_relative_is_of_the_clean_view():
    clean, adversarial = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[6.0, 0.5, 0.0]])
    assert neuron_sensitivity(clean, adversarial, kind="relative").tolist() == [2, math.inf, 0]
    assert neuron_sensitivity(adversarial, clean, kind="relative").tolist() == pytest.approx([4 / 6, 1, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_measured_in_float32(dtype, kind):
    """Of 20000 values near 1 a sum in half precision would be off by far more than this, or infinite."""
    generator = torch.Generator().manual_seed(0)
    clean = (1 + torch.rand(2, 3, 100, 100, generator=generator)).to(dtype)
    adversarial = clean + torch.rand(2, 3, 100, 100, generator=generator).to(dtype)
    got = neuron_sensitivity(clean, adversarial, kind=kind)
    assert got.dtype == torch.float32
    close(got, neuron_sensitivity(clean.double(), adversarial.double(), kind=kind), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("other", [None, torch.float32])
def test_quarter_precision_is_measured_in_float32(dtype, kind, other):
    """torch does not mix these with other floats."""
    clean, adversarial = (view.to(dtype) for view in pairs((3, 4, 2), 1, 0))
    expected = neuron_sensitivity(clean.float(), adversarial.float(), kind=kind)
    found = neuron_sensitivity(clean, adversarial.to(other or dtype), kind=kind)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["units", "channels", "tokens"])
def test_gradient_reaches_both_views_and_is_the_numerical_one(layout, kind):
    shape, neuron_dim = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(1)
    # away from the kinks of |.|, which lie at 0 and where both views are equal
    clean = 1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    adversarial = clean + 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    views = [clean.requires_grad_(), adversarial.requires_grad_()]
    assert torch.autograd.gradcheck(lambda c, a: neuron_sensitivity(c, a, kind=kind, neuron_dim=neuron_dim), views)
    for gradient in torch.autograd.grad(neuron_sensitivity(*views, kind=kind, neuron_dim=neuron_dim).sum(), views):
        assert gradient.ne(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_finite_where_nothing_changes(kind):
    """0 / 0 of relative: a dead ReLU must not send nan into every weight."""
    clean = torch.tensor([[0.0, 2.0, 1.0], [0.0, 3.0, 1.0]], requires_grad=True)
    adversarial = torch.tensor([[0.0, 2.0, 2.0], [0.0, 3.0, 2.0]], requires_grad=True)
    sensitivity = neuron_sensitivity(clean, adversarial, kind=kind)
    assert sensitivity.tolist() == [0, 0, 1]
    for gradient in torch.autograd.grad(sensitivity.sum(), [clean, adversarial]):
        assert gradient.isfinite().all()
        assert gradient[:, :2].eq(0).all()
        assert gradient[:, 2].ne(0).all()


@pytest.mark.parametrize(
    ("clean", "adversarial", "settings", "match"),
    [
        ((3, 4), (3, 5), {}, r"differ in shape, \(3, 4\) and \(3, 5\)"),
        ((3, 4), (2, 4), {}, r"differ in shape"),
        ((3, 1), (3, 4), {}, r"differ in shape"),  # broadcasting would hide it
        *[((3, 4), (3, 4), {"neuron_dim": dim}, rf"neuron_dim is {dim} .*\(3, 4\)") for dim in (0, -2, 2, -3)],
        ((3,), (3,), {}, r"neuron_dim is 1 .*\(3,\)"),
        ((), (), {}, r"neuron_dim is 1"),
        ((0, 4), (0, 4), {}, r"at least one sample"),
        ((3, 4), (3, 4), {"kind": "relativ"}, r"kind is 'relativ'.*did you mean 'relative'"),
    ],
)
def test_bad_input_is_one_line(clean, adversarial, settings, match):
    with pytest.raises(InputError, match=match):
        neuron_sensitivity(torch.zeros(clean), torch.zeros(adversarial), **settings)


@PROPERTY
@given(values=st.lists(st.integers(0, 4), min_size=1, max_size=12), top=st.integers(1, 14))
def test_count_takes_the_largest_in_order_ties_by_id(values, top):
    sensitivity = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    got = most_sensitive(sensitivity, top)
    assert (got.dtype, got.requires_grad, sensitivity.requires_grad) == (torch.int64, False, True)
    assert got.tolist() == slow_most_sensitive(values, top)


@pytest.mark.parametrize("neurons", [1, 10, 30, 64, 100, 999])
def test_fraction_takes_its_part_rounded_down_at_least_one(neurons):
    """Counted in whole numbers: 0.29 * 100 is 28.999... in floats and 29 neurons all the same."""
    for percent in range(1, 101):
        got = most_sensitive(torch.zeros(neurons), percent / 100)
        assert got.tolist() == list(range(max(1, neurons * percent // 100))), percent


def test_many_equal_neurons_stay_in_order():
    """torch.sort is stable for short vectors even where it does not promise to be; not for long ones."""
    values = torch.zeros(5000)
    values[4000:] = 1
    assert most_sensitive(values, 1.0).tolist() == [*range(4000, 5000), *range(4000)]
    assert most_sensitive(values, 1).tolist() == [4000]


@pytest.mark.parametrize("top", [True, False, 0, -1, 0.0, 1.01, "3", None, math.nan])
def test_a_wrong_top_is_refused(top):
    with pytest.raises(InputError, match="top is"):
        most_sensitive(torch.rand(4), top)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(InputError, match="sensitivity has shape"):
        most_sensitive(torch.rand(shape), 1)


def assert_is_numpys(values, bins, dtype):
    """numpy's counts on edges k / bins * largest."""
    counts, edges = sensitivity_histogram(torch.tensor(values, dtype=dtype, requires_grad=True), bins=bins)
    largest = max(values) or 1.0
    expected = [k / bins * largest for k in range(bins + 1)]
    assert (counts.dtype, edges.dtype, edges.requires_grad) == (torch.int64, torch.float64, False)
    assert edges.tolist() == expected
    assert counts.tolist() == np.histogram(np.asarray(values, dtype=np.float64), bins=np.asarray(expected))[0].tolist()
    assert counts.sum() == len(values)


@PROPERTY
@given(
    values=st.lists(st.floats(0, 1e6, width=32) | st.integers(0, 8).map(float), min_size=1, max_size=40),
    bins=st.integers(1, 70),
    double=st.booleans(),
)
def test_histogram_is_numpys(values, bins, double):
    assert_is_numpys(values, bins, [torch.float32, torch.float64][double])


@pytest.mark.parametrize(
    "values",
    [[0.0] * 7, [0.3], [0.0], [k / 8 for k in range(9)], [1.0] * 5, [0.0, 1e-30], [2.0, 0.1 * 3]],
    ids=["all_zero", "one_neuron", "one_still_neuron", "on_the_edges", "all_equal", "tiny", "rounding"],
)
def test_histogram_of_special_layers(values):
    for bins in (1, 8, 64):
        assert_is_numpys(values, bins, torch.float64)
    assert len(sensitivity_histogram(torch.tensor(values))[0]) == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("neuron_dim", [1, -1])
def test_half_precision_and_channels_last_against_float64(dtype, neuron_dim):
    """Value to 1e-6; gradients are a sign times one number, rounded once; entries that do not change have none."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(4, 6, 9, 6, generator=generator).to(dtype).relu()
    adversarial = torch.where(torch.rand(clean.shape, generator=generator) < 0.3, clean, clean * 1.0625)
    views = [view.contiguous(memory_format=torch.channels_last).requires_grad_() for view in (clean, adversarial)]
    exact = [view.double().requires_grad_() for view in (clean, adversarial)]
    weights = 1000 * (1 + torch.rand(6, generator=generator))  # no gradient is subnormal in float16
    got, expected = (neuron_sensitivity(*pair, neuron_dim=neuron_dim) for pair in (views, exact))
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)
    found = torch.autograd.grad((got * weights).sum(), views)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    for gradient, other in zip(found, wanted, strict=True):
        assert gradient.dtype == dtype
        assert torch.equal(gradient == 0, other == 0)
        torch.testing.assert_close(gradient.double(), other, rtol=torch.finfo(dtype).eps, atol=0)


def test_no_difference_of_activations_is_kept_for_the_backward_pass():
    clean, adversarial = (torch.rand(2, 3, 4, 4).bfloat16().requires_grad_() for _ in range(2))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        sensitivity = neuron_sensitivity(clean, adversarial)
    own = {view.data_ptr() for view in (clean, adversarial)}
    assert all(each.data_ptr() in own for each in kept if each.numel() > 3)
    (penalty,) = torch.autograd.grad(sensitivity.square().sum(), clean, create_graph=True)
    assert torch.autograd.grad(penalty.float().square().sum(), clean)[0].ne(0).any()  # differentiable twice
