"""With a generator for each image an attack's result for an image depends on no other image of the batch."""

from __future__ import annotations

import pytest
import torch
from reference import residual_net, seeded, some_images

from nsr.attacks import (
    AdaptiveAttack,
    EnsembleAttack,
    GradientAttack,
    Momentum,
    TransferAttack,
    UniformDraws,
    guarded,
)
from nsr.errors import InputError
from nsr.randomness import draw

COUNT = 6


class Drawing:
    """A user's attack; it notes what generator it was given."""

    def __init__(self, *, per_image=False):
        self.draws_per_image, self.given = per_image, None

    def __call__(self, net, images, labels, *, generator=None):
        self.given = generator
        noise = draw(torch.rand, *images.shape, generator=generator, dtype=images.dtype)
        return (images + 0.2 * noise - 0.1).clamp(0, 1)


def gradient(norm="linf", **settings):
    epsilon = {"linf": 0.1, "l2": 0.6, "l1": 3}[norm]
    return GradientAttack(epsilon=epsilon, norm=norm, **{"steps": 2, **settings})


ATTACKS = {
    "linf": gradient(),
    "l2": gradient("l2"),
    "l1": gradient("l1"),
    "gaussian": gradient(random_start="gaussian", loss="kl"),
    "restarts": gradient(restarts=3, loss="margin"),
    "least_likely": gradient("l2", targeted="least_likely", keep_best=True),
    "unprojected": gradient(steps=1, noise=0.2, projection=False),
    "fgsm": gradient(steps=1, random_start=False),
    "expectation": gradient(eot_samples=2),
    "random point": gradient("l1", steps=0),
    "uniform": UniformDraws(epsilon=0.5, draws=4),
    "adaptive": AdaptiveAttack(epsilon=0.1, steps=2, layers=["relu", "tanh"], top=0.5),
    "features": AdaptiveAttack(epsilon=0.1, steps=2, layers=["relu"], top=1, cross_entropy=False),
    "momentum": Momentum(epsilon=0.1, steps=2),
    "transfer": TransferAttack(attack=gradient(), networks=[residual_net(k).double() for k in (1, 2)]),
    "own": guarded(Drawing(per_image=True), epsilon=0.1),
}


@pytest.fixture(scope="module")
def case():
    net, images = residual_net().double().eval(), some_images(COUNT, dtype=torch.float64)
    return net, images, net(images).argmax(1)


@pytest.mark.parametrize("name", ATTACKS)
def test_alone_and_in_any_order(case, name):
    net, images, labels = case

    def made(places):
        generators = [seeded(100 + place) for place in places]
        return ATTACKS[name](net, images[places], labels[places], generator=generators)

    together = made(list(range(COUNT)))
    assert not torch.allclose(together, images)
    for places in ([4], [3, 0], [5, 2, 0, 1, 4, 3]):
        torch.testing.assert_close(made(places), together[places], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_of_one_generator_each_differ_from_those_of_another(case, norm):
    """Images that are equal get different starts, and equal ones from equal generators."""
    net, images, labels = (case[0], case[1][[0, 0, 0]], case[2][[0, 0, 0]])
    first, second, third = gradient(norm, steps=0)(net, images, labels, generator=[seeded(1), seeded(2), seeded(1)])
    assert torch.equal(first, third)
    assert not torch.allclose(first, second)


def test_draws_are_those_of_each_generator():
    got = draw(torch.randn, 3, 2, 5, generator=[seeded(k) for k in range(3)], dtype=torch.float64)
    for k, row in enumerate(got):
        assert torch.equal(row, torch.randn(2, 5, generator=seeded(k), dtype=torch.float64))
    one = draw(torch.randn, 3, 2, 5, generator=seeded(1))
    assert torch.equal(one, torch.randn(3, 2, 5, generator=seeded(1))), "one generator: as ever"
    assert draw(torch.rand, 0, 2, generator=[]).shape == (0, 2)


def test_one_generator_for_each_image_is_needed(case):
    with pytest.raises(InputError, match="generator has 2 entries for 6 images; it must have one for each"):
        gradient()(*case, generator=[seeded(1), seeded(2)])


def test_a_users_attack_gets_one_generator_unless_it_takes_one_for_each_image(case):
    own, generators = Drawing(), [seeded(k) for k in range(COUNT)]
    attack = guarded(own, epsilon=0.1)
    assert not attack.draws_per_image
    one = attack(*case, generator=generators)
    assert isinstance(own.given, torch.Generator)
    assert torch.equal(attack(*case, generator=[seeded(k) for k in range(COUNT)]), one)
    assert not torch.equal(attack(*case, generator=[seeded(k + 1) for k in range(COUNT)]), one)
    generator = seeded(1)
    attack(*case, generator=generator)
    assert own.given is generator, "one for the batch is handed on"

    own = Drawing(per_image=True)
    attack = guarded(own, epsilon=0.1)
    assert attack.draws_per_image
    attack(*case, generator=generators)
    assert own.given is generators


def test_the_ensemble_hands_them_on(case):
    own, generators = Drawing(per_image=True), [seeded(k) for k in range(COUNT)]
    ensemble = EnsembleAttack(attack=own, networks=[residual_net(1).double()])
    assert ensemble.draws_per_image
    ensemble(*case, generator=generators)
    assert own.given is generators
