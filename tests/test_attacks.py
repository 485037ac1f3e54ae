"""FGSM, BIM and PGD against foolbox and closed forms; inside the ball; without a trace."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    PROPERTY,
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

from nsr.attacks import GradientAttack, fgsm, pgd
from nsr.errors import InputError
from nsr.objectives import Trades

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SETTINGS = {"epsilon": 0.1, "steps": 3, "step_size": 0.04}
AIMS = [  # loss, targeted
    *(("cross_entropy", targeted) for targeted in (False, True, "least_likely")),
    *(("margin", targeted) for targeted in (False, True, "least_likely")),
    ("kl", False),
]


@pytest.fixture(scope="module")
def trained():
    images, labels = pattern_images()
    return trained_net(images, labels), images, labels


def linear_net(classes=2, pixels=36, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).to(dtype)


def distance(adversarial, images, norm):
    """(batch,) in float64, so that the measuring adds no rounding."""
    difference = (adversarial.double() - images.double()).flatten(1)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(difference, ord=order, dim=1)


# ---------------------------------------------------------------- against foolbox
@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports of SciPy
        import foolbox
    return foolbox


def fraction_equal(one, other):
    return (one - other).flatten(1).abs().amax(1).le(1e-5).double().mean().item()


def is_perturbed(adversarial, images):
    """The fraction of perturbed images: two attacks that do nothing agree as well."""
    return (adversarial - images).flatten(1).abs().amax(1).gt(1e-3).double().mean().item()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size", "steps"),
    [
        *(("linf", 8 / 255, 2 / 255, 10), ("linf", 0.1, 0.04, 7), ("linf", 0.3, 0.3, 1)),
        *(("l2", 0.5, 0.125, 10), ("l2", 1.5, 0.5, 7), ("l2", 1.0, 1.0, 1)),
    ],
)
def test_pgd_is_foolboxs(trained, foolbox, norm, epsilon, step_size, steps, targeted):
    net, images, labels = trained
    aims = (labels + 1) % 4 if targeted else labels
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    expected, *_ = attack(abs_stepsize=step_size, steps=steps, random_start=False)(
        foolbox.PyTorchModel(net, bounds=(0, 1)),
        images,
        foolbox.criteria.TargetedMisclassification(aims) if targeted else aims,
        epsilons=epsilon,
    )
    chosen = {"step_size": step_size, "steps": steps, "random_start": False, "targeted": targeted}
    got = pgd(net, images, aims, epsilon=epsilon, norm=norm, **chosen)
    assert is_perturbed(expected, images) > 0.99
    assert fraction_equal(got, expected) >= 0.99
    if steps == 1 and not targeted:
        assert torch.equal(fgsm(net, images, labels, epsilon=epsilon, norm=norm), got)


# ---------------------------------------------------------------- against closed forms
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("epsilon", [0.05, 0.4])
def test_linf_reaches_the_optimum_of_a_linear_model_box_included(epsilon, random_start, loss):
    """With two classes the loss grows along w_other - w_label; ball and box part into pixels."""
    net, images = linear_net(dtype=torch.float64), some_images(dtype=torch.float64)
    labels = LABELS % 2
    weight = net[1].weight.detach()
    direction = (weight[1 - labels] - weight[labels]).view_as(images)
    expected = (images + epsilon * direction.sign()).clamp(0, 1)
    assert expected.eq(0).any()
    assert expected.eq(1).any()
    chosen = {"step_size": epsilon / 4, "steps": 9, "random_start": random_start, "loss": loss}
    got = pgd(net, images, labels, epsilon=epsilon, **chosen)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def furthest_along(direction, image, epsilon):
    """max d.direction with ||d||_2 <= epsilon and image + d in [0, 1]: d = clip(s * direction), s by bisection."""

    def difference(scale):
        return [min(max(scale * w, -x), 1 - x) for w, x in zip(direction, image, strict=True)]

    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(d * d for d in difference(middle)) <= epsilon**2 else (low, middle)
    return math.fsum(d * w for d, w in zip(difference(low), direction, strict=True))


@pytest.mark.parametrize(("random_start", "loss"), [(False, "cross_entropy"), (True, "margin")])
@pytest.mark.parametrize(
    ("epsilon", "step_size", "steps"), [(0.5, 0.008, 400), pytest.param(2.0, 0.014, 1000, marks=pytest.mark.slow)]
)
def test_l2_comes_within_a_thousandth_of_the_optimum_in_the_box(epsilon, step_size, steps, random_start, loss):
    """Not nearer: shortened first and clipped then, an iterate ends inside the ball, by a fraction of the last step."""
    net, images, labels = linear_net(dtype=torch.float64), some_images(dtype=torch.float64), LABELS % 2
    weight = net[1].weight.detach()
    direction = weight[1 - labels] - weight[labels]
    expected = torch.tensor(
        [furthest_along(*pair, epsilon) for pair in zip(direction.tolist(), images.flatten(1).tolist(), strict=True)],
        dtype=torch.float64,
    )
    torch.manual_seed(0)
    chosen = {"step_size": step_size, "steps": steps, "random_start": random_start, "loss": loss}
    got = pgd(net, images, labels, epsilon=epsilon, norm="l2", **chosen)
    assert (got.eq(0) | got.eq(1)).flatten(1).any(1).all(), "the box is touched"
    gain = ((got - images).flatten(1) * direction).sum(1)
    free = epsilon * direction.square().sum(1).sqrt()
    assert (expected < 0.999 * free).all(), "the box matters"
    assert (gain <= expected * (1 + 1e-9)).all()
    assert (gain >= expected * (1 - 1e-3)).all()


def test_fgsm_steps_by_epsilon_and_pgd_by_the_step_size():
    net, images = linear_net(), 0.4 + 0.2 * some_images()
    for norm in ("linf", "l2", "l1"):
        far = distance(fgsm(net, images, LABELS % 2, epsilon=0.2, norm=norm), images, norm)
        torch.testing.assert_close(far, torch.full((6,), 0.2, dtype=torch.float64), rtol=0, atol=1e-6)
        for steps, expected in ((1, 0.03), (2, 0.06), (99, 0.2)):
            got = pgd(net, images, LABELS % 2, epsilon=0.2, step_size=0.03, steps=steps, norm=norm, random_start=False)
            far = distance(got, images, norm)
            torch.testing.assert_close(far, torch.full((6,), expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_gradient_no_difference_and_no_nan(norm):
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.flatten(1)[:, :3]

    images = some_images()
    got = pgd(Constant(), images, LABELS, epsilon=0.5, steps=3, norm=norm, random_start=False)
    assert torch.equal(got, images)
    started = pgd(Constant(), images, LABELS, epsilon=0.5, steps=3, norm=norm)
    assert started.isfinite().all()
    assert distance(started, images, norm).gt(0).all()


# ---------------------------------------------------------------- inside ball and pixel range
class Confident(nn.Module):
    """Linear and large: a confident network."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(36, 3)
            nn.init.normal_(self.linear.weight, 0, 5)

    def forward(self, images):
        return self.linear(images.flatten(1))


