"""Every check of a setting: what passes, what is refused, and that the refusal is one useful line."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY

from nsr import most_sensitive
from nsr.errors import InputError, check_amount, check_choice, check_epsilon, check_number, did_you_mean, fraction
from tests.conftest import refusal

NAMES = (
    *("natural", "trades", "resnet18", "optimizer", "pgd", "fashion_mnist"),
    *("optimizer._target_", "optimizer.lr", "trainer.max_epochs"),
)


@pytest.mark.parametrize(
    ("got", "suggested"),
    [
        ("tradse", "trades"),
        ("PDG", "pgd"),  # a swap in a short name
        ("mnist", "fashion_mnist"),  # the section or prefix was left out
        ("max_epochs", "trainer.max_epochs"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("limit_test", None),
        ("optimizer.momentum", None),  # a common section is no closeness
        ("optimizer.foo", None),
        ("optimzer", "optimizer"),
        ("resnet18.a1_in1k", "resnet18"),
        ("xyz", None),
        (None, None),
    ],
)
def test_did_you_mean_suggests_close_names_alone(got, suggested):
    assert did_you_mean(got, NAMES) == (f" (did you mean {suggested!r}?)" if suggested else "")
    assert did_you_mean(got, []) == ""


@pytest.mark.parametrize("value", ["eval", "train"])
def test_choice_hands_an_allowed_value_back(value):
    assert check_choice("mode", value, ("eval", "train")) is value


def test_choice_accepts_a_generator_of_choices():
    assert check_choice("mode", "b", (letter for letter in "abc")) == "b"


@pytest.mark.parametrize("value", ["evil", "Eval", None, 1, ["eval"], {"eval": 1}, {"eval"}, math.nan])
def test_choice_refuses_with_name_value_and_choices(value):
    text = refusal(check_choice, "mode", value, ("eval", "train"))
    assert text.startswith(f"mode is {value!r}; ")
    assert ("(did you mean 'eval'?)" in text) == (str(value).lower() in ("evil", "eval"))
    assert "eval, train" in text


BOUNDS = st.none() | st.integers(-3, 3)


@PROPERTY
@given(
    value=st.integers(-4, 4) | st.floats(-4, 4) | st.sampled_from([math.nan, math.inf, -math.inf, True, "1", None]),
    lowest=BOUNDS,
    above=BOUNDS,
    highest=BOUNDS,
    whole=st.booleans(),
)
def test_number_is_held_against_every_bound(value, lowest, above, highest, whole):
    good = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
    for bound, holds in ((lowest, "ge"), (above, "gt"), (highest, "le")):
        if good and bound is not None:
            good = {"ge": value >= bound, "gt": value > bound, "le": value <= bound}[holds]
    limits = {"lowest": lowest, "above": above, "highest": highest, "whole": whole}
    if good:
        assert check_number("steps", value, **limits) is value
    else:
        assert refusal(check_number, "steps", value, **limits).startswith(f"steps is {value!r}; it must be ")


def test_bounds_belong_to_the_range_but_for_above():
    assert check_number("steps", 1, lowest=1, highest=1) == 1
    refusal(check_number, "steps", 1, above=1)
    refusal(check_number, "steps", 0.0, above=0)
    assert check_number("steps", 1e-300, above=0) == 1e-300


def test_number_refusal_names_the_bounds_and_the_advice():
    text = refusal(check_number, "top", 7, above=0, highest=1, advice="a fraction")
    assert text == "top is 7; it must be a number above 0 and at most 1; a fraction"
    assert refusal(check_number, "steps", 1.5, lowest=1, whole=True).endswith("it must be a whole number at least 1")
    assert refusal(check_number, "steps", math.nan).endswith("it must be a number")


@PROPERTY
@given(numerator=st.integers(-300, 300), denominator=st.integers(1, 300))
def test_fraction_is_the_division(numerator, denominator):
    assert fraction("epsilon", f"{numerator}/{denominator}") == numerator / denominator
    assert fraction("epsilon", f" {numerator} / {denominator} ") == numerator / denominator


@PROPERTY
@given(value=st.floats(allow_nan=False))
def test_fraction_reads_a_plain_number(value):
    assert fraction("epsilon", repr(value)) == value


@pytest.mark.parametrize("value", [8, 0.5, None, True, [1]])
def test_fraction_hands_on_what_is_no_text(value):
    assert fraction("epsilon", value) is value


@pytest.mark.parametrize("text", ["", "eight", "8/0", "8/255/2", "/255", "8:255", "8/two", "0x8"])
def test_fraction_refuses_other_text(text):
    assert refusal(fraction, "epsilon", text).startswith(f"epsilon is {text!r}; ")


def test_fraction_refuses_a_slash_with_nothing_behind():
    """'8/' is a slip for '8/255', not 8."""
    refusal(fraction, "epsilon", "8/")


@pytest.mark.parametrize(
    ("value", "norm", "pixels", "expected"),
    [
        *(("8/255", "linf", None, 8 / 255), (0, "linf", None, 0.0), (1, "linf", None, 1.0)),
        *(("0.5", "l2", None, 0.5), (8, "l2", None, 8.0), (8, "l2", 64, 8.0)),
        *((8, "l1", None, 8.0), (64, "l1", 64, 64.0)),
    ],
)
def test_epsilon_is_a_float(value, norm, pixels, expected):
    epsilon = check_epsilon("epsilon", value, norm=norm, pixels=pixels)
    assert type(epsilon) is float
    assert epsilon == expected


@pytest.mark.parametrize(
    ("value", "norm", "pixels"),
    [
        (8, "linf", None),
        (1.0001, "linf", None),
        (8, "linf", 100),  # one pixel moves by 1 at most
        (8.001, "l2", 64),
        (64.01, "l1", 64),
        (-0.1, "l1", None),
        (-0.1, "linf", None),
        (-0.1, "l2", None),
        ("nan", "l2", None),
        ("inf", "l2", None),
        (None, "linf", None),
        (True, "linf", None),
        ([0.1], "linf", None),
    ],
)
def test_epsilon_out_of_range_names_the_units(value, norm, pixels):
    text = refusal(check_epsilon, "epsilon", value, norm=norm, pixels=pixels)
    assert "pixels in [0, 1]" in text
    assert "8/255" in text


def test_a_whole_number_beyond_any_float_is_refused():
    assert "it must be a whole number at least 0" in refusal(check_number, "seed", 10**400, lowest=0, whole=True)


@pytest.mark.parametrize("top", [1, 7, 1000, 0.001, 0.3, 1.0])
def test_top_passes(top):
    assert check_amount("top", top) is top


@pytest.mark.parametrize("top", [0, -1, 0.0, -0.5, 1.5, True, False, None, "3", "0.3", math.nan, math.inf, [3]])
def test_top_is_refused(top):
    text = refusal(check_amount, "top", top)
    assert text.startswith(f"top is {top!r}; ")
    assert "fraction" in text
    assert "count" in text


def test_a_number_of_numpy_counts_as_python_s():
    assert type(check_number("steps", numpy.int64(3), whole=True)) is int
    assert type(check_amount("top", numpy.int64(3))) is int and type(check_amount("top", numpy.float32(0.5))) is float
    assert check_epsilon("epsilon", numpy.float32(0.5), norm="linf") == 0.5
    for value in (numpy.bool_(True), numpy.float64("nan"), numpy.complex64(1), numpy.ones(1)):
        with pytest.raises(InputError):
            check_number("steps", value)
    assert len(most_sensitive(torch.rand(50), numpy.int64(5))) == 5  # a count, not a fraction
