"""The recipes of conf/experiment: the schedules of the authors, short trainings, the page made from the files."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import CyclicLR

from benchmarks import recipes
from nsr.app.composition import compose_checked
from nsr.app.train import train
from nsr.callbacks.checkpoints import PLACE
from nsr.models import WideResNet
from nsr.training.optimizers import grouped
from nsr.training.schedules import make_scheduler
from tests.conftest import job
from tests.data.test_sources import write_cifar

NAMES = [recipe.name for recipe in recipes.recipes()]
TINY = ["data.batch_size=4", "data.validation_images=4", "trainer.limit_train_batches=3", "validation_attack.steps=1"]
TINY += ["test_attacks=[clean]", "logger=none", "trainer.accelerator=cpu"]


def composed(name, *overrides):
    extra = ["data.extra=/somewhere.npz"] if name == "cifar10_wang2023" else []
    return compose_checked("train", [f"experiment={name}", *extra, *overrides])


# defaults of the arguments or configuration files in the authors' repositories: batch size, epochs, weight decay,
# Nesterov, epsilon; of the attack steps, step size, start, BatchNorm (update: the attack's passes write the statistics)
SMALL_EPSILON, STEP = ("0.031", 10, "0.007", "gaussian", "eval"), "2/255"
AUTHORS = {
    "cifar10_rice": (128, 200, 5e-4, False, "8/255", 10, STEP, True, "update"),
    "cifar10_trades_wrn": (128, 76, 2e-4, False, *SMALL_EPSILON),
    "cifar10_mart": (128, 120, 3.5e-3, False, *SMALL_EPSILON),
    "cifar10_trades_awp_wrn": (128, 200, 5e-4, False, "8/255", 10, STEP, "gaussian", "eval"),
    "cifar10_fast": (128, 15, 5e-4, False, "8/255", 1, str(10 / 255), True, "update"),
    "cifar10_nfgsm": (128, 30, 5e-4, False, "8/255", 1, "8/255", True, "update"),
    "cifar10_bag_of_tricks": (128, 110, 5e-4, False, "8/255", 10, "0.007", "gaussian", "eval"),
    "cifar10_pgd_wa": (128, 100, 5e-4, False, "8/255", 10, STEP, True, "eval"),
    "cifar10_wang2023": (512, 400, 5e-4, True, "8/255", 10, STEP, True, "batch"),
    "cifar10_free": (128, 8 * 10, 5e-4, False, "8/255", None, "8/255", None, None),
}


# further: learning rate, network and its variant, whether the code normalizes, settings of the loss
NETWORKS = {
    "cifar10_rice": (0.1, "PreActResNet", "published", True, {"clean_weight": 0, "label_smoothing": 0}),
    "cifar10_trades_wrn": (0.1, "WideResNet", "published", False, {"beta": 6, "label_smoothing": 0}),
    "cifar10_mart": (0.01, "ResNet18", None, False, {"weight": 5, "label_smoothing": 0}),
    "cifar10_trades_awp_wrn": (0.1, "WideResNet", "published", False, {"beta": 6, "label_smoothing": 0}),
    "cifar10_fast": (0.2, "PreActResNet", "wong2020", True, {"clean_weight": 0, "label_smoothing": 0}),
    "cifar10_nfgsm": (0.2, "PreActResNet", "input_shortcut", True, {"clean_weight": 0, "label_smoothing": 0}),
    "cifar10_bag_of_tricks": (0.1, "WideResNet", "published", False, {"beta": 6, "label_smoothing": 0}),
    "cifar10_pgd_wa": (0.1, "ResNet18", None, False, {"clean_weight": 0, "label_smoothing": 0.4}),
    "cifar10_wang2023": (0.2, "WideResNet", "deepmind", True, {"beta": 5, "label_smoothing": 0.1}),
    "cifar10_free": (0.04, "PreActResNet", "wong2020", True, {"replays": 8, "label_smoothing": 0}),
}
MEAN_AND_STD = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]}  # of all the authors' code


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_network_and_loss_are_those_of_the_authors(name):
    config = composed(name)
    lr, network, variant, normalizes, loss = NETWORKS[name]
    assert (config.optimizer.lr, config.optimizer.momentum) == (lr, 0.9)
    assert (config.model._target_.rpartition(".")[2], config.model.get("variant")) == (network, variant)
    assert config.model.normalization == (MEAN_AND_STD if normalizes else "none")
    assert {key: value for key, value in config.objective.items() if key != "_target_"} == loss
    reflects = {"_target_": "nsr.data.CropFlip", "padding_mode": "reflect"}  # np.pad of Rice et al.'s utils.py
    assert config.data.augmentation == (reflects if name == "cifar10_rice" else "crop_flip")
    averaged = {"cifar10_pgd_wa": 0.9995, "cifar10_wang2023": 0.995}  # tau of their configurations
    callbacks = {"awp": 0.005} if "awp" in name else {"ema": averaged[name]} if name in averaged else {}
    assert {key: own.get("gamma", own.get("decay")) for key, own in config.get("callbacks", {}).items()} == callbacks
    assert config.trainer.get("gradient_clip_val") is None


def test_wang_2023_decays_no_batch_norm_and_chooses_by_pgd_40_on_the_margin():
    config = composed("cifar10_wang2023")
    net = WideResNet(channels=3, classes=10, depth=10, width=1, variant="deepmind", activation="silu")
    groups = grouped(net, groups=config.optimizer.groups, optimizer=partial(torch.optim.SGD, lr=0.2, weight_decay=5e-4))
    decays = {id(parameter): group["weight_decay"] for group in groups.param_groups for parameter in group["params"]}
    for name, parameter in net.named_parameters():  # group_weight of the authors' watrain.py
        assert decays[id(parameter)] == (0 if "batchnorm" in name else 5e-4), name
    chooses = config.validation_attack
    assert (chooses.steps, chooses.step_size, chooses.loss, chooses.random_start) == (40, "2/255", "margin", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_settings_are_those_of_the_authors(name):
    config = composed(name)
    attack, optimizer = config.train_attack, config.optimizer
    found = (config.data.batch_size, config.trainer.max_epochs, optimizer.weight_decay, optimizer.nesterov)
    found += (str(attack.epsilon), attack.get("steps"), str(attack.step_size))
    assert (*found, attack.get("random_start"), attack.get("batch_norm")) == AUTHORS[name]


def course(config, steps_per_epoch=1):
    """Learning rate and momentum at the beginning of every step: (step, 2)."""
    own = {name: value for name, value in config.optimizer.items() if name != "groups"}
    optimizer = instantiate(own)([torch.zeros(1, requires_grad=True)])
    settings, steps = (
        OmegaConf.to_container(config.scheduler, resolve=True),
        steps_per_epoch * config.trainer.max_epochs,
    )
    lengths = {"total_steps": steps, "steps_per_epoch": steps_per_epoch} if "total_steps" in settings else {}
    settings.pop("total_steps", None)
    scheduler, rows = make_scheduler(instantiate(settings), optimizer, lengths), []
    for _ in range(steps):
        rows.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]])
        optimizer.step()
        scheduler.step()
    return np.array(rows)


def drops(lr, epochs, starts, first):
    """The rate of every epoch, divided by ten at each of `starts`, where the authors' code counts from `first`."""
    return [lr * 0.1 ** sum(epoch >= start for start in starts) for epoch in range(first, epochs + first)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [  # as in the authors' code: adjust_learning_rate of TRADES counts from 1, lr_schedule from 0
        ("cifar10_rice", drops(0.1, 200, [100, 150], 0)),
        ("cifar10_trades_wrn", drops(0.1, 76, [75, 90, 100], 1)),
        ("cifar10_mart", drops(0.01, 120, [75, 90, 100], 1)),
        ("cifar10_trades_awp_wrn", drops(0.1, 200, [100, 150], 1)),
        ("cifar10_bag_of_tricks", drops(0.1, 110, [100, 105], 1)),
    ],
)
def test_piecewise_rates_are_those_of_the_authors(name, expected):
    rows = course(composed(name))
    np.testing.assert_allclose(rows[:, 0], expected)
    assert (rows[:, 1] == 0.9).all()


