"""The sets of neurons against loops written from their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import PROPERTY, slow_most_sensitive

from nsr.interventions.controls import ENERGY, LEAST, MASS, MOST, SIZE, WHOLE, equal_sum, neuron_sets

SHARES = (0.1, 0.25, 0.5, 0.75)
sensitivities = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.0, 40.0]), min_size=2, max_size=20)


def sets_of(values, *, draws=20, seed=0, layer="relu", shares=SHARES, **rankings):
    sensitivity = torch.tensor(values, dtype=torch.float64)
    return neuron_sets(sensitivity, sensitivity**2, rankings, shares=shares, draws=draws, seed=seed, layer=layer)


def ids(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


@given(sensitivities)
@PROPERTY
def test_most_and_least_against_a_loop(values):
    sets = sets_of(values, draws=2)
    for share in SHARES:
        count = max(1, int(share * len(values) + 1e-9))
        ordered = slow_most_sensitive(values, len(values))
        assert ids(sets.masks(share, MOST)[0]) == sorted(ordered[:count])
        assert ids(sets.masks(share, LEAST)[0]) == sorted(ordered[-count:])
    assert sets.masks(1.0, WHOLE).all()


@given(sensitivities, st.integers(0, 5))
@PROPERTY
def test_random_sets_have_their_size_mass_or_energy(values, seed):
    sets = sets_of(values, seed=seed)
    for share in SHARES:
        most = sets.masks(share, MOST)[0]
        sizes = sets.masks(share, SIZE).sum(1)
        assert sizes.tolist() == [int(most.sum())] * 20
        for family, weights in ((MASS, values), (ENERGY, [value**2 for value in values])):
            wanted = sum(weights[m] for m in ids(most))
            for mask in sets.masks(share, family):
                got = sum(weights[m] for m in ids(mask))
                # no neuron of the set is too much by more than half of itself, and it is never empty
                assert ids(mask)
                assert abs(got - wanted) <= max(weights) / 2 + 1e-9 or len(ids(mask)) == 1


@given(sensitivities, st.randoms(use_true_random=False), st.floats(0, 1))
@PROPERTY
def test_equal_sum_against_trying_every_length(values, random, part):
    order = list(range(len(values)))
    random.shuffle(order)
    mass = part * sum(values)
    got = equal_sum(torch.tensor(values, dtype=torch.float64), torch.tensor(order), mass).tolist()
    assert got == order[: len(got)]
    reached = next((k for k in range(1, len(order) + 1) if sum(values[m] for m in order[:k]) >= mass), len(order))
    distance = {k: abs(sum(values[m] for m in order[:k]) - mass) for k in (reached - 1, reached) if k >= 1}
    assert len(got) in distance
    assert distance[len(got)] == pytest.approx(min(distance.values()), abs=1e-9)


def test_equal_sum_by_hand():
    sensitivity = torch.tensor([8.0, 1.0, 1.0, 4.0, 2.0], dtype=torch.float64)
    for order, mass, expected in (
        ([1, 2, 4, 3, 0], 8.0, [1, 2, 4, 3]),  # 1, 2, 4, 8
        ([1, 2, 4, 0, 3], 7.0, [1, 2, 4]),  # 1, 2, 4, 12: 4 is nearer than 12
        ([1, 2, 4, 0, 3], 8.5, [1, 2, 4, 0]),  # 4 and 12: 12 is nearer
        ([0, 1, 2, 3, 4], 1.0, [0]),  # never empty
        ([0, 1, 2, 3, 4], 16.0, [0, 1, 2, 3, 4]),
    ):
        assert equal_sum(sensitivity, torch.tensor(order), mass).tolist() == expected


def test_the_most_sensitive_set_has_its_own_mass_in_its_own_order():
    """However the sums round: a set is not given one neuron more for the last bit."""
    sensitivity = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.sort(sensitivity, descending=True).indices
    for count in range(1, 65):
        mass = float(sensitivity[order[:count]].flip(0).sum())
        assert len(equal_sum(sensitivity, order, mass)) == count


def test_further_rankings():
    sets = sets_of([4.0, 3.0, 2.0, 1.0], activation=torch.tensor([1.0, 2.0, 9.0, 3.0]), shares=(0.5,))
    assert ids(sets.masks(0.5, "by_activation")[0]) == [2, 3]


def test_equal_sets_are_one_row():
    sets = sets_of([5.0, 1.0], draws=20)
    assert len(sets.distinct) == 3  # either neuron, both
    assert all(len(sets.masks(share, SIZE)) == 20 for share in SHARES)


def test_draws_depend_on_seed_layer_and_share_alone():
    values = list(range(32))
    same = sets_of(values)
    for share in SHARES:
        assert torch.equal(same.masks(share, SIZE), sets_of(values, shares=(share,)).masks(share, SIZE))
        assert torch.equal(same.masks(share, MASS), sets_of(values, shares=(share,)).masks(share, MASS))
        for other in (sets_of(values, seed=1), sets_of(values, layer="conv")):
            assert not torch.equal(same.masks(share, SIZE), other.masks(share, SIZE))
    assert len({tuple(ids(mask)) for mask in same.masks(0.5, SIZE)}) == 20
    assert len({tuple(ids(mask)) for mask in same.masks(0.5, MASS)}) == 20


def test_every_neuron_is_drawn_as_often():
    counts = sets_of([1.0] * 10, draws=2000, shares=(0.5,)).masks(0.5, SIZE).sum(0)
    assert counts.sum() == 10_000
    assert (counts - 1000).abs().max() < 5 * (2000 * 0.25) ** 0.5


def test_a_layer_that_does_not_move():
    sets = sets_of([0.0, 0.0, 0.0, 0.0], shares=(0.5,))
    assert sets.masks(0.5, MOST).sum() == 2
    assert (sets.masks(0.5, MASS).sum(1) == 1).all()
