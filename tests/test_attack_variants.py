"""The attack's losses, targets, restarts and starts against slow loops, image by image; how many passes they take."""

from __future__ import annotations

import math

import pytest
import torch
from reference import inventory, residual_net, same_inventory, seeded, some_images
from torch import nn

from nsr.attacks import GradientAttack, pgd
from nsr.errors import InputError
from nsr.objectives import Trades


def squared_difference(logits, clean_logits, labels):
    """A loss of the user's."""
    return (logits - clean_logits).square().sum(1) - logits.gather(1, labels[:, None])[:, 0]


AIMS = [  # loss, targeted
    *(("cross_entropy", targeted) for targeted in (False, True, "least_likely")),
    *(("margin", targeted) for targeted in (False, True, "least_likely")),
    ("kl", False),
    (squared_difference, False),
]
EPSILON, STEP_SIZE, STEPS = {"linf": 0.1, "l2": 0.4}, {"linf": 0.1, "l2": 0.8}, 3
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the slow attack
def log_softmax(row):
    return row - torch.log(sum(torch.exp(value) for value in row))


def slow_loss(loss, row, label, clean):
    """The loss to ascend, for one image's logits."""
    if callable(loss):
        return loss(row[None], clean[None], torch.tensor([label]))[0]
    if loss == "kl":
        log_p, log_q = log_softmax(clean), log_softmax(row)
        return sum(torch.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    if loss == "margin":
        return max(value for k, value in enumerate(row) if k != label) - row[label]
    return -log_softmax(row)[label]


def put_back(point, image, norm, epsilon):
    """Into the ball, then into the pixel range."""
    difference = point - image
    if norm == "linf":
        difference = torch.maximum(torch.minimum(difference, torch.tensor(epsilon)), torch.tensor(-epsilon))
    else:
        length = math.sqrt(math.fsum(value**2 for value in difference.flatten().tolist()))
        difference = difference * (epsilon / length) if length > epsilon else difference
    return torch.maximum(torch.minimum(image + difference, torch.tensor(1.0)), torch.tensor(0.0))


def slow_iterates(net, image, label, start, *, norm, loss, targeted):
    """[(point, what is ascended there, whether the aim is reached there)] for x_0 ... x_steps of one image."""
    clean = net(image[None])[0].detach()
    aim, sign = label, 1
    if targeted:
        sign = -1
    if targeted == "least_likely":
        aim = min((k for k in range(len(clean)) if k != label), key=lambda k: clean[k])
    point, iterates = start, []
    for _ in range(STEPS + 1):
        point = point.detach().requires_grad_()
        row = net(point[None])[0]
        value = sign * slow_loss(loss, row, aim, clean)
        best_class = max(range(len(row)), key=lambda k: row[k])
        iterates.append((point.detach(), value.item(), (best_class == label) == (targeted is True)))
        (gradient,) = torch.autograd.grad(value, point)
        length = math.sqrt(math.fsum(entry**2 for entry in gradient.flatten().tolist()))
        direction = gradient.sign() if norm == "linf" else gradient / length
        point = put_back(point.detach() + STEP_SIZE[norm] * direction, image, norm, EPSILON[norm])
    return iterates


def starts(images, norm, random_start, generator):
    """As the attack draws them: uniform, normal, or none."""
    if random_start is False:
        return images.clone()
    if random_start == "gaussian":
        noise = 0.001 * torch.randn(images.shape, generator=generator, dtype=images.dtype)
    elif norm == "linf":
        noise = EPSILON["linf"] * (2 * torch.rand(images.shape, generator=generator, dtype=images.dtype) - 1)
    else:
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        radius = torch.rand(len(images), generator=generator, dtype=images.dtype) ** (1 / images[0].numel())
        for row, size in zip(noise, radius, strict=True):
            row *= EPSILON["l2"] * size / row.square().sum().sqrt()
    return torch.stack([put_back(x + d, x, norm, EPSILON[norm]) for x, d in zip(images, noise, strict=True)])


def curved_net(seed):
    """With a loss that goes up and down within a step, and a dropout that only eval mode leaves out."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = nn.Linear(36, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 4)
        net = nn.Sequential(nn.Flatten(), *layers).double()
        nn.init.normal_(net[1].weight, 0, 2)
        nn.init.normal_(net[5].weight, 0, 1)
    return net.eval()


def some_task(norm, targeted, seed=4, count=12):
    """Pixels at the ends of the range too; labels some of which an attack reaches."""
    net, images = curved_net(seed), some_images(count, seed=seed, dtype=torch.float64)
    images.view(-1)[::7] = images.view(-1)[::7].round()
    order = net(images).argsort(1)
    return net, images, order[:, 1] if targeted is True else order[:, -1]


def attack_of(norm, **settings):
    return GradientAttack(epsilon=EPSILON[norm], steps=STEPS, step_size=STEP_SIZE[norm], norm=norm, **settings)


def slow_runs(net, images, labels, *, restarts, generator, norm, random_start, loss, targeted):
    """Of each image the iterates of all restarts, one after the other."""
    of_image = [[] for _ in images]
    for _ in range(restarts):
        start = starts(images, norm, random_start, generator)
        for place, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            of_image[place] += slow_iterates(net, image, label, start[place], norm=norm, loss=loss, targeted=targeted)
    return of_image


# ---------------------------------------------------------------- losses and targets
@both_norms
@pytest.mark.parametrize("random_start", [False, True, "gaussian"])
@pytest.mark.parametrize(("loss", "targeted"), AIMS)
def test_each_aim_is_the_slow_loops(norm, random_start, loss, targeted):
    if loss == "kl" and random_start is False:
        random_start = "gaussian"
    net, images, labels = some_task(norm, targeted)
    chosen = {"random_start": random_start, "loss": loss, "targeted": targeted}
    runs = slow_runs(net, images, labels, restarts=1, generator=seeded(), norm=norm, **chosen)
    got = attack_of(norm, **chosen)(net, images, labels, generator=seeded())
    close(got, torch.stack([iterates[-1][0] for iterates in runs]))
    assert not torch.allclose(got, images, atol=0.05)


def test_the_kl_attack_goes_away_from_the_prediction_whatever_the_labels():
    """As TRADES has it: a network in training mode is attacked as it predicts in eval mode."""
    net, images, labels = some_task("linf", False)
    attack = attack_of("linf", random_start="gaussian", loss="kl")
    expected = attack(net, images, labels, generator=seeded())
    before = inventory(net.train())
    assert torch.equal(attack(net, images, (labels + 1) % 4, generator=seeded()), expected)
    same_inventory(before, inventory(net))
    in_batch = attack_of("linf", random_start="gaussian", loss="kl", batch_norm="batch")
    assert not torch.allclose(in_batch(net, images, labels, generator=seeded()), expected)
    same_inventory(before, inventory(net))


@pytest.mark.parametrize("noise", [None, 0.001, "1/4"])
def test_a_gaussian_start_is_normal_noise_put_back_into_ball_and_range(noise):
    images = some_images(dtype=torch.float64)
    images.view(-1)[::7] = images.view(-1)[::7].round()
    deviation = {None: 0.001, "1/4": 0.25}.get(noise, noise)
    attack = GradientAttack(epsilon=0.2, steps=0, random_start="gaussian", noise=noise)
    got = attack(residual_net().double(), images, torch.zeros(6, dtype=torch.int64), generator=seeded())
    drawn = torch.randn(images.shape, generator=seeded(), dtype=torch.float64)
    expected = torch.clamp(images + (deviation * drawn).clamp(-0.2, 0.2), 0, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- a confident network
@pytest.mark.parametrize("confidence", [60.0, 80.0])
def test_a_small_gradient_steps_as_far_as_a_large_one(confidence):
    """In L2 by the step size and no further."""
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), torch.full((1, 1, 6, 6), 0.5)
    with torch.no_grad():
        net[1].weight[0], net[1].weight[1] = 0.01, -0.01
        net[1].bias[0], net[1].bias[1] = confidence, 0
    label = torch.tensor([0])
    got = pgd(net, images, label, epsilon=1, steps=1, step_size=0.1, norm="l2", random_start=False)
    assert (got - images).norm().item() == pytest.approx(0.1, rel=1e-3)


# ---------------------------------------------------------------- restarts, the best iterate
def best_of(iterates):
    """The first of the best: what has reached the aim before what has not, then the larger loss."""
    best = iterates[0]
    for iterate in iterates[1:]:
        if (iterate[2], iterate[1]) > (best[2], best[1]):
            best = iterate
    return best


@both_norms
@pytest.mark.parametrize("restarts", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(("loss", "targeted"), AIMS)
def test_the_best_iterate_of_each_image_is_kept(norm, loss, targeted, restarts):
    net, images, labels = some_task(norm, targeted)
    chosen = {"random_start": True, "loss": loss, "targeted": targeted}
    runs = slow_runs(net, images, labels, restarts=restarts, generator=seeded(), norm=norm, **chosen)
    best = [best_of(iterates) for iterates in runs]
    attack = attack_of(norm, **chosen, restarts=restarts, keep_best=True)
    close(attack(net, images, labels, generator=seeded()), torch.stack([point for point, _, _ in best]))
    assert any(point is not iterates[-1][0] for (point, _, _), iterates in zip(best, runs, strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 3),
        ({"steps": 0}, 0),
        ({"targeted": True}, 3),
        ({"loss": "margin"}, 3),
        ({"loss": "kl", "random_start": "gaussian"}, 3 + 1),
        ({"loss": Trades().attack_loss}, 3 + 1),
        ({"targeted": "least_likely"}, 3 + 1),
        ({"keep_best": True}, 3 + 1),
        ({"keep_best": True, "steps": 0}, 1),
        ({"restarts": 2}, 2 * (3 + 1)),
        ({"restarts": 2, "loss": "kl"}, 2 * (3 + 1) + 1),
        ({"restarts": 3, "targeted": "least_likely", "loss": "margin"}, 3 * (3 + 1) + 1),
        ({"epsilon": 0, "loss": "kl"}, 0),
    ],
)
def test_how_many_forward_passes(settings, expected):
    net, images = residual_net().eval(), some_images()
    passes = []
    net.register_forward_pre_hook(lambda module, inputs: passes.append(torch.is_grad_enabled()))
    attack = GradientAttack(**{"epsilon": 0.1, "steps": 3, **settings})
    attack(net, images, torch.zeros(6, dtype=torch.int64))
    assert len(passes) == expected
    steps = settings.get("steps", 3) * settings.get("restarts", 1) if settings.get("epsilon") != 0 else 0
    assert sum(passes) == steps, "only a step's pass is for a gradient"


# ---------------------------------------------------------------- fast attacks with one step
def single_task():
    net, images = residual_net(2).double().eval(), some_images(12, seed=2, dtype=torch.float64)
    images.view(-1)[::5] = images.view(-1)[::5].round()
    return net, images, net(images).argmax(1)


def gradient_sign(net, images, labels):
    images = images.detach().requires_grad_()
    loss = -sum(log_softmax(row)[label] for row, label in zip(net(images), labels, strict=True))
    return torch.autograd.grad(loss, images)[0].sign()


def uniform(images, size):
    return size * (2 * torch.rand(images.shape, generator=seeded(), dtype=images.dtype) - 1)


@pytest.mark.parametrize("epsilon", [0.03, 0.2])
def test_n_fgsm(epsilon):
    """de Jorge et al. 2022: noise of twice epsilon, one step of epsilon from there, nothing but the range bounds it."""
    net, images, labels = single_task()
    attack = GradientAttack(epsilon=epsilon, steps=1, step_size=epsilon, noise=2 * epsilon, projection=False)
    got = attack(net, images, labels, generator=seeded())
    noisy = (images + uniform(images, 2 * epsilon)).clamp(0, 1)
    expected = (noisy + epsilon * gradient_sign(net, noisy, labels)).clamp(0, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    difference = (got - images).abs()
    assert got.min() >= 0 and got.max() <= 1
    assert difference.max() <= 3 * epsilon + 1e-12
    assert difference.max() > 2 * epsilon
    assert difference.gt(epsilon).double().mean() > 0.2


@pytest.mark.parametrize("epsilon", [0.03, 0.2])
def test_fast_adversarial_training_s_attack(epsilon):
    """Wong et al. 2020: a uniform start, one step of 1.25 epsilon, back into the ball."""
    net, images, labels = single_task()
    attack = GradientAttack(epsilon=epsilon, steps=1, step_size=1.25 * epsilon)
    got = attack(net, images, labels, generator=seeded())
    noisy = (images + uniform(images, epsilon)).clamp(0, 1)
    expected = noisy + 1.25 * epsilon * gradient_sign(net, noisy, labels)
    expected = (images + (expected - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert (got - images).abs().max() <= epsilon + 1e-12


def test_noise_narrower_than_the_ball():
    net, images, labels = single_task()
    got = GradientAttack(epsilon=0.2, steps=0, noise=0.05)(net, images, labels, generator=seeded())
    torch.testing.assert_close(got, (images + uniform(images, 0.05)).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep_best", [False, True])
def test_without_projection_l2_is_bounded_by_noise_and_steps(keep_best):
    net, images, labels = single_task()
    settings = {"noise": 0.5, "norm": "l2", "projection": False, "keep_best": keep_best}
    attack = GradientAttack(epsilon=0.3, steps=2, step_size=0.4, **settings)
    got = attack(net, images, labels, generator=seeded())
    length = (got - images).flatten(1).norm(dim=1)
    assert got.min() >= 0 and got.max() <= 1
    assert length.max() <= 0.5 + 2 * 0.4 + 1e-12
    assert length.max() > 0.3


# ---------------------------------------------------------------- scale
@both_norms
@pytest.mark.parametrize(
    ("settings", "half"),
    [
        ({}, {"noise": 0.2}),
        ({"random_start": "gaussian", "loss": "kl"}, {"noise": 0.0005}),
        ({"noise": 0.6, "projection": False}, {"noise": 0.3}),
        ({"noise": 0.4, "random_start": "gaussian", "restarts": 2}, {"noise": 0.2}),
    ],
)
def test_scale_is_of_epsilon_step_size_and_noise(norm, settings, half):
    net, images = residual_net().eval(), some_images()
    labels = net(images).argmax(1)
    attack = GradientAttack(epsilon=0.4, steps=3, step_size=0.2, norm=norm, **settings)
    expected = GradientAttack(epsilon=0.2, steps=3, step_size=0.1, norm=norm, **{**settings, **half})
    whole = attack(net, images, labels, generator=seeded())
    attack.scale = 0.5
    got = attack(net, images, labels, generator=seeded())
    assert torch.equal(got, expected(net, images, labels, generator=seeded()))
    assert not torch.equal(got, whole)
    attack.scale = 1.0
    assert torch.equal(attack(net, images, labels, generator=seeded()), whole)


@both_norms
@pytest.mark.parametrize("settings", [{}, {"loss": "kl", "restarts": 2}, {"noise": 0.8, "projection": False}])
def test_a_scale_of_0_gives_the_images_back(norm, settings):
    net, images = residual_net(), some_images()
    attack = GradientAttack(epsilon=0.4, steps=3, norm=norm, **settings)
    attack.scale = 0.0
    got = attack(net, images, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(got, images)
    assert got.data_ptr() != images.data_ptr(), "the caller's own"


# ---------------------------------------------------------------- the loss of an objective, soft labels
def test_the_loss_of_trades_is_kl_and_no_loss_is_cross_entropy():
    net, images, labels = some_task("linf", False)
    of_trades = attack_of("linf", random_start="gaussian")
    plain = of_trades(net, images, labels, generator=seeded())
    of_trades.loss = Trades().attack_loss
    named = [attack_of("linf", random_start="gaussian", loss=loss) for loss in ("kl", "cross_entropy")]
    kl, cross_entropy = (attack(net, images, labels, generator=seeded()) for attack in named)
    assert torch.equal(of_trades(net, images, labels, generator=seeded()), kl)
    assert torch.equal(plain, cross_entropy)
    assert not torch.equal(kl, cross_entropy)
    with pytest.raises(InputError, match="without random start"):
        attack_of("linf", random_start=False).loss = Trades().attack_loss


@pytest.mark.parametrize("keep_best", [False, True])
def test_soft_labels_are_ascended_and_one_hot_ones_are_the_classes(keep_best):
    net, images, labels = some_task("linf", False)
    attack = attack_of("linf", keep_best=keep_best)
    hard = attack(net, images, labels, generator=seeded())
    one_hot = nn.functional.one_hot(labels, 4)
    assert torch.equal(attack(net, images, one_hot.double(), generator=seeded()), hard)
    assert torch.equal(attack(net, images, one_hot.float(), generator=seeded()), hard)
    soft = 0.6 * one_hot + 0.4 * one_hot.roll(1, 0)
    got = attack(net, images, soft.double(), generator=seeded())
    assert not torch.equal(got, hard)
    before, after = (-(soft * net(x).log_softmax(1)).sum(1) for x in (images, got))
    assert (after > before).all()
    assert attack.soft_labels
    assert not attack_of("linf", loss="margin").soft_labels
