"""The neuron sets against loops written from their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY, slow_most_sensitive

from nsr.interventions.controls import LEAST, MOST, SENSITIVITY, SIZE, SQUARED_DIFFERENCE, WHOLE, equal_sum, neuron_sets

FRACTIONS = (0.1, 0.25, 0.5, 0.75)
sensitivities = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.0, 40.0]), min_size=2, max_size=20)


def sets_of(values, *, n_random_sets=20, seed=0, layer="relu", fractions=FRACTIONS, **rankings):
    sensitivity = torch.tensor(values, dtype=torch.float64)
    settings = {"fractions": fractions, "n_random_sets": n_random_sets, "seed": seed, "layer": layer}
    return neuron_sets(sensitivity, sensitivity**2, rankings, **settings)


def ids(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


@given(sensitivities, st.integers(0, 5))
@PROPERTY
def test_sets_against_a_loop(values, seed):
    sets = sets_of(values, seed=seed)
    assert sets.masks(1.0, WHOLE).all()
    for fraction in FRACTIONS:
        count = max(1, int(fraction * len(values) + 1e-9))
        ordered = slow_most_sensitive(values, len(values))
        most = ordered[:count]
        assert ids(sets.masks(fraction, MOST)[0]) == sorted(most)
        assert ids(sets.masks(fraction, LEAST)[0]) == sorted(ordered[-count:])
        assert sets.masks(fraction, SIZE).sum(1).tolist() == [count] * 20
        for control, weights in ((SENSITIVITY, values), (SQUARED_DIFFERENCE, [value**2 for value in values])):
            wanted = sum(weights[m] for m in most)
            for mask in sets.masks(fraction, control):
                got = sum(weights[m] for m in ids(mask))
                # no neuron of the set is too much by more than half of itself, and it is never empty
                assert ids(mask)
                assert abs(got - wanted) <= max(weights) / 2 + 1e-9 or len(ids(mask)) == 1


@given(sensitivities, st.randoms(use_true_random=False), st.floats(0, 1))
@PROPERTY
def test_equal_sum_against_trying_every_length(values, random, part):
    order = list(range(len(values)))
    random.shuffle(order)
    wanted = part * sum(values)
    got = equal_sum(torch.tensor(values, dtype=torch.float64), torch.tensor(order), wanted).tolist()
    assert got == order[: len(got)]
    reached = next((k for k in range(1, len(order) + 1) if sum(values[m] for m in order[:k]) >= wanted), len(order))
    distance = {k: abs(sum(values[m] for m in order[:k]) - wanted) for k in (reached - 1, reached) if k >= 1}
    assert len(got) in distance
    assert distance[len(got)] == pytest.approx(min(distance.values()), abs=1e-9)


def test_the_most_sensitive_set_has_its_own_sum_in_its_own_order():
    """However the sums round: a set does not get one neuron more for the last bit."""
    sensitivity = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.sort(sensitivity, descending=True).indices
    for count in range(1, 65):
        wanted = float(sensitivity[order[:count]].flip(0).sum())
        assert len(equal_sum(sensitivity, order, wanted)) == count


def test_small_cases():
    sets = sets_of([4.0, 3.0, 2.0, 1.0], activation=torch.tensor([1.0, 2.0, 9.0, 3.0]), fractions=(0.5,))
    assert ids(sets.masks(0.5, "by_activation")[0]) == [2, 3]
    sets = sets_of([5.0, 1.0])
    assert len(sets.distinct) == 3  # either neuron, both
    assert all(len(sets.masks(fraction, SIZE)) == 20 for fraction in FRACTIONS)
    sets = sets_of([0.0, 0.0, 0.0, 0.0], fractions=(0.5,))  # no neuron is sensitive
    assert sets.masks(0.5, MOST).sum() == 2
    assert (sets.masks(0.5, SENSITIVITY).sum(1) == 1).all()


def test_random_sets_depend_on_seed_layer_and_fraction_alone():
    values = list(range(32))
    same = sets_of(values)
    for control in (SIZE, SENSITIVITY):
        for fraction in FRACTIONS:
            drawn = same.masks(fraction, control)
            assert torch.equal(drawn, sets_of(values, fractions=(fraction,)).masks(fraction, control))
            for other in (sets_of(values, seed=1), sets_of(values, layer="conv")):
                assert not torch.equal(drawn, other.masks(fraction, control))
        assert len({tuple(ids(mask)) for mask in same.masks(0.5, control)}) == 20


def test_every_neuron_is_drawn_equally_often():
    counts = sets_of([1.0] * 10, n_random_sets=2000, fractions=(0.5,)).masks(0.5, SIZE).sum(0)
    assert counts.sum() == 10_000
    assert (counts - 1000).abs().max() < 5 * (2000 * 0.25) ** 0.5
