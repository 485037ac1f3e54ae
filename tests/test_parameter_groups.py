"""Groups of parameters with settings of their own, against hand-made groups of torch.optim."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from nsr.app.composition import compose_checked
from nsr.errors import InputError
from nsr.models import Classifier, ResNet20, SmallCNN
from nsr.training.optimizers import grouped, make_optimizer
from nsr.training.schedules import WarmUpCosine, make_scheduler
from tests.conftest import TINY, made, refusal

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
GROUPS: dict[str, Any] = {"conv[12]": {"lr": 0.01}, "bn*": {"weight_decay": 0.0}, "*.bias": {"weight_decay": 0.0}}


def network() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(channels=1, image_size=8, classes=4, width=2)


def by_hand(net: nn.Module, kind: Any) -> torch.optim.Optimizer:
    """Each parameter a group, its settings written down."""
    rows = []
    for name, parameter in net.named_parameters():
        own: dict[str, Any] = {"params": [parameter]}
        if name.startswith(("conv1.", "conv2.")):
            own["lr"] = 0.01
        if name.startswith("bn") or name.endswith("bias"):
            own["weight_decay"] = 0.0
        rows.append(own)
    return kind(rows)


@pytest.mark.parametrize("kind", [SGD, partial(torch.optim.Adam, lr=0.1, weight_decay=0.01), torch.optim.Adagrad])
@pytest.mark.parametrize(
    "schedule", [None, partial(CosineAnnealingLR, T_max=6), partial(WarmUpCosine, warmup=2, steps_per_epoch=1)]
)
def test_each_parameter_moves_as_in_hand_made_groups(kind: Any, schedule: Any) -> None:
    nets = [network(), network()]
    optimizers = [
        make_optimizer(partial(grouped, groups=GROUPS, optimizer=kind), Classifier(nets[0])),
        by_hand(nets[1], kind),
    ]
    assert len(optimizers[0].param_groups) == 3  # the others first
    lengths = {"total_steps": 6} if getattr(schedule, "func", None) is WarmUpCosine else {}
    schedules = [make_scheduler(schedule, each, lengths) if schedule else None for each in optimizers]
    for step in range(4):
        for net, optimizer, made_schedule in zip(nets, optimizers, schedules, strict=True):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            if made_schedule is not None:
                made_schedule.step()
        for (name, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
            assert torch.equal(one, other), name


def test_one_cycle_scales_every_group() -> None:
    net = network()
    optimizer = grouped(net, groups={"conv1": {"lr": 0.001}}, optimizer=partial(torch.optim.SGD, lr=0.1))
    settings = {"total_steps": 10, "anneal_strategy": "linear", "cycle_momentum": False}
    schedule = make_scheduler(partial(OneCycleLR, max_lr=0.1, **settings), optimizer, {})
    other = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]}])
    expected = OneCycleLR(other, max_lr=[0.1, 0.001], **settings)  # type: ignore[arg-type]
    for _ in range(9):
        assert [each["lr"] for each in optimizer.param_groups] == pytest.approx([g["lr"] for g in other.param_groups])
        for part in (optimizer, other, schedule, expected):
            part.step()


def test_frozen_and_shared_parameters(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    net[1].requires_grad_(False)
    caplog.set_level(logging.INFO)
    optimizer = grouped(net, groups={"2": {"lr": 0.5}, "0.bias": {"lr": 0.25}}, optimizer=SGD)
    assert "2 frozen parameters are left out: '1.weight', '1.bias'" in caplog.text
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 2), (0.25, 1)]
    assert optimizer.param_groups[0]["params"][0] is net[0].weight


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"conv9": {"lr": 1}}, r"no parameter matches 'conv9' \(did you mean 'conv.'\?\); there are 'conv1.weight', "),
        (
            {"conv*": {"lr": 1}, "conv1": {"lr": 2}},
            "gives conv1.weight two values of lr, 1 and 2 by 'conv1'; give patterns that do not overlap",
        ),
        ({"conv1": {"lrr": 1}}, r"torch.optim.sgd.SGD refuses {'lrr': 1}: .*unexpected keyword argument 'lrr'"),
        ({"conv1": {"lr": -1}}, r"SGD refuses {'lr': -1}: Invalid learning rate: -1"),
        ({"conv1": 0.1}, r"^optimizer.groups is {'conv1': 0.1}; it must be {PATTERN: settings}, such as {conv1"),
        ("conv1", "^optimizer.groups is 'conv1'; it must be {PATTERN: settings}"),
    ],
)
def test_groups_that_cannot_be_used(groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grouped(network(), groups=groups, optimizer=SGD)


def test_an_optimizer_that_takes_the_network() -> None:
    def mine(net: nn.Module) -> torch.optim.Optimizer:
        return SGD(net.parameters())

    assert "mine takes the network: leave groups out" in refusal(grouped, network(), groups=GROUPS, optimizer=mine)


def test_on_the_command_line() -> None:
    pattern = "optimizer.groups={fc*: {lr: 0.01}, *.bn?: {weight_decay: 0}}"
    settings = compose_checked("train", ["optimizer=sgd", pattern]).optimizer.groups
    assert settings == {"fc*": {"lr": 0.01}, "*.bn?": {"weight_decay": 0}}
    module = made("train", *TINY, "optimizer.groups={conv1: {lr: 0.125}}").module
    assert [group["lr"] for group in module.configure_optimizers()["optimizer"].param_groups] == [0.005, 0.125]
    with pytest.raises(InputError, match=r"^optimizer.groups: no parameter matches 'conv7'"):
        made("train", *TINY, "optimizer.groups={conv7: {lr: 0.125}}")


def test_names_within_blocks() -> None:
    net = ResNet20(channels=1, image_size=8, classes=4)
    optimizer = grouped(net, groups={"*.bn?": {"weight_decay": 0.0}}, optimizer=SGD)
    inside = sum(".bn" in name for name, _ in net.named_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [
        sum(1 for _ in net.parameters()) - inside,
        inside,
    ]


def test_a_parameter_that_no_optimizer_gets_is_named(caplog) -> None:
    own = ("~stabilizer", "+stabilizer._target_=tests.networks.LearnedTerm")
    module = made("train", *TINY, *own).module
    trained = {each for group in module.configure_optimizers()["optimizer"].param_groups for each in group["params"]}
    assert trained == set(module.net.parameters())
    assert "stabilizer.factor is not trained" in caplog.text
    caplog.clear()
    made("train", *TINY)
    assert "is not trained" not in caplog.text
