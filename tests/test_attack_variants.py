"""The attack's losses, targets, restarts and starts against slow loops, image by image; how many passes they take."""

from __future__ import annotations

import math

import pytest
import torch
from reference import inventory, pattern_images, residual_net, same_inventory, some_images, trained_net
from torch import nn

from nsr.attacks import GradientAttack, fgsm, pgd

AIMS = [  # loss, targeted
    *(("cross_entropy", targeted) for targeted in (False, True, "least_likely")),
    *(("margin", targeted) for targeted in (False, True, "least_likely")),
    ("kl", False),
]
EPSILON, STEP_SIZE, STEPS = {"linf": 0.1, "l2": 0.4}, {"linf": 0.1, "l2": 0.8}, 3
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


@pytest.fixture(scope="module")
def learnt():
    images, labels = pattern_images()
    return trained_net(images, labels), images, labels


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the slow attack


def log_softmax(row):
    return row - torch.log(sum(torch.exp(value) for value in row))


def slow_loss(loss, row, label, clean):
    """What is ascended, for one image's logits."""
    if loss == "kl":
        log_p, log_q = log_softmax(clean), log_softmax(row)
        return sum(torch.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    if loss == "margin":
        return max(value for k, value in enumerate(row) if k != label) - row[label]
    return -log_softmax(row)[label]


def put_back(point, image, norm, epsilon):
    """Into the ball, then into the pixel range."""
    movement = point - image
    if norm == "linf":
        movement = torch.maximum(torch.minimum(movement, torch.tensor(epsilon)), torch.tensor(-epsilon))
    else:
        length = math.sqrt(math.fsum(value**2 for value in movement.flatten().tolist()))
        movement = movement * (epsilon / length) if length > epsilon else movement
    return torch.maximum(torch.minimum(image + movement, torch.tensor(1.0)), torch.tensor(0.0))


def slow_iterates(net, image, label, start, *, norm, loss, targeted):
    """[(point, what is ascended there, whether the aim is reached there)] for x_0 ... x_steps of one image."""
    clean = net(image[None])[0].detach()
    aim, sign = label, 1
    if targeted:
        sign = -1
    if targeted == "least_likely":
        aim = min(range(len(clean)), key=lambda k: clean[k])
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
    """Pixels at the ends of the range too; labels of which an attack reaches some."""
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


@both_norms
def test_the_aims_lead_to_different_images(norm):
    """Else the comparison with the slow loops would not tell them apart."""
    net, images, labels = some_task(norm, False)
    results = [
        attack_of(norm, random_start="gaussian", loss=loss, targeted=targeted)(net, images, labels, generator=seeded())
        for loss, targeted in AIMS
    ]
    for place, one in enumerate(results):
        for other in results[:place]:
            assert not torch.allclose(one, other, atol=1e-4)


def test_the_kl_attack_goes_away_from_the_prediction_whatever_the_labels():
    """As TRADES has it: a network in training mode is attacked as it predicts in eval mode."""
    net, images, labels = some_task("linf", False)
    attack = attack_of("linf", random_start="gaussian", loss="kl")
    expected = attack(net, images, labels, generator=seeded())
    before = inventory(net.train())
    assert torch.equal(attack(net, images, (labels + 1) % 4, generator=seeded()), expected)
    same_inventory(before, inventory(net))
    in_batch = attack_of("linf", random_start="gaussian", loss="kl", mode="train")
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


@both_norms
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_a_targeted_attack_reaches_its_classes(learnt, norm, loss):
    net, images, labels = learnt
    epsilon = {"linf": 0.4, "l2": 3.0}[norm]
    for shift in (1, 2, 3):
        targets = (labels + shift) % 4
        chosen = {"epsilon": epsilon, "steps": 10, "norm": norm, "loss": loss, "random_start": False}
        got = pgd(net, images, targets, **chosen, targeted=True)
        before, after = (nn.functional.cross_entropy(net(x), targets, reduction="none") for x in (images, got))
        assert (after < before).double().mean() > 0.99
        assert (net(got).argmax(1) == targets).double().mean() > 0.9
        astray = pgd(net, images, labels, **chosen)
        assert (net(astray).argmax(1) == targets).double().mean() < 0.9, "the target decides"


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_least_likely_class_is_that_of_the_clean_image_and_needs_no_labels(learnt, keep_best):
    net, images, labels = learnt
    least = net(images).argmin(1)
    chosen = {"epsilon": 0.4, "steps": 10, "random_start": False}
    got = pgd(net, images, labels, **chosen, targeted="least_likely", keep_best=keep_best)
    assert (net(got).argmax(1) == least).double().mean() > 0.9
    if not keep_best:
        assert torch.equal(got, pgd(net, images, least, **chosen, targeted=True))


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
@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize(("loss", "targeted"), AIMS)
def test_the_best_iterate_of_each_image_is_kept(norm, loss, targeted, restarts):
    net, images, labels = some_task(norm, targeted)
    chosen = {"random_start": True, "loss": loss, "targeted": targeted}
    runs = slow_runs(net, images, labels, restarts=restarts, generator=seeded(), norm=norm, **chosen)
    best = [best_of(iterates) for iterates in runs]
    attack = attack_of(norm, **chosen, restarts=restarts, keep_best=True)
    close(attack(net, images, labels, generator=seeded()), torch.stack([point for point, _, _ in best]))
    assert any(point is not iterates[-1][0] for (point, _, _), iterates in zip(best, runs, strict=True))


def test_the_cases_above_tell_the_rules_apart():
    """Some images are fooled and some are not; somewhere an iterate that fools has not the largest loss."""
    fooled, against_loss = [], 0
    for norm in ("linf", "l2"):
        for loss, targeted in AIMS:
            net, images, labels = some_task(norm, targeted)
            chosen = {"random_start": True, "loss": loss, "targeted": targeted}
            for iterates in slow_runs(net, images, labels, restarts=2, generator=seeded(), norm=norm, **chosen):
                best = best_of(iterates)
                fooled.append(best[2])
                against_loss += best[1] < max(value for _, value, _ in iterates)
    assert any(fooled)
    assert not all(fooled)
    assert against_loss > 0


@both_norms
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "kl"])
def test_three_restarts_are_the_best_of_three_runs(norm, loss):
    net, images, labels = some_task(norm, False)
    generator = seeded()
    runs = [attack_of(norm, loss=loss, keep_best=True)(net, images, labels, generator=generator) for _ in range(3)]
    assert not torch.equal(runs[0], runs[1])
    got = attack_of(norm, loss=loss, restarts=3)(net, images, labels, generator=seeded())
    clean, taken = net(images), set()
    for place, label in enumerate(labels.tolist()):
        candidates = []
        for run in runs:
            row = net(run[place][None])[0]
            value = slow_loss(loss, row, label, clean[place]).item()
            candidates.append((run[place], value, int(row.argmax()) != label))
        best = best_of(candidates)
        taken |= {k for k in range(3) if candidates[k] is best}
        assert torch.equal(got[place], best[0])
    assert len(taken) > 1, "one run was best for all images"


