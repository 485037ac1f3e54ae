"""A cached result is reused for the same network, images, labels, settings and file contents, and for nothing else."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nsr.attacks import GradientAttack
from nsr.errors import InputError
from nsr.evaluation.cache import ResultCache, by_content, fitting_cache, network_response
from nsr.evaluation.suite import AttackSuite
from nsr.features import FeatureExtractor
from nsr.layers import find_layers
from nsr.run.own import own_key

SETTINGS = {"clean": None, "pgd": {"steps": 2}, "sensitivity": None}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Counting:
    """PGD-2 that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, net, images, labels, *, generator):
        self.calls += 1
        return GradientAttack(epsilon=0.1, steps=2)(net, images, labels, generator=generator)


def measured(net, images, labels, cache: ResultCache | None) -> tuple[AttackSuite, int]:
    """The suite after two batches, and how many calls its attacks took."""
    attack = Counting()
    suite = AttackSuite({"pgd": attack}, sensitivity_attack=attack)
    layers = find_layers(net, images[:2])
    suite.start(layers, images.device)
    suite.cache = cache
    for number, part in enumerate(torch.arange(len(images)).split(6)):
        suite.measure(net, FeatureExtractor(net, layers), (images[part], labels[part]), number=number)
    suite.finish()
    return suite, attack.calls


def predicted(net, images) -> torch.Tensor:
    with torch.no_grad():
        return net(images).argmax(1)


def same(one: AttackSuite, other: AttackSuite) -> bool:
    first, second = one.result, other.result
    pairs = zip(first.sensitivities.values(), second.sensitivities.values(), strict=True)
    equal = [torch.equal(first.outcomes[row], second.outcomes[row]) for row in first.outcomes]
    return all(equal) and all(torch.equal(a.absolute, b.absolute) for a, b in pairs)


class Shifted(nn.Module):
    """A network with another `forward` and the same state_dict: logits and gradient, or the gradient alone, differ."""

    def __init__(self, net: nn.Module, *, gradient_alone: bool):
        super().__init__()
        self.net, self.gradient_alone = net, gradient_alone

    def forward(self, images):
        logits = self.net(images)
        shifted = logits + 1e-3 * images.flatten(1).sum(1, keepdim=True)
        return logits + (shifted - shifted.detach()) if self.gradient_alone else shifted


@pytest.mark.parametrize("gradient_alone", [False, True])
def test_equal_weights_of_another_forward_are_another_network(net, images, tmp_path, gradient_alone):
    own = network_response(net, images[:8])
    other = network_response(Shifted(net, gradient_alone=gradient_alone), images[:8])
    assert torch.equal(own.logits, net(images[:8])) and torch.equal(own.logits, other.logits) == gradient_alone
    ResultCache(tmp_path / "a", {"seed": 0}, {}, own)
    with pytest.raises(InputError, match=r"another network with the same weights: (logits|gradient) on the first 8"):
        ResultCache(tmp_path / "a", {"seed": 0}, {}, other)
    rounded = own._replace(logits=own.logits * (1 + 1e-6))
    folders = [
        fitting_cache(tmp_path / "a", {"seed": 0}, {}, each).folder.name for each in (own, other, rounded, other)
    ]
    assert folders == ["a", "a-2", "a", "a-2"]


def test_the_response_leaves_no_trace_and_repeats_for_a_network_that_draws(net, images):
    class Drawing(nn.Module):
        def forward(self, images):
            return net(images + 0.1 * torch.rand_like(images) + random.random() + np.random.rand())

    drawing, state = Drawing().train(), torch.get_rng_state()
    first, second = network_response(drawing, images), network_response(drawing, images)
    assert torch.equal(first.logits, second.logits) and torch.equal(first.gradient, second.gradient)
    assert drawing.training and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_without_a_gradient_the_logits_are_compared(net, images):
    class Detached(nn.Module):
        def forward(self, images):
            return net(images).detach()

    assert not network_response(Detached(), images).gradient.any()


@pytest.mark.parametrize("changed", ["pixels", "labels", "nothing"])
def test_other_images_under_the_same_settings_are_measured(net, images, tmp_path, changed):
    labels = predicted(net, images)
    measured(net, images, labels, ResultCache(tmp_path, {}, SETTINGS))
    if changed == "pixels":
        images = images.flip(0)
    if changed == "labels":
        labels = (labels + 1) % 3
    again, calls = measured(net, images, labels, ResultCache(tmp_path, {}, SETTINGS))
    assert (calls == 0) == (changed == "nothing")
    assert same(again, measured(net, images, labels, None)[0])


