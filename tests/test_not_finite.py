"""Logits that are not finite are an error with the image's index, never class 0."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nsr.attacks import AutoAttack, GradientAttack, Momentum, TransferAttack, UniformDraws, fgsm, pgd
from nsr.errors import InputError, RunStopped, check_finite_logits
from nsr.evaluation.masking_checks import PROBES
from nsr.evaluation.suite import AttackSuite
from nsr.features import FeatureExtractor
from nsr.interventions import intervene
from nsr.layers import find_layers
from nsr.training.module import RobustClassifier

EPSILON = 0.1


class Broken(nn.Module):
    """Gives `value` as a logit of the images whose first pixel is above 0.75."""

    def __init__(self, value: float = float("nan")):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 4))
        self.value = value

    def forward(self, images):
        logits = self.layers(images)
        return logits.where((images[:, 0, 0, 0] < 0.75)[:, None] | (torch.arange(4) > 1), self.value)


@pytest.fixture
def case():
    images = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = 0.5
    images[7, 0, 0, 0] = images[11, 0, 0, 0] = 1.0
    return images, torch.arange(24) % 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_image_is_named(value):
    logits = torch.zeros(5, 3)
    check_finite_logits(logits)
    logits[2, 1] = logits[4, 0] = value
    with pytest.raises(InputError, match=rf"image 2 of the batch hold {value}; they must be finite"):
        check_finite_logits(logits)
    with pytest.raises(InputError, match=r"image 32 hold"):
        check_finite_logits(logits, places=range(30, 35))


class Recovers(nn.Module):
    """Gives nan for image 3 in its first pass, for image 1 in its second one, and finite logits afterwards."""

    def __init__(self):
        super().__init__()
        self.linear, self.broken = nn.Linear(16, 4), [3, 1]

    def forward(self, images):
        logits = self.linear(images.nan_to_num(0.5).flatten(1))
        here = torch.arange(len(images)) == (self.broken.pop(0) if self.broken else -1)
        return logits.where(~here[:, None], float("nan"))


@pytest.mark.parametrize("steps", [3, 8])
def test_an_entry_that_was_not_finite_once_stays_so_over_the_passes(case, steps):
    """The first image of all passes is named, though the last pass is finite."""
    images, labels = case
    with pytest.raises(InputError, match=r"logits of image 1 of the batch hold nan; they must be finite"):
        pgd(Recovers(), images, labels, epsilon=EPSILON, steps=steps)


ATTACKS = {
    "pgd": lambda *batch: pgd(*batch, epsilon=EPSILON, steps=2),
    "fgsm": lambda *batch: fgsm(*batch, epsilon=EPSILON),
    "uniform": UniformDraws(epsilon=EPSILON, draws=2),
    "transfer": TransferAttack(attack=GradientAttack(epsilon=EPSILON, steps=1), networks=[nn.Linear(1, 1)]),
    "square": AutoAttack(epsilon=EPSILON, version="custom", attacks=["square"], queries=2),
    "momentum": Momentum(epsilon=EPSILON, steps=1),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_refuse_them(case, name):
    attack, net = ATTACKS[name], Broken()
    if name == "transfer":
        attack.networks = [net.layers]
    with pytest.raises(InputError, match="image 7( of the batch)? hold nan"):
        attack(net, *case)


@pytest.mark.parametrize("name", PROBES)
def test_checks_refuse_them(case, name):
    with pytest.raises(InputError, match="hold nan"):
        PROBES[name](Broken(), *case, generator=torch.Generator())


def measured(net, case, **settings) -> None:
    suite, (images, labels) = AttackSuite(**settings), case
    layers = find_layers(net, images[:2])
    suite.start(layers, images.device)
    for number in range(3):
        here = slice(8 * number, 8 * number + 8)
        suite.measure(
            net,
            FeatureExtractor(net, layers),
            (images[here], labels[here]),
            number=number,
            places=torch.arange(8 * number, 8 * number + 8),
        )


def test_an_evaluation_names_the_image_of_the_test_set(case):
    case[0][7, 0, 0, 0] = 0.5
    with pytest.raises(InputError, match="image 11 hold inf"):
        measured(Broken(float("inf")), case, attacks={})


def test_so_does_one_whose_attack_breaks_the_network(case):
    """The attack makes one image, of those that are classified correctly, one that the network cannot take."""
    images, labels = case
    images[:, 0, 0, 0] = 0.5
    net = Broken()
    with torch.no_grad():
        correct = (net(images).argmax(1) == labels).nonzero()[:, 0]
    wanted = int(correct[correct >= 8][0])

    def attack(net, chosen, labels, *, generator):
        is_it = (chosen == images[wanted]).flatten(1).all(1)
        return torch.where(is_it[:, None, None, None], 1.0, chosen)

    for settings in ({"attacks": {"a": attack}}, {"attacks": {}, "sensitivity_attack": attack}):
        with pytest.raises(InputError, match=f"image {wanted} hold nan"):
            measured(net, case, **settings)


@pytest.mark.parametrize("settings", [{}, {"keep_best": True}, {"loss": "margin", "restarts": 2}])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_so_does_one_whose_attack_meets_them_on_its_way(case, norm, settings):
    """Inside the ball, at iterates that the attack would not return, as it takes class 0 for the prediction there."""
    images, net = case[0], Broken().eval()
    images[:, 0, 0, 0] = 0.7
    net.layers[3].bias.data[0] = 5
    epsilon = {"linf": 0.1, "l2": 1, "l1": 4}[norm]
    attack = GradientAttack(epsilon=epsilon, steps=5, norm=norm, **settings)
    with pytest.raises(InputError, match="hold nan"):
        measured(net, (images, torch.zeros(24, dtype=torch.int64)), attacks={"pgd": attack})
    attack(net.train(), images, case[1])  # in training nothing waits for the device: the loss is checked there


def test_interventions_refuse_them(case):
    with pytest.raises(InputError, match="hold nan"):
        intervene(Broken(), *case, attack=GradientAttack(epsilon=EPSILON, steps=1))


def test_validation_ends_the_run(case):
    net = Broken()
    module = RobustClassifier(net, layers=find_layers(net, case[0][:2]), classes=4)

    class Attached:
        val_dataloaders = torch.utils.data.DataLoader(list(zip(*case, strict=True)), batch_size=8)
        world_size, global_rank, current_epoch = 1, 0, 0

    module._trainer = Attached()  # type: ignore[assignment]
    with pytest.raises(RunStopped, match=r"validation, epoch 1: .* image 15 hold nan"):
        module.validation_step((case[0][:8], case[1][:8]), 1)
