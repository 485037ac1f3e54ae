"""The ensemble's draw of a source; the kept perturbation of free training against a slow one in Python's floats."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from reference import inventory, residual_net, same_inventory, some_images

from nsr.attacks import EnsembleAttack, GradientAttack, KeptPerturbation, fgsm
from nsr.errors import InputError

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


class Noting:
    """An attack that notes which network it was given and gives the images back."""

    restores_network, norm, epsilon, title, soft_labels = True, "linf", 0.1, "noting", False

    def __init__(self):
        self.given = []

    def __call__(self, net, images, labels, *, generator=None):
        self.given.append((net, generator))
        return images


def draws(count, *, fixed, seed=0):
    """How often each source was drawn, the trained network last, and the order of the draws."""
    networks = [residual_net(k) for k in range(fixed)]
    attack, trained = Noting(), residual_net(99)
    ensemble = EnsembleAttack(attack=attack, networks=networks)
    torch.manual_seed(seed)
    for _ in range(count):
        ensemble(trained, some_images(), LABELS)
    order = [next(k for k, net in enumerate([*networks, trained]) if net is given) for given, _ in attack.given]
    return [order.count(k) for k in range(fixed + 1)], order


@pytest.mark.parametrize("fixed", [1, 2, 4])
def test_every_source_is_drawn_about_as_often(fixed):
    count, chance = 900, 1 / (fixed + 1)
    drawn, order = draws(count, fixed=fixed)
    assert sum(drawn) == count
    assert (drawn, order) == draws(count, fixed=fixed), "torch's generator decides"
    for times in drawn:
        assert abs(times - count * chance) < 4 * math.sqrt(count * chance * (1 - chance))
    same_as_before = sum(one == other for one, other in pairwise(order))
    assert abs(same_as_before - count * chance) < 4 * math.sqrt(count * chance), "each draw for itself, not a round"


def test_the_generator_is_the_attacks_alone():
    attack, generator = Noting(), torch.Generator().manual_seed(3)
    state = generator.get_state()
    ensemble = EnsembleAttack(attack=attack, networks=[residual_net(1)])
    for _ in range(5):
        ensemble(residual_net(), some_images(), LABELS, generator=generator)
    assert all(given is generator for _, given in attack.given)
    assert torch.equal(generator.get_state(), state)


@both_norms
@pytest.mark.parametrize("random_start", [False, True])
def test_images_are_the_attacks_on_the_source(norm, random_start):
    fixed, trained, images = [residual_net(1), residual_net(2)], residual_net(0).train(), some_images()
    attack = GradientAttack(epsilon=0.3, steps=2, norm=norm, random_start=random_start)
    of_source = [attack(net, images, LABELS, generator=torch.Generator().manual_seed(4)) for net in (*fixed, trained)]
    before = [inventory(net.eval()) for net in fixed] + [inventory(trained)]
    ensemble, drawn = EnsembleAttack(attack=attack, networks=fixed), set()
    torch.manual_seed(0)
    for _ in range(30):
        got = ensemble(trained, images, LABELS, generator=torch.Generator().manual_seed(4))
        (source,) = [k for k, expected in enumerate(of_source) if torch.equal(got, expected)]
        drawn.add(source)
    assert drawn == {0, 1, 2}
    for net, kept in zip((*fixed, trained), before, strict=True):
        same_inventory(kept, inventory(net))


def test_scale_is_the_inner_attacks():
    attack = GradientAttack(epsilon=0.4, steps=1, step_size=0.4, random_start=False)
    ensemble = EnsembleAttack(attack=attack, networks=[residual_net(1)])
    assert ensemble.scale == 1
    ensemble.scale = 0.25
    assert attack.scale == ensemble.scale == 0.25
    trained, images = residual_net(0).eval(), some_images()
    expected = [fgsm(net, images, LABELS, epsilon=0.1) for net in (trained, residual_net(1).eval())]
    for _ in range(6):
        got = ensemble(trained, images, LABELS)
        assert any(torch.allclose(got, one, rtol=0, atol=1e-7) for one in expected)
    ensemble.scale = 0.0
    assert torch.equal(ensemble(trained, images, LABELS), images)


@pytest.mark.parametrize("networks", [[], ()])
def test_an_ensemble_of_none_is_refused(networks):
    with pytest.raises(InputError, match="at least one fixed network"):
        EnsembleAttack(attack=Noting(), networks=networks)


def sign(value):
    return (value > 0) - (value < 0)


def length(row):
    return math.sqrt(math.fsum(value**2 for value in row))


def slow_ascended(row, gradient, *, norm, epsilon, step_size):
    """One image's perturbation after one step, pixel by pixel."""
    if norm == "linf":
        stepped = [d + step_size * sign(g) for d, g in zip(row, gradient, strict=True)]
        return [min(max(d, -epsilon), epsilon) for d in stepped]
    size = length(gradient)
    stepped = [d + step_size * g / size if size else d for d, g in zip(row, gradient, strict=True)]
    return [d * epsilon / length(stepped) for d in stepped] if length(stepped) > epsilon else stepped


