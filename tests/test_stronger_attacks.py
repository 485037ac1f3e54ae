"""Minimum-norm attacks against closed forms and PGD, APGD against pyautoattack's own call, the PGD that measures."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from reference import inventory, mixed_net, pattern_images, same_inventory, seeded, some_images, trained_net
from sklearn.datasets import load_digits
from torch import nn

from nsr.app.composition import compose_checked
from nsr.attacks import APGD, DDN, FMN, AutoAttack, GradientAttack, LibraryAttack, Momentum, guarded, measuring_pgd
from nsr.attacks.balls import distance
from nsr.errors import InputError

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
RADIUS = {"linf": 0.15, "l2": 0.9, "l1": 3.0}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox's imports


@pytest.fixture(scope="module")
def linear():
    """An affine classifier of two classes, and images so near its boundary that no pixel reaches 0 or 1."""
    net, generator = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), seeded(0)
    weight = torch.randn(2, 36, generator=generator)
    net.load_state_dict({"1.weight": weight, "1.bias": -0.5 * weight.sum(1)})
    images = 0.35 + 0.3 * torch.rand(600, 1, 6, 6, generator=generator)
    with torch.no_grad():
        logits = net(images)
    margins = (logits[:, 0] - logits[:, 1]).abs()
    near = (margins / (weight[0] - weight[1]).abs().max() - 0.25).abs() < 0.08
    assert near.sum() >= 10
    return net, images[near][:12], logits.argmax(1)[near][:12], margins[near][:12], weight[0] - weight[1]


@pytest.mark.parametrize(("kind", "norm"), [(FMN, "linf"), (FMN, "l2"), (FMN, "l1"), (DDN, "l2")])
def test_the_nearest_image_of_an_affine_classifier(linear, kind, norm):
    """The distance of the boundary is the margin over the dual norm of the weights' difference."""
    net, images, labels, margins, weights = linear
    expected = margins / torch.linalg.vector_norm(weights, ord=DUAL[norm])
    attack = kind(epsilon=float(expected.median()), norm=norm, steps=100 if kind is DDN else 50)
    found = attack.nearest(net, images, labels, generator=seeded(0))
    assert (net(found).argmax(1) != labels).all()
    got = distance(images, found, norm)
    assert (got >= expected * (1 - 1e-3)).all()
    assert (got <= expected * 1.03).all()
    within, reached = attack(net, images, labels, generator=seeded(0)), got <= attack.epsilon
    assert 0 < reached.sum() < len(images)
    assert torch.equal(within[reached], found[reached])
    assert torch.equal(within[~reached], images[~reached])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "attack",
    [
        APGD(epsilon=0.3, steps=5),
        DDN(epsilon=3.0, steps=5),
        Momentum(epsilon=0.3, steps=5),
        AutoAttack(epsilon=0.3, version="custom", attacks=["apgd-ce", "fab", "square"], queries=5, steps=5),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_of_other_packages_on_a_network_in_another_dtype(linear, attack, dtype):
    net, images, labels, *_ = linear
    net, images = copy.deepcopy(net).to(dtype), images.to(dtype)
    found = attack(net, images, labels, generator=seeded(0))
    assert found.dtype == dtype and (distance(images, found, attack.norm) <= attack.epsilon * 1.01).all()
    assert (net(found).argmax(1) != labels).all()


class Constant(nn.Module):
    """Class 1 for every image, by logits that have a gradient."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 5 + mean, 0 * mean], dim=1)


@pytest.mark.parametrize(
    "attack", [FMN(epsilon=0.5, steps=9), FMN(epsilon=0.5, norm="l1", steps=9), DDN(epsilon=0.5, steps=9)]
)
def test_an_image_that_is_never_fooled_is_returned_and_a_misclassified_one_too(attack):
    images, labels = some_images(), torch.tensor([1, 1, 1, 0, 2, 0])
    for call in (attack.nearest, attack):
        assert torch.equal(call(Constant(), images, labels), images)


def test_nearest_is_offered_exactly_where_the_attack_inside_has_it():
    def far(net, images, labels):
        return images + torch.where(labels == 0, 0.3, 0.0).view(-1, 1, 1, 1)

    class Bright(nn.Module):  # class 1 from a mean of 0.5
        def forward(self, images):
            mean = images.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    images, labels = (
        torch.tensor([0.3, 0.1, 0.4]).view(3, 1, 1, 1).expand(3, 1, 2, 2).contiguous(),
        torch.zeros(3).long(),
    )
    attack = guarded(LibraryAttack(far, epsilon=0.1, minimal_norm=True), epsilon=None)
    assert torch.equal(attack.nearest(Bright(), images, labels), images + torch.tensor([0.3, 0, 0.3]).view(3, 1, 1, 1))
    assert torch.equal(attack(Bright(), images, labels), images), "farther than epsilon"
    plain = guarded(LibraryAttack(far, epsilon=0.1), epsilon=None)
    assert not hasattr(plain, "nearest") and not hasattr(guarded(far, epsilon=0.1), "nearest")
    with pytest.raises(InputError, match="returned images up to 0.3 from the originals; epsilon is 0.1"):
        plain(Bright(), images, labels)


class Careless:
    """An attack of the user's whose nearest images are drawn, and which leaves the network in training."""

    epsilon, shift = 0.1, 0.2

    def __call__(self, net, images, labels):
        return images

    def nearest(self, net, images, labels, *, generator=None):
        net.train()
        net(images)
        drawn = torch.rand(images.shape) + torch.rand(images.shape, generator=generator)
        return images + self.shift * drawn * (1 - images)


def test_nearest_of_a_users_attack_is_guarded_but_for_epsilon():
    net, images, labels = mixed_net(), some_images(), torch.tensor([0, 1, 2, 0, 1, 2])
    attack, before = guarded(Careless(), epsilon=None), inventory(net)
    one, other = (attack.nearest(net, images, labels, generator=seeded(seed)) for seed in (1, 2))
    assert torch.equal(one, attack.nearest(net, images, labels, generator=seeded(1))) and not torch.equal(one, other)
    assert (one - images).abs().max() > attack.epsilon
    attack.attack.shift = 3
    with pytest.raises(InputError, match="returned pixels from .* they must be finite and in"):
        attack.nearest(net, images, labels)
    same_inventory(before, inventory(net))


@pytest.mark.slow
def test_foolbox_of_minimal_norm_is_not_cut_at_epsilon(linear):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
    net, images, labels, margins, weights = linear
    expected = margins / weights.norm()
    attack = LibraryAttack(foolbox.attacks.L2DeepFoolAttack(steps=3), norm="l2", epsilon=1e-3, minimal_norm=True)
    got = distance(images, guarded(attack, epsilon=None).nearest(net, images, labels), "l2")
    torch.testing.assert_close(got, 1.02 * expected, rtol=5e-3, atol=0)  # its overshoot
    assert torch.equal(attack(net.eval(), images, labels), images)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "norm"), [(FMN, "linf"), (FMN, "l2"), (FMN, "l1"), (DDN, "l2")])
