"""Faster passes to search with: the same images fall, and the network as written decides which."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from reference import pattern_images, trained_net
from torch import Generator, nn

from nsr.app.parts import identity
from nsr.attacks import AdaptiveAttack, AutoAttack, GradientAttack
from nsr.attacks.folding import foldable_pairs
from nsr.errors import InputError
from nsr.evaluation.report import titles
from nsr.evaluation.search import Search
from nsr.evaluation.suite import AttackSuite
from nsr.features import FeatureExtractor
from nsr.report.facts import facts
from nsr.report.files import read_files
from tests.conftest import TINY, evaluated, made, read_json

WEAK = 0.16  # an epsilon under which some images fall, some in the first step and some later, and some hold
CORRECT = 53  # images that are classified correctly without attack


@pytest.fixture(scope="module")
def case():
    images, labels = pattern_images(60, classes=4)
    net = trained_net(images, labels)
    labels = labels.clone()
    labels[::9] = (labels[::9] + 1) % 4  # some that the network gets wrong
    return net, images, labels


def generators(count: int) -> list[Generator]:
    return [Generator().manual_seed(place) for place in range(count)]


def correct(net, images, labels) -> torch.Tensor:
    with torch.no_grad():
        return net(images).argmax(1) == labels


def measured(case, attack, search=None) -> torch.Tensor:
    """(image,) whether the image is robust to the attack, measured in two batches."""
    net, images, labels = case
    suite = AttackSuite({"attack": attack}, search=search)
    suite.start([], images.device)
    for number, part in enumerate(torch.arange(len(images)).split(40)):
        suite.measure(net, FeatureExtractor(net, []), (images[part], labels[part]), number=number, places=part)
    return suite.finish().outcomes["attack"].bool()


@pytest.mark.parametrize(
    "own",
    [{}, {"restarts": 3}, {"norm": "l2", "epsilon": 0.95}, {"loss": "kl"}, {"targeted": "least_likely"}],
    ids=str,
)
def test_stopping_early_fools_the_same_images_with_fewer_passes(case, own):
    net, images, labels = case
    settings = {"epsilon": WEAK, "steps": 8, **own}
    seen = {False: 0, True: 0}
    robust = {}
    for stop_early in seen:
        attack = GradientAttack(**settings, keep_best=True, stop_early=stop_early)

        def count(module, inputs, stop_early=stop_early):
            seen[stop_early] += len(inputs[0])

        handle = net.register_forward_pre_hook(count)
        adversarial = attack(net, images, labels, generator=generators(60))
        handle.remove()
        robust[stop_early] = correct(net, adversarial, labels)
    assert torch.equal(robust[True], robust[False]) and 5 < int(robust[True].sum()) < CORRECT
    assert seen[True] < 0.9 * seen[False]
    alone = torch.cat(
        [
            attack(net, images[[place]], labels[[place]], generator=[Generator().manual_seed(place)])
            for place in range(60)
        ]
    )
    assert torch.allclose(alone, adversarial, atol=1e-6)  # whatever images share its batch


def test_stopping_early_needs_eval_mode():
    with pytest.raises(InputError, match="batch_norm"):
        GradientAttack(epsilon=0.1, steps=2, stop_early=True, batch_norm="batch")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "attack",
    [
        GradientAttack(epsilon=WEAK, steps=8),
        AdaptiveAttack(epsilon=WEAK, steps=8),
        AutoAttack(epsilon=WEAK, version="custom", attacks=["apgd-ce"], steps=8),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_the_search_finds_what_the_attack_as_written_finds(case, attack, precision):
    net, images, _ = case
    search = Search(foldable_pairs(net, images[:2]), precision=precision)
    assert len(search.pairs) == 1
    as_written, found = measured(case, attack), measured(case, attack, search)
    assert int((as_written ^ found).sum()) <= (0 if precision == "float32" else 2)
    assert 5 < int(found.sum()) < CORRECT
    assert "forward" not in vars(net)


class Blind(Search):
    """A search in which every image looks misclassified."""

    @contextmanager
    def passes(self, net):
        forward = net.forward
        net.forward = lambda images: -forward(images)
        try:
            yield
        finally:
            del net.forward


def test_what_the_network_does_not_confirm_is_attacked_again_as_written(case):
    attack = GradientAttack(epsilon=WEAK, steps=8)
    assert torch.equal(measured(case, attack, Blind()), measured(case, attack))


def test_a_network_that_draws_is_attacked_as_written(case):
    net, images, labels = case

    class Drawing(nn.Module):
        def forward(self, images):
            return net(images + 0.05 * torch.rand_like(images))

    drawing = (Drawing().eval(), images, labels)
    attack = GradientAttack(epsilon=WEAK, steps=4)
    state = torch.get_rng_state()
    assert torch.equal(measured(drawing, attack, Search()), measured(drawing, attack))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_evaluation_searches_as_its_run_did_and_its_cache_knows(best):
    auto, off, bf16 = (
        made("evaluate", best, *words) for words in ([], ["performance=off"], ["evaluation.precision=bf16"])
    )
    assert len(auto.suite.search.pairs) == 3 and auto.suite.search.stop_early and off.suite.search is None
    assert "confirms each success" in auto.module.performance_note
    assert bf16.suite.search.precision == "bf16"
    assert "(search in bf16)" in titles(bf16.settings, bf16.suite)["pgd"]
    records = [identity(job) for job in (auto, off, bf16)]
    assert records[0] != records[1] and records[0] != records[2]
    assert made("train", *TINY, "performance=off").suite.search is None


@pytest.mark.slow
def test_a_search_in_bf16_is_labeled(best, tmp_path):
    run = evaluated(tmp_path / "run", best, "test_attacks=[clean,pgd]", "evaluation.precision=bf16")
    assert read_json(run / "evaluation.json")["search"] == "bf16, every success confirmed in float32"
    assert "bf16" in facts(read_files(run))["search"]
