"""The passes of an attack: which of them update BatchNorm, and those that an expectation is taken over."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from reference import Counting, inventory, mixed_net, residual_net, same_inventory, seeded, some_images
from torch import nn
from torch.nn import functional as F

from nsr.attacks import EnsembleAttack, GradientAttack, fgsm, pgd
from nsr.layers import find_layers
from nsr.objectives import AdversarialTraining
from nsr.randomness import draw_seed
from nsr.training.module import RobustClassifier

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
EPSILON, STEP_SIZE = 0.1, 0.05


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- BatchNorm
def published_attack(net, images, labels, noise, steps):
    """As in the code of Wong et al. (one step) and Rice et al.: the network is attacked as it is trained."""
    delta = (2 * EPSILON * noise - EPSILON).clamp(-images, 1 - images)
    for _ in range(steps):
        delta.requires_grad_()
        F.cross_entropy(net(images + delta), labels).backward()
        delta = (delta + STEP_SIZE * delta.grad.sign()).detach().clamp(-EPSILON, EPSILON)
        delta = delta.clamp(-images, 1 - images)
    return images + delta


def buffers(net):
    return dict(copy.deepcopy(list(net.named_buffers())))


@pytest.mark.parametrize("steps", [1, 4])
def test_update_leaves_the_running_statistics_of_the_published_loop(steps):
    net, images = residual_net().double().train(), some_images(dtype=torch.float64)
    counterpart = copy.deepcopy(net)
    noise = torch.rand(images.shape, generator=seeded(), dtype=torch.float64)
    expected = published_attack(counterpart, images, LABELS, noise, steps)
    chosen = {"epsilon": EPSILON, "step_size": STEP_SIZE, "steps": steps}
    before = inventory(net)
    in_batch = pgd(net, images, LABELS, **chosen, batch_norm="batch", generator=seeded())
    same_inventory(before, inventory(net))
    close(in_batch, expected)  # the same statistics in use, and nothing written
    close(pgd(net, images, LABELS, **chosen, batch_norm="update", generator=seeded()), expected)
    assert buffers(net)["bn1.num_batches_tracked"] == steps
    close(buffers(net), buffers(counterpart))
    assert not torch.allclose(net.bn2.running_mean, before["buffers"]["bn2.running_mean"])
    after = inventory(net)
    same_inventory({**before, "buffers": after["buffers"]}, after)


def test_update_keeps_the_mode_that_each_module_has():
    """A BatchNorm that its owner froze stays frozen; a network in eval mode is attacked and left as with 'eval'."""
    net, images = mixed_net(), some_images()
    before = inventory(net)
    fgsm(net, images, LABELS, epsilon=EPSILON, batch_norm="update")
    changed = {name for name, value in net.named_buffers() if not torch.equal(value, before["buffers"][name])}
    assert changed == {"bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked"}
    before = inventory(net.eval())
    attacks = [GradientAttack(epsilon=EPSILON, steps=2, batch_norm=how) for how in ("update", "eval")]
    assert torch.equal(*(attack(net, images, LABELS, generator=seeded()) for attack in attacks))
    same_inventory(before, inventory(net))


def test_an_ensembles_fixed_networks_are_not_updated():
    fixed, net, images = residual_net(1), residual_net(0).train(), some_images()
    attack = EnsembleAttack(attack=GradientAttack(epsilon=EPSILON, steps=1, batch_norm="update"), networks=[fixed])
    before = inventory(fixed)
    torch.manual_seed(0)
    for _ in range(8):
        attack(net, images, LABELS)
    same_inventory(before, inventory(fixed))
    assert 0 < net.bn1.num_batches_tracked < 8


@pytest.mark.parametrize("steps", [1, 3])
def test_training_with_update_is_the_published_loop(steps):
    """Weights, momentum, statistics and draws of dropout, over two optimizer steps in float64."""
    net, images = residual_net(dropout=0.3).double(), some_images(dtype=torch.float64)
    counterpart = copy.deepcopy(net).train()
    module = RobustClassifier(
        net,
        layers=find_layers(net, images[:2]),
        classes=3,
        objective=AdversarialTraining(),
        train_attack=GradientAttack(epsilon=EPSILON, step_size=STEP_SIZE, steps=steps, batch_norm="update"),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        seed=3,
    ).train()
    optimizer = module.configure_optimizers()
    plain = torch.optim.SGD(counterpart.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for number in range(2):
        optimizer.zero_grad()
        module.training_step((images, LABELS), number).backward()
        optimizer.step()

        torch.manual_seed(draw_seed(3, 0, 0, number, 0))
        adversarial = published_attack(counterpart, images, LABELS, torch.rand_like(images), steps)
        plain.zero_grad()
        F.cross_entropy(counterpart(adversarial), LABELS).backward()
        plain.step()
        close(net.state_dict(), counterpart.state_dict())


# ---------------------------------------------------------------- expectation over transformation
class Noisy(nn.Module):
    """Class 0 has the logit sum of weight * sin(x + noise), whose expectation is known: exp(-1/2) sin(x)."""

    def __init__(self, pixels=36):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, generator=seeded(1), dtype=torch.float64))

    def forward(self, images):
        moved = images.flatten(1) + torch.randn(images.flatten(1).shape, dtype=images.dtype)
        return torch.stack([moved.sin() @ self.weight, torch.zeros(len(images))], dim=1)


def first_logit(logits, clean_logits, labels):
    return logits[:, 0]


def test_the_mean_gradient_approaches_that_of_the_expectation():
    """A step in L2 has the gradient's direction, for which 256 passes err a sixteenth of one pass."""
    net, images = Noisy().eval(), 0.4 + 0.2 * some_images(dtype=torch.float64)
    direction = net.weight.detach() * images.flatten(1).cos()
    expected = direction / direction.norm(dim=1, keepdim=True)
    errors = {}
    for samples in (1, 16, 256):
        torch.manual_seed(0)
        chosen = {"norm": "l2", "random_start": False, "loss": first_logit, "eot_samples": samples}
        got = pgd(net, images, LABELS % 2, epsilon=0.1, step_size=0.1, steps=1, **chosen)
        errors[samples] = (10 * (got - images).flatten(1) - expected).norm(dim=1).mean()
    assert errors[1] > 0.5
    assert errors[256] < 0.1
    assert errors[16] / errors[256] == pytest.approx(4, rel=0.25), "by the root of the number of passes"