def test_the_nearest_image_is_as_near_as_the_smallest_ball_in_which_pgd_fools(kind, norm):
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    net = trained_net(images[:1200], labels[:1200], steps=60)
    images, labels = images[1200:1260], labels[1200:1260]
    smallest = torch.full((60,), math.inf)  # radius at which PGD-100 fools, of radii that grow by 15 %
    for epsilon in (RADIUS[norm] * 1.15**power for power in range(6, -18, -1)):
        attack = GradientAttack(epsilon=epsilon, steps=100, norm=norm, keep_best=True)
        fooled = net(attack(net, images, labels, generator=seeded(0))).argmax(1) != labels
        smallest[fooled] = epsilon
    found = kind(epsilon=1, norm=norm).nearest(net, images, labels)
    assert (net(found).argmax(1) == labels).sum() <= 1
    ratio = distance(images, found, norm) / smallest
    assert 0.8 < ratio.median() < 1.02, ratio
    assert (ratio < 1.15).float().mean() > 0.9, ratio


# ---------------------------------------------------------------- APGD
@pytest.fixture(scope="module")
def case():
    images, labels = pattern_images(60, classes=4)
    return trained_net(images, labels), images, labels


@pytest.mark.parametrize(
    ("norm", "loss", "name"), [("linf", "cross_entropy", "ce"), ("l2", "dlr", "dlr"), ("l1", "cross_entropy", "ce")]
)
def test_apgd_gives_what_pyautoattack_finds_and_a_candidate_for_every_other_image(case, norm, loss, name):
    from pyautoattack.autopgd_base import APGDAttack

    net, images, labels = case
    settings = {"n_iter": 10, "n_restarts": 2, "eps": RADIUS[norm], "use_largereps": norm == "l1", "device": "cpu"}
    norms = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zero gradients
        expected = APGDAttack(net, norm=norms[norm], loss=name, seed=3, **settings).perturb(images, labels)
    attack = APGD(epsilon=RADIUS[norm], norm=norm, steps=10, restarts=2, loss=loss)
    torch.manual_seed(3)  # without a generator the draws are torch's, as there
    got = attack(net, images, labels)
    fooled = net(expected).argmax(1) != labels
    assert 0 < fooled.sum() < len(images)
    torch.testing.assert_close(got[fooled], expected[fooled], rtol=0, atol=1e-6)
    assert torch.equal(net(got).argmax(1) != labels, fooled)
    losses, clean = (
        nn.functional.cross_entropy(net(x)[~fooled], labels[~fooled], reduction="none") for x in (got, images)
    )
    assert (losses > clean).float().mean() > 0.9, "not the clean image"


