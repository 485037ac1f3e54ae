"""Attacks, losses and checks on 2 to 1,000 classes, against the exact robustness of a linear network."""

import pytest
import torch
from torch import nn

from nsr.attacks import AdaptiveAttack, AutoAttack, GradientAttack, Momentum, TransferAttack, UniformDraws
from nsr.evaluation.masking_checks import PROBES, evaluate_checks
from nsr.losses import boosted_cross_entropy

EPSILON, IMAGES = 0.1, 6
COUNTS = (2, 3, 4, 8, 10, 100, 1000)
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
MORE = [(name, classes) for name in ("apgd-ce", "apgd-dlr", "apgd-t", "square") for classes in COUNTS]
MORE += [("fab", 2), ("fab", 10), ("fab-t", 4), ("fab-t", 1000), ("standard", 3), ("standard", 10), ("plus", 4)]
MORE += [(name, classes) for name in ("rand", "transfer") for classes in (2, 4, 10)]
EXACT = ("margin", "apgd-dlr", "apgd-t", "fab", "fab-t")  # find the nearest boundary of a linear network


def linear(classes):
    """A linear network, images far from the pixel range's ends, their predictions, and the flags of robust images.

    In Linf, image x of class y is robust where z_y - z_k > epsilon * |w_y - w_k|_1 for every other class k.
    """
    generator = torch.Generator().manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, 12, generator=generator))
        net[1].bias.zero_()
        images = 0.5 + 0.3 * (torch.rand(400, 3, 2, 2, generator=generator) - 0.5)
        logits, weight = net(images), net[1].weight
        labels = logits.argmax(1)
        gaps = logits.amax(1, keepdim=True) - logits - EPSILON * (weight[labels][:, None] - weight).abs().sum(2)
        gaps.scatter_(1, labels[:, None], torch.inf)
    clear = gaps.amin(1).abs() > 0.05  # of either kind, none on the boundary
    robust = gaps.amin(1) > 0
    chosen = torch.cat([(clear & robust).nonzero()[: IMAGES // 2, 0], (clear & ~robust).nonzero()[: IMAGES // 2, 0]])
    return net, images[chosen], labels[chosen], robust[chosen]


def made(name, classes):
    settings = {"epsilon": EPSILON, "norm": "linf"}
    if name in PARTS:
        return AutoAttack(**settings, version="custom", attacks=[name], queries=20)
    if name in ("standard", "plus", "rand"):
        return AutoAttack(**settings, version=name)
    gradient = {
        "fgsm": {"steps": 1, "random_start": False},
        "pgd": {"steps": 10},
        "margin": {"steps": 40, "loss": "margin", "restarts": 2},
        "kl": {"steps": 10, "loss": "kl"},
        "least_likely": {"steps": 10, "targeted": "least_likely"},
    }
    if name in gradient:
        return GradientAttack(**settings, **gradient[name])
    others = {
        "mifgsm": lambda: Momentum(**settings, steps=5),
        "uniform": lambda: UniformDraws(**settings, draws=20),
        "adaptive": lambda: AdaptiveAttack(**settings, steps=5, layers=["1"]),
        "transfer": lambda: TransferAttack(attack=made("pgd", classes), networks=[linear(classes)[0]]),
    }
    return others[name]()


def check(name, classes):
    net, images, labels, robust = linear(classes)
    torch.manual_seed(0)
    attack = made(name, classes)
    adversarial = attack(net, images, labels)
    assert (adversarial - images).abs().max() <= EPSILON + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    correct = net(adversarial).argmax(1) == labels
    assert torch.equal(correct & robust, robust)  # no attack fools an image that is robust
    if name in EXACT and classes <= 10:
        assert torch.equal(correct, robust)


@pytest.mark.parametrize("classes", COUNTS)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "margin", "kl", "least_likely", "mifgsm", "uniform", "adaptive"])
def test_attacks_on_any_number_of_classes(name, classes):
    check(name, classes)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        *((name, 2) for name in PARTS if not name.startswith(("apgd-ce", "fab"))),
        *((name, 3) for name in ("apgd-dlr", "apgd-t")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_autoattack_on_any_number_of_classes(name, classes):
    check(name, classes)


def test_changes_of_autoattack_for_few_classes_are_logged_once(caplog):
    net, images, labels, robust = linear(3)
    attack = AutoAttack(epsilon=EPSILON, version="custom", attacks=["apgd-t"])
    for _ in range(2):
        attack(net, images[~robust], labels[~robust])
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "AutoAttack on 3 classes: apgd-t has 2 of its 9 targets; "
        "apgd-t ascends the margin, as its DLR loss needs more classes"
    ]


@pytest.mark.parametrize("classes", COUNTS)
def test_losses_probes_and_checks_on_any_number_of_classes(classes):
    net, images, labels, robust = linear(classes)
    probabilities = net(images).double().softmax(1)
    others = probabilities.scatter(1, labels[:, None], 0)
    expected = -(probabilities.gather(1, labels[:, None])[:, 0] * (1 - others.amax(1))).log()
    torch.testing.assert_close(boosted_cross_entropy(net(images).double(), labels), expected)
    flags = {name: probe(net, images, labels, generator=torch.Generator()) for name, probe in PROBES.items()}
    rows = dict.fromkeys(("clean", "pgd", "pgd100", "fgsm", "square", "uniform"), robust)
    checks = evaluate_checks({**rows, **flags}, classes=classes, attacks={"L-infinity": {name: name for name in rows}})
    found = {check.name: check.triggered for check in checks}
    assert [name for name, triggered in found.items() if triggered] == []