def test_a_network_that_does_not_draw_is_attacked_as_with_one_pass():
    net, images = Counting(residual_net()).eval(), some_images()
    chosen = {"epsilon": EPSILON, "steps": 3, "keep_best": True, "loss": "kl"}
    expected = pgd(net, images, LABELS, **chosen, generator=seeded())
    assert net.passes == 5  # the clean prediction, three steps, the last iterate
    torch.testing.assert_close(pgd(net, images, LABELS, **chosen, eot_samples=4, generator=seeded()), expected)
    assert net.passes == 5 + 4 * 5


class Scripted(nn.Module):
    """Two logits a pass, the second of which is the next of a list; the first one decreases along every pixel."""

    def __init__(self, second):
        super().__init__()
        self.second = iter(second)

    def forward(self, images):
        first = -0.001 * images.flatten(1).sum(1)
        return torch.stack([first, torch.full_like(first, next(self.second))], dim=1)


@pytest.mark.parametrize("kept", [0, 1])
def test_the_kept_iterate_fools_most_passes(kept):
    """Not the one whose loss is higher in the mean, by a single pass."""
    few, most = (30, -1, -1), (1, 1, -1)
    net, images = Scripted([*most, *few] if kept == 0 else [*few, *most]).eval(), torch.full((1, 1, 2, 2), 0.5)
    chosen = {"random_start": False, "keep_best": True, "eot_samples": 3}
    got = GradientAttack(epsilon=0.1, steps=1, step_size=0.1, **chosen)(net, images, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(got, images + 0.1 * kept)


def test_titles_name_the_passes():
    assert GradientAttack(epsilon=0.1, steps=40, restarts=2, eot_samples=20).title == "PGD-40, 2 restarts, EoT-20"
    assert GradientAttack(epsilon=0.1, steps=1, random_start=False, eot_samples=5).title == "FGSM, EoT-5"