@pytest.mark.parametrize(
    ("norm", "loss"), [("linf", "cross_entropy"), ("l2", "margin"), ("l1", "dlr"), ("l1", "margin")]
)
def test_apgd_stays_in_the_ball_and_repeats_for_a_seed(case, norm, loss):
    net, images, labels = case
    images, labels = images[:12], labels[:12]
    attack = APGD(epsilon=RADIUS[norm], norm=norm, steps=5, restarts=2, loss=loss)
    before = torch.random.get_rng_state()
    one, two, other = (attack(net, images, labels, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert (distance(images, one, norm) <= RADIUS[norm] * (1 + 1e-4)).all()
    assert one.min() >= 0 and one.max() <= 1


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_apgd_in_l1_of_few_steps_and_two_classes(steps):
    images, labels = pattern_images(12, classes=2)
    net = trained_net(images, labels)
    attack = APGD(epsilon=9.0, norm="l1", steps=steps, loss="dlr", eot_samples=2)
    assert int((net(attack(net, images, labels)).argmax(1) == labels).sum()) < (12 if steps < 7 else 6)


@pytest.mark.slow
def test_apgd_in_l1_is_stronger_than_the_sparse_steps_of_training():
    """At three radii, on digits of 24 x 24 pixels: with 8 x 8 the two are equal within the noise."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    images = nn.functional.interpolate(images, size=24, mode="bilinear").clamp(0, 1)
    labels = torch.tensor(digits.target)
    net = trained_net(images[:1200], labels[:1200], steps=40)
    images, labels = images[1200:1400], labels[1200:1400]
    gaps = []
    for epsilon in (3.0, 6.0, 10.0):
        attacks = [make(epsilon=epsilon, norm="l1", steps=40) for make in (GradientAttack, measuring_pgd)]
        made = [attack(net, images, labels, generator=seeded(0)) for attack in attacks]
        right = [int((net(adversarial).argmax(1) == labels).sum()) for adversarial in made]
        assert right[1] <= right[0]
        gaps.append(right[0] - right[1])
    assert sum(gaps) >= 15, gaps


# ---------------------------------------------------------------- the PGD that measures
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_in_linf_and_l2_the_measuring_pgd_is_nsrs_own(case, norm):
    net, images, labels = case
    settings = {"epsilon": RADIUS[norm], "norm": norm, "steps": 3, "loss": "margin", "step_size": 0.05, "restarts": 2}
    one, two = (make(**settings)(net, images, labels, generator=seeded(4)) for make in (GradientAttack, measuring_pgd))
    assert torch.equal(one, two)


def test_in_l1_it_is_apgd_and_takes_no_other_setting():
    made = measuring_pgd(epsilon="12", norm="l1", steps=40, step_size=None, keep_best=True, restarts=5, loss="margin")
    assert (type(made), made.steps, made.restarts, made.loss, made.epsilon) == (APGD, 40, 5, "margin", 12.0)
    assert made.title == "APGD-L1, 40 steps on the margin, 5 restarts"
    for name, value in {
        "step_size": 0.1,
        "random_start": False,
        "targeted": "least_likely",
        "batch_norm": "batch",
    }.items():
        with pytest.raises(
            InputError, match=f"{name} is {value!r}; for norm=l1 it must be .* APGD, which has no {name}"
        ):
            measuring_pgd(epsilon=12, norm="l1", steps=40, **{name: value})
    with pytest.raises(InputError, match="loss is 'kl'; it must be one of cross_entropy, dlr, margin"):
        measuring_pgd(epsilon=12, norm="l1", steps=40, loss="kl")
    with pytest.raises(TypeError, match="bogus"):
        measuring_pgd(epsilon=12, norm="l1", steps=40, bogus=1)


def test_validation_and_test_use_it_and_training_does_not():
    train = compose_checked("train", ["norm=l1", "test_attacks=[clean,pgd,pgd100,cw,curve]"])
    tests = train.test_attacks
    measured = [train.validation_attack, tests.pgd, tests.pgd100, tests.cw, tests.curve.attack]
    assert {attack["_target_"] for attack in measured} == {"nsr.attacks.measuring_pgd"}
    assert train.train_attack["_target_"] == "nsr.attacks.GradientAttack"