def test_more_restarts_fool_no_image_less(learnt):
    net, images, labels = learnt
    chosen = {"epsilon": 0.12, "steps": 3}
    one = pgd(net, images, labels, **chosen, restarts=1, keep_best=True, generator=seeded())
    three = pgd(net, images, labels, **chosen, restarts=3, generator=seeded())
    right = [net(x).argmax(1) == labels for x in (one, three)]
    assert 0.05 < right[0].double().mean() < 0.95
    assert not (right[1] & ~right[0]).any()
    assert right[1].sum() < right[0].sum()
    loss = [nn.functional.cross_entropy(net(x), labels, reduction="none") for x in (one, three)]
    both_right = right[0] & right[1]
    assert (loss[1] >= loss[0] - 1e-6)[both_right].all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 3),
        ({"random_start": False}, 3),
        ({"steps": 0}, 0),
        ({"targeted": True}, 3),
        ({"loss": "margin"}, 3),
        ({"loss": "kl"}, 3 + 1),
        ({"loss": "kl", "random_start": "gaussian"}, 3 + 1),
        ({"targeted": "least_likely"}, 3 + 1),
        ({"keep_best": True}, 3 + 1),
        ({"keep_best": True, "steps": 0}, 1),
        ({"restarts": 2}, 2 * (3 + 1)),
        ({"restarts": 2, "keep_best": True}, 2 * (3 + 1)),
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


