"""Every file of conf/ composes, explains itself and builds what it names, through the door that users have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from nsr.app.composition import compose_checked, plain, without_hydra
from nsr.app.configuration import check_settings
from nsr.app.job import make_job
from nsr.data import image_data, npz
from nsr.errors import check_epsilon
from tests.conftest import made

CONF = Path(__file__).parent.parent / "conf"
LISTS = ("test_attacks", "callbacks", "logger")
GROUPS = (
    *("data", "model", "objective", "train_attack", "validation_attack", "stabilizer", "optimizer", "scheduler"),
    *("experiment", *LISTS),
)
# networks that another file builds in another size
LARGE = ("preactresnet34", "preactresnet18_deepmind", "resnet34", "resnet50", "inception_v3", "vit_patch4")
LARGE += ("wrn_34_10", "wrn_70_16", "wrn_28_10_deepmind", "wrn_70_16_deepmind")
BUILT = ("model", "objective", "stabilizer")  # by the quick tests; they compose every choice
CHOICES = [
    pytest.param(group, path.stem, marks=pytest.mark.slow if path.stem in LARGE or group not in BUILT else ())
    for group in GROUPS
    for path in sorted((CONF / group).glob("*.yaml"))
]
SMALL = ("train_attack.steps=1", "test_attacks=[clean]", "model.width=4")
NEEDED = {
    ("data", "image_folder"): ["data.root=/somewhere", "data.channels=3", "data.image_size=8", "data.classes=3"],
    ("data", "npz"): ["data.path=/somewhere.npz"],
    ("data", "custom"): ["data._target_=tests.networks.noise"],
    ("model", "torchvision"): ["model.name=resnet18", "data=cifar10"],
    ("model", "timm"): ["model.name=test_vit", "data=cifar10"],
    ("model", "custom"): ["model._target_=tests.networks.Plain", "+model.width=4"],
    ("model", "inception_v3"): ["data=cifar10"],
    ("model", "resnet50"): ["data=cifar10"],
    **{("model", path.stem): ["model.depth=10", "model.width=1"] for path in (CONF / "model").glob("wrn_*.yaml")},
    ("train_attack", "ensemble"): ["train_attack.checkpoints=[best.ckpt]"],
    ("callbacks", "freeze"): ["callbacks.freeze.parts=[conv1]"],
    ("train_attack", "kept"): ["objective=free"],
    ("test_attacks", "ddn"): ["norm=l2"],
    ("test_attacks", "transfer"): ["test_attacks.transfer.checkpoints=[best.ckpt]"],
    ("test_attacks", "corruptions"): ["corruptions.root=/somewhere"],
    ("experiment", "cifar10_wang2023"): ["data.extra=/somewhere.npz"],
    ("objective", "ensemble_adversarial"): ["train_attack.checkpoints=[best.ckpt]"],
}
NOT_HERE = ("cifar", "=mnist ", "fashion_mnist", "svhn", "stl10", "imagenet")
NOT_HERE += ("image_folder", "ensemble", "transfer", "corruptions", "=npz")


def overrides_of(group: str, name: str) -> list[str]:
    value = f"[{name}]" if group in LISTS else name
    return [f"{group}={value}", *NEEDED.get((group, name), [])]


def test_schedules_end_with_the_epochs_of_free_training():
    """Free training replays each batch and divides the epochs by the replays, here 15 of 60 rounded up."""
    for replays, epochs, halves in ((4, 15, [8, 11]), (8, 8, [4, 6])):
        typed = ["objective=free", f"objective.replays={replays}"]
        assert compose_checked("train", typed).scheduler.T_max == epochs
        assert compose_checked("train", [*typed, "scheduler=piecewise"]).scheduler.milestones == halves
    assert compose_checked("train", []).scheduler.T_max == 60


def test_a_composed_command_can_be_resolved():
    config = without_hydra(compose_checked("train", ["seed=3"]))
    OmegaConf.resolve(config)
    assert config.logger.wandb.tags == ["digits", "pgd", "sns"]


def composed(group: str, name: str) -> DictConfig:
    return compose_checked("evaluate" if name == "corruptions" else "train", overrides_of(group, name))


ALONE = [  # but for those that the quick tests build, or compose together
    pytest.param(*choice.values, marks=pytest.mark.slow if not choice.marks or choice.values[0] in LISTS else ())
    for choice in CHOICES
]


@pytest.mark.parametrize(("group", "name"), ALONE)
def test_every_choice_composes(group, name):
    config = composed(group, name)
    assert group in LISTS or config.hydra.runtime.choices[group] == name


@pytest.mark.parametrize("group", LISTS)
def test_the_choices_of_a_list_compose_together(group):
    names = [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
    names = [name for name in names if name != "none" and (group, name) not in NEEDED]
    config = compose_checked("train", [f"{group}=[{','.join(names)}]"])
    assert set(names) <= set(config[group])


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_builds(group, name):
    if not any(part in f"{' '.join(overrides_of(group, name))} " for part in NOT_HERE):  # files that are not here
        small = [row for row in SMALL if group != "model" and not row.startswith(group)]
        if group in ("objective", "train_attack"):
            small = ["test_attacks=[clean]"]
        job = made("train", *overrides_of(group, name), *small)
        assert job.module.train_metrics.names[0] == "train/loss"


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "data").glob("*.yaml"))])
def test_every_data_set_builds_and_has_a_radius_for_each_norm(name, tmp_path):
    """With its files or without: they are read later."""
    whole = OmegaConf.create({"seed": 3, "data": OmegaConf.load(CONF / "data" / f"{name}.yaml")})
    if name == "image_folder":
        whole.data.root = str(tmp_path)
    if name == "npz":
        whole.data.path = "somewhere.npz"
    settings = OmegaConf.to_container(whole, resolve=True)["data"]
    epsilon, target = settings.pop("epsilon"), settings.pop("_target_")
    settings.pop("class_order", None)  # set after the data set is made
    data = image_data(npz if name == "custom" else get_object(target), settings)
    assert data.seed == 3
    assert set(epsilon) == {"linf", "l2", "l1"}
    for norm, radius in epsilon.items():
        check_epsilon(norm, radius, norm=norm, pixels=(settings["channels"] or 1) * (settings["image_size"] or 10) ** 2)
    assert data.augment is None or torch.is_tensor(data.augment(torch.rand(2, 3, 8, 8)))


def test_no_other_choice_is_left_untested():
    tested = {*GROUPS, "analyses", "trainer", "hydra", "sweep"}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == tested


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_composes_with_installed_plugins(name):
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper

    config = compose_checked("train", [f"sweep={name}"])
    targets = [config.hydra.launcher._target_, config.hydra.sweeper._target_]
    kinds = [kind for part in (Launcher, Sweeper) for kind in Plugins.instance().discover(part)]
    assert set(targets) <= {f"{kind.__module__}.{kind.__name__}" for kind in kinds}
    assert not all(target.endswith((".BasicLauncher", ".BasicSweeper")) for target in targets)
    if name.startswith("optuna"):
        directions = config.hydra.sweeper.direction
        assert (1 if isinstance(directions, str) else len(directions)) == len(config.sweep_metrics)


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_explains_itself_and_is_in_the_help(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
    assert comments
    helps = {name: (CONF / "hydra" / "help" / f"{name}.yaml").read_text() for name in ("train", "evaluate")}
    text = helps["evaluate" if path.parent.name in ("test_attacks", "analyses") else "train"]
    if path.parent.name != "trainer" and path.stem != "custom":
        assert re.search(rf"\b{path.stem}\b", text), path.stem


def test_the_threat_model_is_set_once():
    settings = plain(without_hydra(compose_checked("train", ["data=fashion_mnist", "norm=l2", "epsilon=1/2"])))
    attacks = [settings["train_attack"], settings["validation_attack"], settings["test_attacks"]["pgd"]]
    assert {(attack["norm"], attack["epsilon"]) for attack in attacks} == {("l2", "1/2")}
    assert settings["test_attacks"]["fgsm"]["step_size"] == "1/2"
    for data, epsilon in (("fashion_mnist", 0.1), ("cifar10", "8/255")):
        assert compose_checked("train", [f"data={data}"]).train_attack.epsilon == epsilon


def test_a_run_is_named_by_what_it_is_made_of():
    assert compose_checked("train", ["stabilizer=none", "seed=3"]).name == "digits_small_cnn_pgd_none_seed3"
    assert compose_checked("train", ["experiment=cifar10_sns"]).name == "cifar10_resnet18_pgd_sns_seed0"


def test_the_composed_configuration_is_never_changed():
    """The job is made from it, twice, and gets what it finds out about the data as values."""
    config = without_hydra(compose_checked("train", ["model.width=4", "test_attacks=[clean]", "objective=free"]))
    before = plain(config)
    job = make_job(config, "train")
    assert plain(config) == before
    assert job.record["data"]["classes"] == 10
    assert "classes" not in before["model"]


def test_rules_belong_to_a_target_and_foreign_arguments_have_none():
    settings = plain(without_hydra(compose_checked("train", [])))
    names = ("norm", "width", "mode", "loss", "steps", "momentum")
    model = {"_target_": "their.package.Net", **dict.fromkeys(names, "anything")}
    check_settings({**settings, "model": model}, "train")