@settings(PROPERTY, max_examples=120)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    fraction=st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    steps=st.integers(0, 3),
    step_size=st.none() | st.floats(0, 1),
    random_start=st.sampled_from([True, False, "gaussian"]),
    aim=st.sampled_from(AIMS),
    restarts=st.integers(1, 2),
    keep_best=st.booleans(),
    make=st.sampled_from([residual_net, residual_net, Confident]),
    precision=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, "autocast"]),
    batch_norm=st.sampled_from(["eval", "batch"]),
    seed=st.integers(0, 999),
)
def test_within_epsilon_and_the_pixel_range(
    norm, fraction, steps, step_size, random_start, aim, restarts, keep_best, make, precision, batch_norm, seed
):
    dtype = torch.float32 if precision == "autocast" else precision
    net, images = make(seed).to(dtype), some_images(seed=seed, dtype=dtype)
    images.view(-1)[:20] = (images.view(-1)[:20] > 0.5).to(dtype)  # pixels at the ends of the range
    epsilon = fraction * {"linf": 1, "l2": 6, "l1": 36}[norm]  # the diameter of these images, 6 pixels a side
    loss, targeted = aim
    if loss == "kl" and random_start is False:
        random_start = "gaussian"  # without a random start it is refused
    chosen = {"loss": loss, "targeted": targeted, "restarts": restarts, "keep_best": keep_best}
    chosen |= {"batch_norm": batch_norm, "random_start": random_start}
    chosen |= {"epsilon": epsilon, "steps": steps, "step_size": step_size, "norm": norm}
    before, kept = inventory(net), images.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        got = pgd(net, images, LABELS, **chosen, generator=torch.Generator().manual_seed(seed))
    same_inventory(before, inventory(net))
    assert torch.equal(images, kept)
    assert (got.dtype, got.shape, got.requires_grad) == (dtype, images.shape, False)
    assert got.isfinite().all()
    assert got.min() >= 0 and got.max() <= 1
    pixel = torch.finfo(dtype).eps / 2  # rounding of a pixel in [0, 1]
    rounding = pixel * {"linf": 1, "l2": math.sqrt(36) + 4 * epsilon, "l1": 36 + 4 * epsilon}[norm]
    assert distance(got, images, norm).max() <= epsilon + rounding
    if epsilon == 0 or (steps == 0 and not random_start):
        assert torch.equal(got, images)


