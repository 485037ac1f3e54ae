"""Third-party attacks and attack libraries: no side effects, reproducible draws, results that are checked."""

from __future__ import annotations

import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from reference import (
    Raising,
    inventory,
    mixed_net,
    pattern_images,
    residual_net,
    same_inventory,
    seeded,
    some_images,
    trained_net,
)
from torch import nn

from nsr.attacks import (
    APGD,
    DDN,
    FMN,
    AdaptiveAttack,
    AutoAttack,
    EnsembleAttack,
    GradientAttack,
    LibraryAttack,
    Momentum,
    TransferAttack,
    UniformDraws,
    guarded,
    pgd,
)
from nsr.errors import InputError
from nsr.objectives import Trades

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
EPSILON = 0.1


class Hostile:
    """Everything that an attack should not do to a network, its arguments and the random states."""

    def __init__(self, *, raises=False):
        self.raises, self.modes = raises, []

    def __call__(self, net, images, labels):
        self.modes.append({module.training for module in net.modules()})
        net.train()
        net(images)  # updates BatchNorm
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        nn.functional.cross_entropy(net(images), labels).backward()
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        net.bn1.running_mean.fill_(7)
        net.bn1.running_var = torch.ones_like(net.bn1.running_var)
        nn.init.zeros_(net.conv1.weight)
        net.fc.weight.data = torch.zeros_like(net.fc.weight)
        net.fc.bias = nn.Parameter(torch.zeros(3))
        net.fc.register_forward_hook(lambda module, inputs, output: 0 * output)
        net.conv2 = nn.Identity()
        noise = random.random() + np.random.rand() + torch.rand(images.shape)
        labels.zero_()
        if self.raises:
            raise RuntimeError("the attack broke")
        return images.add_(0.02 * noise).clamp_(0, 1).requires_grad_()


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("raises", [False, True])
def test_a_hostile_attack_leaves_no_trace(raises, context):
    net, images, labels = mixed_net(), some_images(), LABELS.clone()
    bias = net.fc.bias.grad
    before, states = inventory(net), random_states()
    hostile = Hostile(raises=raises)
    attack = guarded(hostile, norm="linf", epsilon=EPSILON)
    with context():
        images, labels = images.clone(), labels.clone()  # in inference mode they cannot be differentiated
        kept = images.clone()
        if raises:
            with pytest.raises(RuntimeError, match="the attack broke"):
                attack(net, images, labels, generator=seeded(0))
        else:
            got = attack(net, images, labels, generator=seeded(0))
            assert not got.requires_grad
            assert not torch.equal(got, kept)
    same_inventory(before, inventory(net))
    assert net.fc.bias.grad is bias
    assert random_states() == states
    assert torch.equal(images, kept)
    assert torch.equal(labels, LABELS)
    assert hostile.modes == [{False}], "in eval mode, as the attacks of this package"


def test_draws_are_a_function_of_the_generator_and_the_seed():
    net, images = residual_net(), some_images()

    def draw(generator, seed=0):
        return guarded(Hostile(), norm="linf", epsilon=EPSILON, seed=seed)(net, images, LABELS, generator=generator)

    random.random()  # the state of the caller does not matter
    one = draw(seeded(1))
    np.random.rand()
    assert torch.equal(draw(seeded(1)), one)
    assert not torch.equal(draw(seeded(2)), one)
    assert not torch.equal(draw(seeded(1), seed=1), one)
    torch.manual_seed(5)
    one, other = draw(None), draw(None)
    torch.manual_seed(5)
    assert torch.equal(draw(None), one), "without generator torch's own state decides"
    assert not torch.equal(one, other)


def returning(make):
    """An attack that returns a function of the images."""
    return lambda net, images, labels: make(images)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x: None, r"returned a NoneType; it must return images \(6, 1, 6, 6\)"),
        (lambda x: (x, x), "returned a tuple"),
        (lambda x: x[:, 0], r"returned shape \(6, 6, 6\)"),
        (lambda x: (255 * x).to(torch.uint8), "returned torch.uint8; it must return floats"),
        (lambda x: x + 0.05 - 1, r"returned pixels from -0.9\d* to .*; they must be finite and in \[0, 1\]"),
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.nan), "returned pixels from nan"),
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.inf), "returned pixels from .* to inf"),
        (lambda x: (x + 0.11).clamp(0, 1), "returned images up to 0.11 from the originals; epsilon is 0.1"),
    ],
)
def test_a_result_that_is_no_adversarial_image_is_refused_in_one_line(make, match):
    net, images = mixed_net(), some_images()
    before = inventory(net)
    with pytest.raises(InputError, match=match):
        guarded(returning(make), norm="linf", epsilon=EPSILON)(net, images, LABELS)
    same_inventory(before, inventory(net))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5), ("l1", 2.0)])
