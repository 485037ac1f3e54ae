"""The package as a library: its names, their documentation, and how little `import nsr` loads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from reference import residual_net, some_images
from torch import nn

import nsr
import nsr.objectives
import nsr.stabilizer
from nsr.attacks import GradientAttack
from nsr.errors import InputError

ROOT = Path(__file__).parents[1]
NAMES = [
    *("FeatureExtractor", "NeuronSensitivity", "RobustClassifier", "SensitivityLogger", "SensitivityStabilizer"),
    *("batch_norm_mode", "capture_features", "fgsm", "find_layers", "intervene", "most_sensitive"),
    *("neuron_sensitivity", "pgd"),
]
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages([str(ROOT / "nsr")], "nsr.")
    if not name.startswith("nsr.app.") and not name.endswith("__main__")
)


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_can_be_imported_and_is_documented(name):
    namespace: dict[str, object] = {}
    exec(f"from nsr import {name}", namespace)
    thing = namespace[name]
    assert thing.__name__ == name
    assert thing.__module__.startswith("nsr.")
    assert inspect.getdoc(thing)


def test_these_are_all_public_names():
    assert sorted(nsr.__all__) == sorted([*NAMES, "__version__", "plots"])
    assert dir(nsr) == sorted(nsr.__all__)
    namespace: dict[str, object] = {}
    exec("from nsr import *", namespace)
    assert set(NAMES) <= set(namespace)


def test_the_version_is_the_projects():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert nsr.__version__ == declared[1]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'nsr' has no attribute 'pdg'"):
        _ = nsr.pdg
    with pytest.raises(ImportError):
        exec("from nsr import pdg")


def public(module):
    """The functions and classes that a module defines, and the classes' methods."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):  # which documents all its methods
            for inner, method in vars(thing).items():
                overrides = any(hasattr(base, inner) for base in thing.__mro__[1:])  # its base documents it
                if inspect.isfunction(method) and not inner.startswith("_") and not overrides:
                    yield f"{module.__name__}.{name}.{inner}", method


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    module = importlib.import_module(module)
    assert module.__doc__
    found = dict(public(module))
    assert [name for name, thing in found.items() if not thing.__doc__] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fgsm"])
def test_each_setting_is_in_its_docstring(name):
    for parameter in inspect.signature(getattr(nsr, name)).parameters:
        assert re.search(rf"\b{parameter}\b", getattr(nsr, name).__doc__), parameter


CORE = ("sensitivity", "features", "modes", "attacks", "stabilizer", "objectives", "interventions")
HEAVY = {"pytorch_lightning", "torchmetrics", "torchvision", "hydra", "wandb", "matplotlib", "pandas", "captum"}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import nsr.errors, nsr.app.configuration", {"torch", "numpy", *HEAVY}),
        ("from nsr.app.composition import compose_checked; compose_checked('train', [])", {"torch", "wandb"}),
        # all of the library but its metrics
        pytest.param(f"import {', '.join(f'nsr.{name}' for name in CORE)}", HEAVY, marks=pytest.mark.slow),
        pytest.param("import nsr.comparison.plots, nsr.comparison.writing", {"torch"}, marks=pytest.mark.slow),
        pytest.param("import nsr.app.train", {"wandb", "tensorboard"}, marks=pytest.mark.slow),
    ],
)
def test_nothing_loads_more_than_it_needs(code, unwanted):
    """The command line checks a configuration before it loads torch."""
    loaded = {name.partition(".")[0] for name in in_a_fresh_process(f"{code}; import sys; print(*sys.modules)").split()}
    assert "nsr" in loaded
    assert not loaded & unwanted


def test_a_training_loop():
    """The stabilizer's clean pass leaves BatchNorm alone: one ordinary pass a step."""
    net, images, labels = residual_net().train(), some_images(), torch.tensor([0, 1, 2, 0, 1, 2])
    extractor = nsr.FeatureExtractor(net, nsr.find_layers(net, images))
    stabilizer, optimizer = nsr.SensitivityStabilizer(top=1), torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in net.parameters()]
    adversarial = nsr.pgd(net, images, labels, epsilon="8/255", steps=3)
    logits, attacked = extractor(adversarial)
    with nsr.batch_norm_mode(net, "batch"):
        _, clean = extractor(images)
    term = stabilizer(clean, attacked)
    largest = [(clean[name] - attacked[name]).abs().transpose(0, 1).flatten(1).mean(1).max() for name in clean]
    torch.testing.assert_close(term, sum(largest) / 3)
    optimizer.zero_grad()
    (nn.functional.cross_entropy(logits, labels) + term).backward()
    optimizer.step()
    assert not any(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    assert net.bn1.num_batches_tracked == 1


def arguments():
    """(class, argument) of the attacks, objectives and the stabilizer, but for parts."""
    found = [each for module in (nsr.attacks, nsr.objectives, nsr.stabilizer) for each in vars(module).values()]
    for kind in dict.fromkeys(each for each in found if inspect.isclass(each) and each.__module__.startswith("nsr.")):
        if not issubclass(kind, (Exception, nsr.attacks.LibraryAttack)):
            parts = {"attack", "networks", "neuron_dim"}
            names = inspect.signature(kind).parameters.items()
            yield from ((kind, name) for name, each in names if name not in parts and each.kind is each.KEYWORD_ONLY)


@pytest.mark.parametrize(("kind", "name"), [*arguments()])
def test_a_wrong_setting_is_named(kind, name):
    needed = {"epsilon": 0.1, "steps": 2} if kind.__module__.startswith("nsr.attacks") else {}
    taken = inspect.signature(kind).parameters
    needed = {key: value for key, value in needed.items() if key in taken or issubclass(kind, GradientAttack)}
    counts = {"draws", "eot_samples", "queries", "replays", "restarts", "targets"}
    others = {"layers": [[], [["relu1"]], [None]], "step_size": [0]}.get(name, [0] if name in counts else [])
    for wrong in (object(), -1, *others):
        with pytest.raises(InputError, match=rf"\b{name} is "):
            kind(**{**needed, name: wrong})


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ("stabilizer/sns", nsr.stabilizer.SensitivityStabilizer),
        ("objective/natural", nsr.objectives.Natural),
        ("objective/pgd", nsr.objectives.AdversarialTraining),
        ("objective/alp", nsr.objectives.LogitPairing),
        ("objective/trades", nsr.objectives.Trades),
        ("objective/mart", nsr.objectives.Mart),
        ("objective/free", nsr.objectives.Free),
    ],
)
def test_defaults_are_those_of_the_configuration(choice, kind):
    settings = yaml.safe_load((ROOT / "conf" / f"{choice}.yaml").read_text())
    made = kind()
    assert settings["_target_"].rpartition(".")[2] == kind.__name__
    stated = {name: value for name, value in settings.items() if hasattr(made, name) and not isinstance(value, str)}
    assert stated and stated == {name: getattr(made, name) for name in stated}