def test_the_best_may_be_a_start_that_a_bad_step_leaves():
    """A step over the top of the loss: the last iterate is the worst."""

    class Hill(nn.Module):
        def forward(self, images):
            height = -(images.flatten(1) - 0.5).square().sum(1)
            return torch.stack([-height, height], dim=1) - torch.tensor([10.0, 0.0])

    images, label = torch.full((1, 1, 1, 1), 0.48), torch.tensor([1])
    chosen = {"epsilon": 0.3, "steps": 1, "step_size": 0.3, "random_start": False, "targeted": True}
    last = pgd(Hill(), images, label, **chosen)
    assert last.item() == pytest.approx(0.78)
    assert pgd(Hill(), images, label, **chosen, keep_best=True).item() == pytest.approx(0.48)


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
    movement = (got - images).abs()
    assert got.ge(0).all()
    assert got.le(1).all()
    assert movement.max() <= 3 * epsilon + 1e-12
    assert movement.max() > 2 * epsilon
    assert movement.gt(epsilon).double().mean() > 0.2


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
    attack = GradientAttack(
        epsilon=0.3, steps=2, step_size=0.4, noise=0.5, norm="l2", projection=False, keep_best=keep_best
    )
    got = attack(net, images, labels, generator=seeded())
    length = (got - images).flatten(1).norm(dim=1)
    assert got.ge(0).all()
    assert got.le(1).all()
    assert length.max() <= 0.5 + 2 * 0.4 + 1e-12
    assert length.max() > 0.3


# ---------------------------------------------------------------- share


@both_norms
@pytest.mark.parametrize(
    ("settings", "half"),
    [
        ({}, {"noise": 0.2}),
        ({"random_start": False}, {}),
        ({"random_start": "gaussian", "loss": "kl"}, {"noise": 0.0005}),
        ({"noise": 0.1}, {"noise": 0.05}),
        ({"noise": 0.6, "projection": False}, {"noise": 0.3}),
        ({"noise": 0.4, "random_start": "gaussian", "restarts": 2}, {"noise": 0.2}),
        ({"keep_best": True, "loss": "margin"}, {"noise": 0.2}),
    ],
)
def test_share_is_of_epsilon_step_size_and_noise(norm, settings, half):
    net, images = residual_net().eval(), some_images()
    labels = net(images).argmax(1)
    attack = GradientAttack(epsilon=0.4, steps=3, step_size=0.2, norm=norm, **settings)
    expected = GradientAttack(epsilon=0.2, steps=3, step_size=0.1, norm=norm, **{**settings, **half})
    whole = attack(net, images, labels, generator=seeded())
    attack.share = 0.5
    got = attack(net, images, labels, generator=seeded())
    assert torch.equal(got, expected(net, images, labels, generator=seeded()))
    assert not torch.equal(got, whole)
    attack.share = 1.0
    assert torch.equal(attack(net, images, labels, generator=seeded()), whole)


@both_norms
@pytest.mark.parametrize("settings", [{}, {"loss": "kl", "restarts": 2}, {"noise": 0.8, "projection": False}])
def test_a_share_of_0_gives_the_images_back(norm, settings):
    net, images = residual_net(), some_images()
    attack = GradientAttack(epsilon=0.4, steps=3, norm=norm, **settings)
    attack.share = 0.0
    got = attack(net, images, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(got, images)
    assert got.data_ptr() != images.data_ptr(), "the caller's own"


def test_the_whole_is_what_an_attack_starts_with():
    assert GradientAttack(epsilon=0.1, steps=1).share == 1
    net, images = residual_net().eval(), some_images()
    labels = torch.zeros(6, dtype=torch.int64)
    attack = GradientAttack(epsilon=0.1, steps=1, step_size=0.1, random_start=False)
    assert torch.equal(attack(net, images, labels), fgsm(net, images, labels, epsilon=0.1))