def test_the_whole_ball_is_allowed_up_to_rounding_and_no_more(norm, epsilon, dtype):
    net, images = residual_net().eval(), some_images()
    far = pgd(net, images, LABELS, epsilon=epsilon, step_size=epsilon, steps=3, norm=norm, random_start=False)
    inside, images = far.to(dtype), images.to(dtype)
    got = guarded(returning(lambda x: inside.double()), norm=norm, epsilon=epsilon)(net, images, LABELS)
    assert got.dtype == dtype
    assert torch.equal(got, inside)
    if dtype != torch.bfloat16:
        with pytest.raises(InputError, match=rf"epsilon is .* for norm={norm}"):
            guarded(returning(lambda x: inside), norm=norm, epsilon=0.99 * epsilon)(net, images, LABELS)


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 0.5), ("l1", 2.0)])
def test_rounding_of_large_images_allows_little_more_than_the_ball(norm, epsilon):
    net, images = residual_net().eval(), torch.full((1, 3, 128, 128), 0.5)
    for length, allowed in ((1.0, True), (1.02, False)):
        moved = images.clone()
        moved[0, 0, 0, :5] += length * epsilon / (5 if norm == "l1" else 5**0.5)
        attack = guarded(returning(lambda x, moved=moved: moved), norm=norm, epsilon=epsilon)
        if allowed:
            assert torch.equal(attack(net, images, torch.zeros(1, dtype=torch.int64)), moved)
        else:
            with pytest.raises(InputError, match="epsilon is"):
                attack(net, images, torch.zeros(1, dtype=torch.int64))


class WithAttributes:
    """An attack with a threat model, a name and a generator of its own."""

    norm, epsilon, title, scale, soft_labels = "l2", "1/2", "mine", 1.0, False

    def __call__(self, net, images, labels, generator):
        return (images + 0.01 * self.scale * torch.rand(images.shape, generator=generator)).clamp(0, 1)


def test_the_attributes_and_the_generator_are_the_attacks_own():
    attack = guarded(WithAttributes(), norm="linf", epsilon=0.001)
    assert (attack.norm, attack.epsilon, attack.title, attack.soft_labels) == ("l2", 0.5, "mine", False)
    images = some_images()
    one = attack(residual_net(), images, LABELS, generator=seeded(1))
    assert torch.equal(attack(residual_net(), images, LABELS, generator=seeded(1)), one)
    attack.scale = 0.0
    assert attack.attack.scale == 0
    assert torch.equal(attack(residual_net(), images, LABELS), images)
    plain = guarded(partial(noisy, size=0.1), norm="linf", epsilon="8/255")
    assert (plain.norm, plain.epsilon, plain.title, plain.soft_labels) == ("linf", 8 / 255, "noisy", True)
    assert not hasattr(plain, "scale"), "nothing for a ramp to change"


def noisy(net, images, labels, size):
    return images


def test_shipped_attacks_need_no_guard_and_what_is_no_attack_is_refused():
    attack = GradientAttack(epsilon=0.1, steps=1)
    assert guarded(attack, norm="l2", epsilon=0.3) is attack
    with pytest.raises(InputError, match=r"the attack is 3; it must be a callable \(net, images, labels\) -> images"):
        guarded(3, norm="linf", epsilon=0.1)
    with pytest.raises(InputError, match="epsilon is 8; "):
        guarded(noisy, norm="linf", epsilon=8)


@pytest.mark.parametrize("make", [EnsembleAttack, TransferAttack])
def test_an_attack_on_other_networks_guards_them_too(make):
    fixed, net, images = mixed_net(), mixed_net(), some_images()
    attack = make(attack=Hostile(), networks=[fixed])
    before = [inventory(fixed.eval()), inventory(net)]
    for _ in range(4):
        attack(net, images, LABELS)
    for one, other in zip(before, (fixed, net), strict=True):
        same_inventory(one, inventory(other))