def some_gradient(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(count, 1, 3, 3, generator=generator, dtype=torch.float64)
    gradient.view(-1)[::4] = 0
    gradient[0] = 0 if seed % 3 == 0 else gradient[0]  # an image without any gradient
    return gradient.to(dtype)


def as_images(rows):
    return torch.tensor(rows, dtype=torch.float64).view(-1, 1, 3, 3)


def check(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@both_norms
@pytest.mark.parametrize("step_size", [None, 0.3, "1/5"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_it_is_the_slow_one_over_batches_of_many_sizes(norm, step_size, scale):
    kept = KeptPerturbation(epsilon=0.4, step_size=step_size, norm=norm)
    kept.scale = scale
    size = scale * {None: 0.4, "1/5": 0.2}.get(step_size, step_size)
    places = []  # the slow perturbation, a row a place
    # a smaller last batch, a whole one again, then larger ones
    for step, count in enumerate([4, 4, 2, 4, 1, 6, 3, 6, 8]):
        places += [[0.0] * 9 for _ in range(count - len(places))]
        images = some_images(count, size=3, seed=step, dtype=torch.float64)
        before, gradient = images.clone(), some_gradient(count, step)
        got = kept.perturbed(images.requires_grad_())
        assert not got.requires_grad
        check(got, (images + as_images(places[:count])).clamp(0, 1))
        assert torch.equal(images, before)
        noted = got.clone()
        kept.ascend(gradient)
        assert torch.equal(got, noted), "what was given stays"
        for place, row in enumerate(gradient.flatten(1).tolist()):
            places[place] = slow_ascended(places[place], row, norm=norm, epsilon=scale * 0.4, step_size=size)
        check(kept.perturbation, as_images(places))
    sizes = [max(map(abs, row)) if norm == "linf" else length(row) for row in places]
    assert max(sizes) == pytest.approx(scale * 0.4), "the ball was reached"
    assert min(sizes) > 0


@both_norms
def test_at_first_it_is_zero_and_further_places_are_too(norm):
    kept, images = KeptPerturbation(epsilon=0.1, norm=norm), some_images(5, size=3)
    assert kept.perturbation is None
    got = kept.perturbed(images[:2])
    assert torch.equal(got, images[:2])
    assert got.data_ptr() != images.data_ptr(), "the caller's images are not handed out"
    kept.ascend(torch.ones(2, 1, 3, 3))
    moved = kept.perturbed(images)
    assert (moved != images).flatten(1).any(1).tolist() == [True, True, False, False, False]
    before = kept.perturbation.clone()
    kept.ascend(-torch.ones(1, 1, 3, 3))
    assert not torch.equal(kept.perturbation[0], before[0])
    assert torch.equal(kept.perturbation[1:], before[1:]), "a smaller batch touches its own places alone"


@both_norms
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_gradient_that_overflowed_changes_nothing(norm, wrong, scale):
    kept = KeptPerturbation(epsilon=0.1, step_size=0.07, norm=norm)
    kept.scale = scale
    for step in range(3):
        kept.perturbed(some_images(4, size=3))
        kept.ascend(some_gradient(4, step + 1, torch.float32))
    before = kept.perturbation.clone()
    assert before.abs().sum() > 0
    gradient = some_gradient(4, 9, torch.float32)
    gradient[2, 0, 1, 1] = wrong  # one entry spoils the step of the whole batch, as in the optimizer
    kept.ascend(gradient)
    torch.testing.assert_close(kept.perturbation, before, rtol=0, atol=0 if norm == "linf" else 1e-7)
    kept.ascend(some_gradient(4, 10, torch.float32))
    assert kept.perturbation.isfinite().all()
    assert not torch.allclose(kept.perturbation, before, atol=1e-3), "the next step is made"


@both_norms
def test_scale_is_of_epsilon_and_step(norm):
    halved = KeptPerturbation(epsilon=0.4, step_size=0.3, norm=norm)
    small = KeptPerturbation(epsilon=0.2, step_size=0.15, norm=norm)
    whole = KeptPerturbation(epsilon=0.4, step_size=0.3, norm=norm)
    assert halved.scale == 1
    halved.scale = 0.5
    for step in range(4):
        for one in (halved, small, whole):
            one.ascend(some_gradient(3, step + 1))
        assert torch.equal(halved.perturbation, small.perturbation)
        assert not torch.equal(halved.perturbation, whole.perturbation)
    halved.scale = 0.0
    halved.ascend(some_gradient(3, 1))
    assert halved.perturbation.eq(0).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epsilon": 8}, r"epsilon is 8; .*8/255, not 8"),
        ({"step_size": -1}, "step_size is -1"),
        ({"step_size": 2}, "step_size is 2; .*2/255, not 2"),
        ({"norm": "l3"}, "norm is 'l3'.*linf, l2, l1"),
    ],
)
def test_a_wrong_setting_is_refused(change, match):
    with pytest.raises(InputError, match=match):
        KeptPerturbation(**{"epsilon": 0.1, **change})