@pytest.mark.parametrize(("epsilon", "steps"), [(0, 2), (0.1, 0), (0.1, 2)])
def test_the_result_is_the_callers_own(epsilon, steps):
    """Written to, it must not change the clean images."""
    images = some_images()
    kept = images.clone()
    pgd(residual_net(), images, LABELS, epsilon=epsilon, steps=steps, random_start=False).fill_(0.5)
    assert torch.equal(images, kept)


def test_a_large_batch_does_not_drown_its_gradients_in_half_precision():
    """An image's gradient is its own: divided by the batch it would be below float16's smallest number."""
    net, images = linear_net(2, 4, torch.float16), torch.full((512, 1, 2, 2), 0.5, dtype=torch.float16)
    nn.init.constant_(net[1].weight[:1], 1e-5)
    nn.init.constant_(net[1].weight[1:], -1e-5)
    got = fgsm(net, images, torch.zeros(512, dtype=torch.int64), epsilon=0.25)
    assert got.eq(0.25).all()


# ---------------------------------------------------------------- the random start
def kolmogorov(values):
    """The largest gap between the distribution of `values` and the uniform one on [0, 1]."""
    ordered = values.flatten().double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return max((ordered - steps[:-1]).abs().max(), (steps[1:] - ordered).abs().max()).item()


def start(images, norm, epsilon, seed=0):
    labels = torch.zeros(len(images), dtype=torch.int64)
    return pgd(nn.Flatten(), images, labels, epsilon=epsilon, steps=0, norm=norm, generator=seeded(seed))


def test_a_linf_start_is_uniform_in_the_cube():
    images = torch.full((2000, 1, 2, 5), 0.5, dtype=torch.float64)
    difference = start(images, "linf", 0.25) - images
    # 1.63 / sqrt(n): the value that one uniform sample in a hundred exceeds; the seed is fixed
    assert kolmogorov(difference / 0.5 + 0.5) < 1.63 / math.sqrt(difference.numel())
    correlation = torch.corrcoef(difference.flatten(1).T) - torch.eye(10)
    assert correlation.abs().max() < 5 / math.sqrt(2000)


def test_an_l2_start_is_uniform_in_the_ball():
    images = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    difference = (start(images, "l2", 0.25) - images).flatten(1)
    radius = difference.square().sum(1, keepdim=True).sqrt()
    bound = 1.63 / math.sqrt(4000)
    assert kolmogorov((radius / 0.25) ** 3) < bound
    for coordinate in range(3):  # Archimedes: each coordinate of a point of the sphere is uniform
        assert kolmogorov((difference[:, [coordinate]] / radius + 1) / 2) < bound
    correlation = torch.corrcoef(difference.T) - torch.eye(3)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_generator_decides_the_start(norm):
    net, images = residual_net().eval(), some_images()
    state = torch.get_rng_state()

    def attacked(seed):
        return pgd(net, images, LABELS, **SETTINGS, norm=norm, generator=seeded(seed))

    assert torch.equal(attacked(1), attacked(1))
    assert not torch.equal(attacked(1), attacked(2))
    attacked_from_the_image = [pgd(net, images, LABELS, **SETTINGS, norm=norm, random_start=False) for _ in range(2)]
    assert torch.equal(*attacked_from_the_image)
    assert torch.equal(torch.get_rng_state(), state), "torch's own is left alone with a generator or without a start"
    one = []
    for _ in range(2):
        torch.manual_seed(7)
        one.append(pgd(net, images, LABELS, **SETTINGS, norm=norm))
    assert torch.equal(*one)