@pytest.mark.parametrize(
    "attack",
    [
        GradientAttack(epsilon=EPSILON, steps=2),
        AdaptiveAttack(epsilon=EPSILON, steps=2, layers="relu"),
        UniformDraws(epsilon=EPSILON, draws=3),
        TransferAttack(attack=GradientAttack(epsilon=EPSILON, steps=2), networks=[residual_net(1)]),
        AutoAttack(epsilon=EPSILON, version="custom", attacks=["square"], queries=5),
        Momentum(epsilon=EPSILON, steps=2),
        APGD(epsilon=EPSILON, steps=2),
        FMN(epsilon=EPSILON, steps=2),
        DDN(epsilon=EPSILON, steps=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_shipped_attack_restores_a_network_in_training(attack):
    net, images = mixed_net(), some_images()
    before = inventory(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyautoattack's and foolbox's own
        got = attack(net, images, LABELS)
    same_inventory(before, inventory(net))
    assert attack.restores_network
    assert (got - images).abs().max() <= EPSILON + 1e-6


@pytest.mark.parametrize(
    ("attack", "title"),
    [
        (GradientAttack(epsilon=EPSILON, steps=1, random_start=False), "FGSM"),
        (GradientAttack(epsilon=EPSILON, steps=1), "PGD-1"),
        (GradientAttack(epsilon=EPSILON, steps=40), "PGD-40"),
        (GradientAttack(epsilon=EPSILON, steps=50, loss="margin"), "PGD-50 on the margin"),
        (GradientAttack(epsilon=EPSILON, steps=10, loss="kl", restarts=5), "PGD-10 on KL, 5 restarts"),
        (GradientAttack(epsilon=EPSILON, steps=10, loss=Trades().attack_loss), "PGD-10 on KL"),
        (GradientAttack(epsilon=EPSILON, steps=10, loss=lambda *logits: 0), "PGD-10 on <lambda>"),
        (
            GradientAttack(epsilon=EPSILON, steps=50, loss="margin", targeted="least_likely", restarts=2),
            "PGD-50 on the margin, least likely, 2 restarts",
        ),
        (GradientAttack(epsilon=EPSILON, steps=1, random_start=False, targeted=True), "FGSM, targeted"),
        (AdaptiveAttack(epsilon=EPSILON, steps=100), "adaptive PGD-100"),
        (AdaptiveAttack(epsilon=EPSILON, steps=100, cross_entropy=False), "feature PGD-100"),
        (AdaptiveAttack(epsilon=EPSILON, steps=9, targeted="least_likely"), "adaptive PGD-9, least likely"),
        (
            AdaptiveAttack(epsilon=EPSILON, steps=9, loss="margin", restarts=2),
            "adaptive PGD-9 on the margin, 2 restarts",
        ),
        (AutoAttack(epsilon=EPSILON), "AutoAttack, standard"),
        (AutoAttack(epsilon=EPSILON, version="custom", attacks=["apgd-ce", "square"]), "apgd-ce, square"),
        (Momentum(epsilon=EPSILON), "MI-FGSM-40"),
        (APGD(epsilon=EPSILON, loss="dlr"), "APGD-Linf, 100 steps on DLR"),
        (FMN(epsilon=EPSILON), "FMN-100"),
        (UniformDraws(epsilon=EPSILON), "1000 uniform draws"),
        (
            TransferAttack(attack=GradientAttack(epsilon=EPSILON, steps=2), networks=[nn.Identity()] * 2),
            "PGD-2 from 2 surrogates",
        ),
    ],
)
def test_the_title_for_tables(attack, title):
    assert attack.title == title
    assert (attack.norm, attack.epsilon) == ("linf", EPSILON)


@pytest.mark.parametrize(
    "settings",
    [{}, {"targeted": "least_likely"}, {"loss": Trades().attack_loss}, {"loss": "margin"}],
    ids=["cross_entropy", "targeted", "trades", "margin"],
)
def test_the_adaptive_attack_of_weight_zero_is_its_loss_alone(settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 4
    common = {"epsilon": EPSILON, "steps": 3, **settings}
    plain, adaptive, heavy = (
        attack(net, images, labels, generator=torch.Generator().manual_seed(1))
        for attack in (GradientAttack(**common), *(AdaptiveAttack(weight=one, **common) for one in (0, 100.0)))
    )
    torch.testing.assert_close(adaptive, plain, rtol=0, atol=0)
    assert not torch.equal(heavy, plain)


@pytest.mark.parametrize("setting", [{"loss": "margin"}, {"targeted": "least_likely"}])
def test_an_attack_on_the_features_takes_no_loss(setting):
    with pytest.raises(InputError, match="loss must be null, targeted false"):
        AdaptiveAttack(epsilon=EPSILON, steps=1, cross_entropy=False, **setting)


@pytest.mark.parametrize("weight", [-1e-9, -1, float("nan"), "1"])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(InputError, match=r"^weight is .*; it must be a number at least 0"):
        AdaptiveAttack(epsilon=EPSILON, steps=1, weight=weight)


@pytest.fixture(scope="module")
def trained():
    images, labels = pattern_images(40)
    return trained_net(images, labels), images, labels


class PGD:
    """As torchattacks has it: made with the model, then called with images and labels."""

    def __init__(self, model, eps=0.1, steps=3):
        self.model, self.eps, self.steps = model, eps, steps

    def __call__(self, inputs, labels=None):
        return pgd(self.model, inputs, labels, epsilon=self.eps, steps=self.steps, random_start=False)


def ascent(model, inputs, labels, eps=0.1, targeted=False):
    """As adv-lib has it."""
    return pgd(model, inputs, labels, epsilon=eps, steps=3, random_start=False, targeted=targeted)


@pytest.mark.parametrize(
    ("attack", "title"),
    [
        (PGD, "PGD (test_guarded_attacks)"),
        (partial(PGD, steps=3), "PGD (test_guarded_attacks)"),
        (partial(partial(ascent, eps=0.1), targeted=False), "ascent (test_guarded_attacks)"),
        (ascent, "ascent (test_guarded_attacks)"),
    ],
)
def test_classes_and_functions_of_a_library(trained, attack, title):
    net, images, labels = trained
    adapted = guarded(LibraryAttack(attack, epsilon=0.1), norm="l2", epsilon=0.3)
    assert (adapted.norm, adapted.epsilon, adapted.title, adapted.soft_labels) == ("linf", 0.1, title, False)
    assert torch.equal(adapted(net, images, labels), ascent(net, images, labels))
    with pytest.raises(InputError, match="returned images up to 0.1 from the originals; epsilon is 0.05"):
        guarded(LibraryAttack(attack, epsilon=0.05), epsilon=None)(net, images, labels)


def test_a_nearest_example_beyond_epsilon_is_a_failure():
    images = torch.full((2, 1, 2, 2), 0.5)
    far = torch.tensor([0.04, 0.06]).view(2, 1, 1, 1)
    attack = LibraryAttack(returning(lambda x: x + far), epsilon=0.05, minimal_norm=True)
    assert torch.equal(guarded(attack, epsilon=None)(nn.Identity(), images, LABELS[:2])[0], images[0] + 0.04)
    assert torch.equal(guarded(attack, epsilon=None)(nn.Identity(), images, LABELS[:2])[1], images[1])
    with pytest.raises(InputError, match="epsilon is None; the attack noisy .* needs it"):
        LibraryAttack(noisy, minimal_norm=True)


def test_attacks_of_foolbox(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
    net, images, labels = trained
    net = Raising(net, at=10**9).train()
    before = inventory(net)
    for made in (foolbox.attacks.LinfPGD(steps=5), partial(foolbox.attacks.LinfPGD, steps=5)):
        attack = guarded(LibraryAttack(made, epsilon="25.5/255"), epsilon=None)
        assert attack.title == "LinfProjectedGradientDescentAttack (foolbox)"
        one, other = (attack(net, images, labels, generator=seeded(2)) for _ in range(2))
        assert torch.equal(one, other), "foolbox draws from torch's global generator"
        assert 0.09 < (one - images).abs().max() <= 0.1 + 1e-6
    # an attack that minimizes the distance is cut at epsilon by foolbox itself
    minimal = guarded(LibraryAttack(foolbox.attacks.L2DeepFoolAttack(steps=5), norm="l2", epsilon=0.5), epsilon=None)
    assert (minimal(net, images, labels) - images).flatten(1).norm(dim=1).max() <= 0.5 + 1e-4
    same_inventory(before, inventory(net))
    with pytest.raises(InputError, match="epsilon is None; the attack LinfProj.* needs it"):
        LibraryAttack(foolbox.attacks.LinfPGD())
    with pytest.raises(InputError, match="attack is 'torchattacks.PGD'; it must be a class, an object or a function"):
        LibraryAttack("torchattacks.PGD")


def test_an_attack_that_is_a_module_gets_the_generator_that_its_forward_names():
    class Drawing(nn.Module):
        def forward(self, net, images, labels, *, generator):
            return (images + EPSILON * torch.rand(images.shape, generator=generator)).clamp(0, 1)

    net, images = residual_net().eval(), some_images()
    attack = guarded(Drawing(), norm="linf", epsilon=EPSILON)
    one, same, other = (attack(net, images, LABELS, generator=seeded(number)) for number in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