def shorten(path: Path) -> None:
    """One flag or sum in place of all, as a file of another batch has it: broadcasting would hide it."""
    content = json.loads(path.read_text())
    own = content.get("content", content)
    own.update({name: values[:1] for name, values in own.items() if isinstance(values, (str, list))})
    path.write_text(json.dumps(content))


DAMAGE = {
    "cut": lambda path: path.write_text(path.read_text()[:20]),
    "empty": lambda path: path.write_text(""),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another value": lambda path: path.write_text("[]"),
    "short": shorten,
    "flipped": lambda path: path.write_text(path.read_text().replace("1", "0")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_measured_again(net, images, tmp_path, damage):
    labels = predicted(net, images)
    whole, _ = measured(net, images, labels, ResultCache(tmp_path, {}, SETTINGS))
    files = list(tmp_path.glob("*/*.json"))
    assert len(files) == 6  # three rows of two batches
    for path in files:
        DAMAGE[damage](path)
    again, calls = measured(net, images, labels, ResultCache(tmp_path, {}, SETTINGS))
    assert calls and same(again, whole)
    assert measured(net, images, labels, ResultCache(tmp_path, {}, SETTINGS))[1] == 0  # and written anew


def test_a_damaged_record_hides_the_results_of_another_network(net, images, tmp_path):
    labels, other = predicted(net, images), Shifted(net, gradient_alone=False)
    for network, calls in ((net, 4), (other, 4), (net, 0)):  # the last finds its own
        cache = ResultCache(tmp_path, {}, SETTINGS, network_response(network, images[:8]))
        assert measured(network, images, labels, cache)[1] == calls
        (tmp_path / "evaluation.json").write_text("{")


def test_results_cached_under_another_key_are_measured_again(net, images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    key, labels = own_key(), predicted(net, images)
    assert len(key) == 64 and own_key() == key
    assert (tmp_path / "state" / "nsr" / "key").stat().st_mode & 0o077 == 0
    response = network_response(net, images[:8])

    def calls(key: str) -> int:
        return measured(net, images, labels, fitting_cache(tmp_path / "c", {"w": 1}, SETTINGS, response, key=key))[1]

    first = calls("theirs")
    assert first > 0 and calls("theirs") == 0
    assert calls(key) == first and calls(key) == 0
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")  # where nothing can be made
    assert own_key() == ""


def test_settings_are_compared_by_the_content_of_the_files_that_they_name(tmp_path):
    def of(text: str, path: Path, **further) -> object:
        path.write_text(text)
        return by_content({"checkpoints": [path.name], "norm": "linf", **further}, tmp_path)

    first = of("a", tmp_path / "one.ckpt")
    assert first == of("a", tmp_path / "two.ckpt") != of("b", tmp_path / "one.ckpt")
    assert first["norm"] == "linf" and "one.ckpt" not in str(first)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "c").write_text("c")
    folders = [by_content({"root": "folder", "norm": ""}, tmp_path)]
    for name, text in (("inner/c", "d"), ("inner/e", "d"), ("b", "")):
        (tmp_path / "folder" / name).write_text(text)
        folders.append(by_content({"root": str(tmp_path / "folder"), "norm": ""}, tmp_path))
    assert all(one != other for one, other in itertools.combinations(folders, 2)) and folders[0]["norm"] == ""
    target = {"_target_": "nsr.attacks.GradientAttack", "steps": 3}
    assert by_content(target, tmp_path).items() > target.items() and by_content(target, tmp_path)["source"]


def test_an_edited_attack_is_another_attack(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for body in ("images", "images + 0.1"):
        (tmp_path / "edited_attack.py").write_text(f"def attack(net, images, labels): return {body}")
        __import__("edited_attack")
        found.append(by_content({"a": {"_target_": "edited_attack.attack"}}, tmp_path))
    assert found[0] != found[1]


def test_sensitivity_of_a_network_that_draws_is_the_same_in_a_resumed_evaluation(net, images, tmp_path):
    class Drawing(nn.Sequential):
        def forward(self, images):
            return super().forward(images + 0.1 * torch.rand_like(images) + 0.01 * random.random())

    drawing = Drawing(*net).eval()
    labels, attack = predicted(net, images), GradientAttack(epsilon=0.1, steps=1)
    layers, sensitivities = find_layers(drawing, images[:2]), []
    for before in ((), ("clean",), ("clean", "noise")):  # what ran before in the process differs
        suite = AttackSuite({}, sensitivity_attack=attack)
        suite.start(layers, images.device)
        for draw in before:
            torch.rand(len(draw)), random.random()
        suite.measure(drawing, FeatureExtractor(drawing, layers), (images, labels), number=0)
        suite.finish()
        sensitivities.append(next(iter(suite.result.sensitivities.values())).absolute)
    assert torch.equal(sensitivities[0], sensitivities[1]) and torch.equal(sensitivities[0], sensitivities[2])
