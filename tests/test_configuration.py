"""Every file of conf/ composes and builds what it names; every number in it has a rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from nsr.app.composition import compose_checked, plain, without_hydra
from nsr.app.configuration import check_settings, flat
from nsr.app.rules import rule_of
from nsr.errors import InputError

CONF = Path(__file__).parent.parent / "conf"
LISTS = {"attacks": "suite", "callbacks": "callbacks"}  # groups of which several are chosen: where they go
GROUPS = (
    "data",
    "model",
    "objective",
    "attack",
    "validation_attack",
    *LISTS,
    "stabilizer",
    "optimizer",
    "scheduler",
    "logger",
)
TRAINING = [(group, path.stem) for group in (*GROUPS, "experiment") for path in sorted((CONF / group).glob("*.yaml"))]
ANALYSES = sorted(path.stem for path in (CONF / "analyses").glob("*.yaml"))
NEEDED = {
    ("data", "image_folder"): ["data.root=/somewhere", "data.channels=3", "data.image_size=8", "data.classes=3"],
    ("model", "torchvision"): ["model.name=resnet18", "data=cifar10"],
    ("model", "timm"): ["model.name=test_vit", "data=cifar10"],
    ("attack", "ensemble"): ["attack.checkpoints=[best.ckpt]"],
    ("attack", "kept"): ["objective=free"],
    ("attacks", "corruptions"): ["corruptions.root=/somewhere"],
    ("attacks", "transfer"): ["suite.transfer.checkpoints=[best.ckpt]"],
    ("objective", "eat"): ["attack.checkpoints=[best.ckpt]"],
}


def train_settings(*overrides: str):
    return plain(without_hydra(compose_checked("train", list(overrides))))


def composed(group: str, name: str):
    value = f"[{name}]" if group in LISTS else name
    entry = "evaluate" if name == "corruptions" else "train"
    return compose_checked(entry, [f"{group}={value}", *NEEDED.get((group, name), [])])


@pytest.mark.parametrize(("group", "name"), TRAINING)
def test_every_choice_composes_and_passes_the_checks(group, name):
    config = composed(group, name)
    assert group in LISTS or config.hydra.runtime.choices[group] == name


@pytest.mark.parametrize(("group", "name"), [row for row in TRAINING if row[0] in GROUPS])
def test_every_choice_builds_what_it_names(group, name, tmp_path):
    config = composed(group, name)
    settings = OmegaConf.to_container(config[LISTS.get(group, group)], resolve=True)
    if name == "corruptions":
        return  # images, no attack: tests/test_curve_and_corruptions.py
    if group in LISTS:
        settings = settings[name]
    if name == "curve":
        settings = settings["attack"]
    if group == "data":
        settings.pop("epsilon")
    if group == "model":
        settings = {key: value for key, value in settings.items() if key not in ("normalization", "weights")}
    if group == "logger":
        settings |= {"save_dir": str(tmp_path)}
    if settings is not None and "checkpoints" in settings:  # what the assembly does with them
        settings = {**settings, "networks": [nn.Identity()]}
        for key in ("checkpoints", *(("norm", "epsilon") if name == "transfer" else ())):
            del settings[key]
    if settings is None or settings["_target_"] is None:
        assert name in ("none", "constant", "clean")
        return
    made = instantiate(settings, _convert_="all")
    assert made is not None
    if group == "logger":
        from nsr.loggers import finish

        finish(made)


def test_there_is_no_other_choice_left_untested():
    tested = {*GROUPS, "analyses", "experiment", "trainer", "hydra", "sweep"}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == tested


def test_evaluation_composes():
    assert compose_checked("evaluate", []).checkpoint is None
    config = compose_checked("evaluate", ["model=resnet20", "data=digits", "attacks=[clean,pgd]", "epsilon=2/255"])
    assert config.suite.pgd.epsilon == "2/255"
    assert config.suite.pgd.steps == 40


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_composes_and_is_explained(name):
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper

    config = compose_checked("train", [f"sweep={name}"])
    targets = [config.hydra.launcher._target_, config.hydra.sweeper._target_]
    installed = {
        f"{kind.__module__}.{kind.__name__}"
        for part in (Launcher, Sweeper)
        for kind in Plugins.instance().discover(part)
    }
    assert set(targets) <= installed
    assert not all(target.endswith((".BasicLauncher", ".BasicSweeper")) for target in targets)
    text = (CONF / "hydra" / "help" / "train.yaml").read_text()
    assert re.search(rf"^  sweep .*\b{name}\b", text, flags=re.MULTILINE)
    if name.startswith("optuna"):
        directions = config.hydra.sweeper.direction
        assert (1 if isinstance(directions, str) else len(directions)) == len(config.optimize)


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_composes_and_builds(name):
    config = compose_checked("evaluate", [f"analyses=[{name}]"])
    assert list(config.analysis) == [name]
    assert instantiate(OmegaConf.to_container(config.analysis[name], resolve=True)) is not None
    settings = {f"analysis.{name}.{key}": value for key, value in flat(plain(config.analysis[name]))}
    assert {key for key in settings if rule_of(key) is None} == {f"analysis.{name}._target_"}
    text = (CONF / "hydra" / "help" / "evaluate.yaml").read_text()
    assert re.search(rf"analyses +\[.*\b{name}\b", text)


@pytest.mark.parametrize(("group", "name"), TRAINING)
def test_every_number_has_a_rule(group, name):
    settings = plain(without_hydra(composed(group, name)))
    numbers = {
        key
        for key, value in flat(settings)
        if isinstance(value, (int, float)) and not key.endswith(("epsilon", "_partial_"))
    }
    assert {key for key in numbers if rule_of(key) is None} == set()


@pytest.mark.parametrize("name", sorted(path.name for path in CONF.glob("*/*.yaml")))
def test_every_choice_explains_itself_in_one_line(name):
    for path in CONF.glob(f"*/{name}"):
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
        assert comments, path
        assert len(path.read_text().splitlines()) <= 25, path


@pytest.mark.parametrize(("group", "name"), [row for row in TRAINING if row[0] != "attacks"])
def test_the_help_names_every_choice(group, name):
    text = (CONF / "hydra" / "help" / "train.yaml").read_text()
    assert f" {name} " in text.replace("\n", " ").replace(",", " "), f"{group}={name}"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "attacks").glob("*.yaml")))
def test_the_evaluations_help_names_every_attack(name):
    text = (CONF / "hydra" / "help" / "evaluate.yaml").read_text()
    assert re.search(rf"\b{name}\b", text), name


def test_the_threat_model_is_set_once():
    settings = train_settings("data=fashion_mnist", "norm=l2", "epsilon=1/2")
    for attack in ("attack", "validation_attack"):
        assert (settings[attack]["norm"], settings[attack]["epsilon"]) == ("l2", "1/2")
    assert settings["suite"]["pgd"]["norm"] == "l2"
    assert settings["suite"]["fgsm"]["step_size"] == "1/2"
    assert train_settings("data=fashion_mnist")["attack"]["epsilon"] == 0.1
    assert train_settings("data=cifar10")["attack"]["epsilon"] == "8/255"


def test_a_choice_of_data_names_the_run():
    assert compose_checked("train", ["data=cifar10", "stabilizer=none"]).name == "cifar10_pgd_none"
    assert compose_checked("train", ["experiment=cifar10_sns"]).name == "cifar10_sns"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 8}, r"epsilon is 8; it must be .* at most 1; epsilon is in units of pixels"),
        ({"epsilon": "8/0"}, r"epsilon is '8/0'; it must be a number or a fraction such as 8/255"),
        ({"attack": {"norm": "l2", "epsilon": 40}, "data": {"channels": 3, "image_size": 8}}, r"at most 13\.8"),
        ({"attack": {"steps": True}}, r"attack\.steps is True; it must be a whole number at least 1"),
        ({"attack": {"step_size": 0}}, r"attack\.step_size is 0; it must be a number above 0"),
        ({"stabilizer": {"top": 0}}, r"stabilizer\.top is 0; it must be a whole number at least 1"),
        ({"stabilizer": {"top": "a"}}, r"stabilizer\.top is 'a'"),
        ({"stabilizer": {"weight": -1}}, r"stabilizer\.weight is -1; it must be a number at least 0"),
        ({"stabilizer": {"batch_norm": "frozn"}}, r"did you mean 'frozen'"),
        ({"data": {"root": "???"}}, r"data\.root is missing; give it on the command line"),
        ({"trainer": {"devices": 0}}, r"trainer\.devices is 0"),
        ({"trainer": {"devices": [0, -1]}}, r"trainer\.devices entry is -1"),
        ({"trainer": {"precision": "8"}}, r"trainer\.precision is '8'; it must be one of 32-true"),
        ({"trainer": {"inference_mode": True}}, r"it must be one of False"),
        ({"seed": 1.5}, r"seed is 1\.5; it must be a whole number"),
        ({"layers": [3]}, r"layers is \[3\]; it must be a layer's name"),
        ({"compile": "inductor"}, r"compile is 'inductor'; it must be one of True, False"),
        ({"compile": True, "sync_batch_norm": True}, r"compile and sync_batch_norm are both true"),
        ({"data": {"mean": 0.5}}, r"data\.mean is 0\.5; it must be a list"),
    ],
)
def test_what_no_setting_may_be(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        check_settings(settings)
    assert "\n" not in str(caught.value)