# ---------------------------------------------------------------- without a trace
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_no_trace(batch_norm, norm, with_gradient):
    net, images, labels = mixed_net(), some_images(), LABELS.clone()
    images.requires_grad_(with_gradient)
    before, kept = inventory(net), images.detach().clone()
    got = pgd(net, images, labels, **SETTINGS, batch_norm=batch_norm, norm=norm)
    same_inventory(before, inventory(net))
    assert not torch.equal(got, kept)
    assert torch.equal(images, kept)
    assert torch.equal(labels, LABELS)
    assert (images.requires_grad, images.grad) == (with_gradient, None)
    assert (got.requires_grad, got.grad_fn) == (False, None)
    fgsm(net, images, labels, epsilon=0.1, batch_norm=batch_norm, norm=norm)
    same_inventory(before, inventory(net))


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_no_trace_of_a_network_that_raises_in_the_middle(batch_norm):
    net = Raising(mixed_net(), at=2)
    before, images = inventory(net), some_images()
    with pytest.raises(RuntimeError, match="the network broke"):
        pgd(net, images, LABELS, **SETTINGS, batch_norm=batch_norm)
    assert net.passes == 2
    same_inventory(before, inventory(net))
    assert torch.is_grad_enabled()
    assert not images.requires_grad


def test_no_trace_of_a_network_that_keeps_other_statistics():
    """Spectral normalization moves its vectors in every training pass; every buffer is restored."""
    net = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(36, 3)))
    before = inventory(net)
    pgd(net, some_images(), LABELS, **SETTINGS, batch_norm="batch")
    same_inventory(before, inventory(net))


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_a_pass_made_before_the_attack_can_still_be_differentiated(batch_norm):
    """Autograd counts every write into a buffer, one that puts the old value back too."""
    net, images = residual_net().train(), some_images()
    counterpart = copy.deepcopy(net)
    for model in (net, counterpart):
        logits = model(images)
        if model is net:
            pgd(model, images, LABELS, **SETTINGS, batch_norm=batch_norm)
        nn.functional.cross_entropy(logits, LABELS).backward()
    same_inventory(inventory(counterpart), inventory(net))


def test_no_gradient_of_a_parameter_is_ever_computed():
    net, asked = residual_net(), []
    net.register_forward_pre_hook(lambda net, inputs: asked.append([p.requires_grad for p in net.parameters()]))
    pgd(net, some_images(), LABELS, **SETTINGS)
    assert len(asked) == SETTINGS["steps"]
    assert not any(map(any, asked))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("made_inside", [False, True])
def test_gradients_are_enabled_where_they_are_off(context, norm, made_inside):
    net, images, labels = residual_net().eval(), some_images(), LABELS
    expected = pgd(net, images, labels, **SETTINGS, norm=norm, random_start=False)
    with context():
        if made_inside:  # in inference mode a tensor that cannot be differentiated
            images, labels = images.clone(), labels.clone()
        got = pgd(net, images, labels, **SETTINGS, norm=norm, random_start=False)
        assert not torch.is_grad_enabled()
        net(got)
    assert torch.equal(got, expected)
    assert not torch.equal(got, images)