@pytest.mark.parametrize(("name", "peak"), [("cifar10_fast", 0.2)])
def test_a_cyclic_schedule_is_that_of_the_authors(name, peak):
    """torch's CyclicLR, a triangle over the run; OneCycleLR is ahead of it by up to a step."""
    config, steps_per_epoch = composed(name), 40
    steps = config.trainer.max_epochs * steps_per_epoch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak, momentum=0.9)
    cyclic, expected = CyclicLR(optimizer, 0.0, peak, step_size_up=steps / 2, step_size_down=steps / 2), []
    for _ in range(steps):
        expected.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]])
        optimizer.step()
        cyclic.step()
    rows = course(config, steps_per_epoch)
    assert np.abs(rows - expected).max() <= 2.01 * peak / steps
    assert rows[:, 0].max() == pytest.approx(peak)
    assert rows[:, 1].min() == pytest.approx(0.8)


@pytest.mark.parametrize(("name", "lr", "epochs", "rise"), [("cifar10_wang2023", 0.2, 400, 0.025)])
def test_a_one_cycle_schedule_is_that_of_the_authors(name, lr, epochs, rise):
    """torch's OneCycleLR with its defaults, a step an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, pct_start=rise, total_steps=epochs)
    rows = course(composed(name))
    for found in rows:
        assert found.tolist() == [optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]]
        optimizer.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_with_the_stabilizer(name, tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    np.savez(tmp_path / "extra.npz", image=np.zeros((8, 32, 32, 3), np.uint8), label=np.zeros(8, np.int64))
    overrides = [f"experiment={name}", "stabilizer=sns", *TINY, f"data.root={tmp_path}", "data.download=false"]
    overrides += ["model=wrn_28_10", "model.variant=published"] if "resnet18" in composed(name).name else []
    overrides += ["model.depth=10", "model.width=1"]
    overrides += [f"data.extra={tmp_path}/extra.npz"] if name == "cifar10_wang2023" else []
    overrides += [f"trainer.max_epochs={8 if name == 'cifar10_free' else 1}"]
    train(job("train", tmp_path / "run", *overrides))
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_the_page_is_made_from_the_recipes():
    assert len(NAMES) == 10
    assert recipes.PAGE.read_text() == recipes.page(recipes.PAGE.read_text())
    awp = recipes.cells(next(recipe for recipe in recipes.recipes() if recipe.name == "cifar10_trades_awp_wrn"))
    assert awp[1:6] == ["wrn_34_10", "trades + awp", "200 x 128", "0.1 piecewise, 0.0005", "85.36 / 56.17"]


SPEEDRUNS = {"speedrun_fashion_mnist": [1, 1, 2, 3], "speedrun_cifar10": [1] * 7 + [1, 2, 2, 2, 3, 3, 3, 3]}


@pytest.mark.parametrize("name", SPEEDRUNS)
def test_a_speedrun_ends_with_all_steps(name):
    config = composed(name)
    ramp = instantiate(config.callbacks.steps_ramp)
    ramp._steps = config.train_attack.steps
    assert [ramp.steps(epoch) for epoch in range(config.trainer.max_epochs)] == SPEEDRUNS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEEDRUNS)
def test_a_speedrun_trains(name, tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    own = ["data=digits"] if name == "speedrun_fashion_mnist" else [f"data.root={tmp_path}", "data.download=false"]
    own += ["trainer.max_epochs=2", "callbacks.steps_ramp.start=0", "callbacks.steps_ramp.epochs=1"]
    train(job("train", tmp_path / "run", f"experiment={name}", *TINY, *own))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["nsr_settings"]["trainer"]["precision"] == "bf16-mixed"
    assert saved[PLACE]["epochs"] == 2


def test_predicted_hours_count_the_passes_of_a_recipe():
    """TRADES, PGD-10 and two passes to the weights; AWP two more; free training one alone."""
    found = {recipe.name: recipe for recipe in recipes.recipes()}
    for name, passes in {
        "cifar10_trades_wrn": (10, 2),
        "cifar10_trades_awp_wrn": (10, 4),
        "cifar10_rice": (10, 1),
        "cifar10_fast": (1, 1),
        "cifar10_free": (0, 1),
    }.items():
        recipe = found[name]
        works = recipes.work(recipe.choices["model"])
        flops = 50_000 * recipe.settings["trainer"]["max_epochs"] * float(np.dot(passes, works))
        assert recipes.hours(recipe).startswith(f"{flops / (0.15 * 989e12) / 3600:.2g} (")
    attack, training = recipes.work("wrn_34_10")
    assert attack == pytest.approx(2 / 3 * training, rel=0.01)  # no gradients of the weights
    assert training == pytest.approx(3 * 2 * 6.65e9, rel=0.02)  # 6.65 G multiplications forward
