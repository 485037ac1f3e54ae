"""Auxiliary heads: their loss against the equations written out, for every objective; refusals in one line."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from reference import fit
from torch import nn
from torch.nn import functional as F

from nsr.callbacks import AdversarialWeightPerturbation
from nsr.errors import InputError
from nsr.layers import find_layers
from nsr.models import Classifier
from nsr.objectives import AdversarialTraining, LogitPairing, Mart, Natural, Trades
from nsr.training.module import RobustClassifier
from tests.conftest import made

Outputs = namedtuple("Outputs", ["logits", "first", "second"])
WEIGHTS = {"first": 0.4, 2: 0.3}  # by key and by index


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu = nn.Linear(16, 12), nn.ReLU()
        self.heads = nn.ModuleList(nn.Linear(12, 3) for _ in range(3))

    def forward(self, images):
        features = self.relu(self.stem(images.flatten(1)))
        logits = [head(features) for head in self.heads]
        return Outputs(*logits) if self.training else logits[0]


class Features:
    def __call__(self, adversarial_logits, clean_features, labels):
        return F.cross_entropy(adversarial_logits, labels)


def shifted(net, images, labels, generator=None):
    return (images + 0.1).clamp(0, 1)


def module_of(objective, auxiliary=WEIGHTS):
    net = Classifier(Net(), [0.5], [0.25], output="logits", auxiliary=auxiliary)
    layers = find_layers(net, torch.zeros(2, 1, 4, 4), root=net.net)
    return RobustClassifier(
        net, layers=layers, root=net.net, classes=3, objective=objective, train_attack=shifted,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )  # fmt: skip


def batch():
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def kl(p, q):
    return sum(a * (a.log() - b.log()) for a, b in zip(p.flatten(), q.flatten(), strict=True)) / len(p)


def mart(clean, adversarial, y):
    total = 0.0
    for p, q, label in zip(clean.softmax(1), adversarial.softmax(1), y, strict=True):
        rival = max(value for k, value in enumerate(q) if k != label)
        total = total - q[label].log() - (1 - rival).log() + 5 * kl(p[None], q[None]) * (1 - p[label])
    return total / len(y)


# of clean and adversarial logits and labels: the equations of the papers, for one head
BY_HAND = {
    Natural: lambda clean, adversarial, y: F.cross_entropy(clean, y),
    AdversarialTraining: lambda clean, adversarial, y: F.cross_entropy(adversarial, y),
    Trades: lambda clean, adversarial, y: F.cross_entropy(clean, y) + 6 * kl(clean.softmax(1), adversarial.softmax(1)),
    Mart: mart,
    LogitPairing: lambda clean, adversarial, y: (
        F.cross_entropy(clean, y) / 2 + F.cross_entropy(adversarial, y) / 2 + (clean - adversarial).square().mean() / 2
    ),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_loss_and_gradient_are_the_weighted_sum_over_the_heads(kind):
    module, (images, labels) = module_of(kind()).double().train(), batch()
    images = images.double()
    module.training_step((images, labels), 0).backward()
    oracle = Net().double().train()
    views = [oracle((view - 0.5) / 0.25) for view in (images, shifted(None, images, labels))]
    loss = sum(w * BY_HAND[kind](*(view[k] for view in views), labels) for k, w in enumerate((1.0, 0.4, 0.3)))
    loss.backward()
    for (name, parameter), theirs in zip(module.net.net.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
    terms = module.train_metrics.compute()
    assert terms["train/loss"] == pytest.approx(loss.item(), rel=1e-9)
    expected = 0.4 * BY_HAND[kind](*(view[1] for view in views), labels).item()
    assert terms["train/auxiliary_first"] == pytest.approx(expected, rel=1e-9)


def test_weights_are_perturbed_by_the_whole_loss():
    """AWP ascends what is minimized: a head that only the auxiliary loss uses is perturbed too."""
    module, met = module_of(AdversarialTraining()), []
    before = module.net.net.heads[1].weight.detach().clone()
    watch = AdversarialWeightPerturbation(gamma=0.1)
    module.before_passes.append(lambda views, labels: None)
    original = watch.perturb
    watch.perturb = lambda *arguments: (
        original(*arguments),
        met.append(module.net.net.heads[1].weight.detach().clone()),
    )
    fit(module, [batch()], callbacks=[watch])
    assert (met[0] - before).norm() == pytest.approx(0.1 * before.norm().item(), rel=1e-4)


def test_evaluation_and_attacks_see_the_logits_alone():
    module = module_of(AdversarialTraining()).eval()
    images, _ = batch()
    assert torch.equal(module.net(images), Net().eval()((images - 0.5) / 0.25))


def test_without_weights_the_heads_are_not_trained():
    module = module_of(AdversarialTraining(), auxiliary=None).train()
    module.training_step(batch(), 0).backward()
    assert module.net.net.heads[1].weight.grad is None


@pytest.mark.parametrize(
    ("auxiliary", "message"),
    [
        (3, "model.auxiliary is 3; it must be {OUTPUT: WEIGHT}"),
        ({"first": -1}, "model.auxiliary.first is -1; it must be a number above 0"),
        ({"thrid": 1}, "model.output is 'thrid'; it must be one of the tensors logits, first, second"),
    ],
)
def test_other_heads_are_refused(auxiliary, message):
    with pytest.raises(InputError, match=message):
        module_of(Natural(), auxiliary).train().training_step(batch(), 0)


def test_an_objective_of_features_is_refused():
    with pytest.raises(
        InputError, match="Features takes adversarial_logits, clean_features, labels; an auxiliary head"
    ):
        module_of(Features()).train().training_step(batch(), 0)


def test_a_network_without_such_a_head_is_refused_before_a_run():
    with pytest.raises(InputError, match="network returns its logits alone in train mode"):
        made("train", "+model.auxiliary={aux: 0.4}", "model.width=4", "trainer.accelerator=cpu")