# ---------------------------------------------------------------- the network's mode
def without_running_statistics(net):
    """A copy whose BatchNorm layers use the batch only, whatever their mode."""
    counterpart = copy.deepcopy(net)
    for bn in (counterpart.bn1, counterpart.bn2):
        bn.running_mean = bn.running_var = None
    return counterpart


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_the_networks_during_the_attack(training):
    net, images = residual_net().train(training), some_images()
    chosen = dict(**SETTINGS, random_start=False)
    in_eval = pgd(copy.deepcopy(net).eval(), images, LABELS, **chosen)
    in_batch = pgd(without_running_statistics(net), images, LABELS, **chosen)
    assert not torch.allclose(in_eval, in_batch)
    before = inventory(net)
    assert torch.equal(pgd(net, images, LABELS, **chosen), in_eval), "eval is the default"
    assert torch.equal(pgd(net, images, LABELS, **chosen, batch_norm="eval"), in_eval)
    assert torch.equal(pgd(net, images, LABELS, **chosen, batch_norm="batch"), in_batch)
    same_inventory(before, inventory(net))


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_object_is_pgd_with_its_settings(norm):
    net, images = residual_net().eval(), some_images()
    attack = GradientAttack(**SETTINGS, norm=norm, batch_norm="batch")
    for _ in range(2):  # it carries nothing over
        one = attack(net, images, LABELS, generator=seeded(3))
        other = pgd(net, images, LABELS, **SETTINGS, norm=norm, batch_norm="batch", generator=seeded(3))
        assert torch.equal(one, other)


def test_fractions_are_accepted_as_text():
    net, images = residual_net().eval(), some_images()
    text = pgd(net, images, LABELS, epsilon="8/255", step_size="2/255", steps=3, random_start=False)
    numbers = pgd(net, images, LABELS, epsilon=8 / 255, step_size=2 / 255, steps=3, random_start=False)
    assert torch.equal(text, numbers)
    assert torch.equal(fgsm(net, images, LABELS, epsilon="8/255"), fgsm(net, images, LABELS, epsilon=8 / 255))
    attack = GradientAttack(epsilon="8/255", steps=1)
    assert (attack.epsilon, attack.step_size) == (8 / 255, 2.5 * 8 / 255)


def test_the_repr_of_an_attack_has_its_settings():
    text = repr(GradientAttack(epsilon="8/255", steps=10, norm="l2"))
    assert eval(text, {"GradientAttack": GradientAttack}).epsilon == 8 / 255
    assert "steps=10" in text
    assert "norm='l2'" in text


GOOD = {"epsilon": 0.1, "steps": 2}


def own_loss(logits, clean_logits, labels):
    return (logits - clean_logits).square().sum(1) - logits.gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epsilon": 8}, r"epsilon is 8; .*8/255, not 8"),
        ({"epsilon": "a lot"}, "epsilon is 'a lot'"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"norm": "Linf"}, "norm is 'Linf'.*did you mean 'linf'"),
        ({"steps": 2.0}, "steps is 2.0; it must be a whole number"),
        ({"steps": -1}, "steps is -1"),
        ({"step_size": "2/0"}, "step_size is '2/0'"),
        ({"random_start": "gaussain"}, "random_start is 'gaussain'; .*did you mean 'gaussian'"),
        ({"random_start": 1}, "random_start is 1;"),
        ({"eot_samples": 0}, "eot_samples is 0; it must be a whole number at least 1"),
        ({"batch_norm": "frozen"}, "batch_norm is 'frozen'.*eval, batch, update"),
        ({"loss": "cross-entropy"}, "loss is 'cross-entropy'.*did you mean 'cross_entropy'"),
        ({"loss": "kl", "random_start": False}, "loss is 'kl' without random start.*must be true or gaussian"),
        ({"loss": Trades().attack_loss, "random_start": False}, "loss is 'kl' without random start"),
        ({"loss": "kl", "targeted": True}, "loss is 'kl', which has no target; targeted needs"),
        ({"loss": own_loss, "targeted": "least_likely"}, "loss is 'own_loss', which has no target; targeted needs"),
        ({"targeted": "least likely"}, "targeted is 'least likely'.*did you mean 'least_likely'"),
        ({"restarts": 0}, "restarts is 0; it must be a whole number at least 1"),
        ({"restarts": True}, "restarts is True"),
        ({"keep_best": None, "restarts": 2}, "keep_best is None"),
        ({"noise": 0.2}, "noise is 0.2, beyond the ball of radius 0.1; it needs projection=false"),
        ({"noise": "16/255", "epsilon": "8/255"}, "noise is '?[0-9./]+'?, beyond the ball of radius '8/255'"),
        ({"noise": -0.1, "random_start": "gaussian"}, "noise is -0.1"),
        ({"noise": 16, "projection": False}, "noise is 16; .*2/255, not 2"),
        ({"step_size": 2}, "step_size is 2; .*2/255, not 2"),
        ({"projection": None}, "projection is None"),
    ],
)
def test_a_wrong_setting_is_refused(change, match):
    net, images = residual_net(), some_images()
    actions = [lambda: GradientAttack(**{**GOOD, **change})]
    if not {"noise", "projection"} & set(change):
        actions.append(lambda: pgd(net, images, LABELS, **{**GOOD, **change}))
    for action in actions:
        with pytest.raises(InputError, match=match):
            action()


@pytest.mark.parametrize("attack", [pgd, fgsm])
@pytest.mark.parametrize(
    ("change", "labels", "match"),
    [
        (lambda x: x * 2 - 1, LABELS, r"images outside \[0, 1\]"),
        (lambda x: x * 255, LABELS, r"images outside \[0, 1\]"),
        (lambda x: x * math.nan, LABELS, r"images outside \[0, 1\]"),
        (lambda x: (x * 255).to(torch.uint8), LABELS, "images are torch.uint8"),
        (lambda x: x[:0], LABELS[:0], "images have shape"),
        (lambda x: x, LABELS[:5], r"shape \(5,\).*\(6,\)"),
        (lambda x: x, LABELS[:, None], r"shape \(6, 1\)"),
        (lambda x: x, LABELS.float(), "labels are torch.float32"),
        (lambda x: x, LABELS + 1, "labels contain the class 3; the network gives 3 logits"),
        (lambda x: x, LABELS - 1, "labels contain the class -1"),
    ],
)
def test_a_wrong_batch_is_refused(attack, change, labels, match):
    chosen = GOOD if attack is pgd else {"epsilon": 0.1}
    net = residual_net()
    before = inventory(net)
    with pytest.raises(InputError, match=match):
        attack(net, change(some_images()), labels, **chosen)
    same_inventory(before, inventory(net))


def test_an_l2_epsilon_beyond_the_images_diameter_is_refused():
    net, images = residual_net(), some_images()  # 36 pixels: 6
    attack = GradientAttack(epsilon=8, steps=1, norm="l2")
    for action in (
        lambda: pgd(net, images, LABELS, epsilon=6.01, steps=1, norm="l2"),
        lambda: attack(net, images, LABELS),
    ):
        with pytest.raises(InputError, match="at most 6"):
            action()
    assert pgd(net, images, LABELS, epsilon=6, steps=1, norm="l2").isfinite().all()
    assert attack(linear_net(3, 64), some_images(size=8), LABELS).isfinite().all()


@pytest.mark.parametrize(
    "change", [{}, {"loss": "kl"}, {"keep_best": True}, {"targeted": "least_likely"}, {"keep_best": True, "steps": 0}]
)
def test_a_network_without_logits_is_refused(change):
    class Pair(nn.Module):
        def forward(self, images):
            return images.flatten(1), images

    with pytest.raises(InputError, match="a tuple; it must be logits"):
        pgd(Pair(), some_images(), LABELS, **{**GOOD, **change})
    with pytest.raises(InputError, match=r"of shape \(6, 1, 6, 6\); it must be logits \(6, class\)"):
        pgd(nn.Identity(), some_images(), LABELS, **{**GOOD, **change})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_number_type(dtype):
    """check_batch lets them pass, and numpy often gives int32."""
    net, images = residual_net().eval(), some_images()
    expected = fgsm(net, images, LABELS, epsilon=0.1)
    assert torch.equal(fgsm(net, images, LABELS.to(dtype), epsilon=0.1), expected)


# ---------------------------------------------------------------- torch.compile
@pytest.mark.slow
def test_a_compiled_network_is_attacked_like_the_eager_one():
    torch.compiler.reset()
    net, images = residual_net().double().train(), some_images(dtype=torch.float64)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    compiled(images)  # a training pass, which moves the running statistics
    expected = pgd(copy.deepcopy(net), images, LABELS, **SETTINGS, random_start=False)
    before = inventory(net)
    got = pgd(compiled, images, LABELS, **SETTINGS, random_start=False)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    same_inventory(before, inventory(net))
    torch.compiler.reset()
