"""The suite of an evaluation: each attack alone, image by image; chunks that survive; intervals; limits."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from reference import pattern_images, trained_net

from nsr.app.evaluate import evaluate
from nsr.attacks import AdaptiveAttack, AutoAttack, GradientAttack, Momentum, TransferAttack
from nsr.errors import InputError
from nsr.evaluation.cache import ResultCache
from nsr.evaluation.masking_checks import mcnemar
from nsr.evaluation.outcomes import wilson
from nsr.evaluation.suite import AttackSuite
from nsr.features import FeatureExtractor, capture_features
from tests.conftest import TINY, evaluated, job, made, rows

CHUNK = 40
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def case():
    images, labels = pattern_images(100, classes=4)
    net = trained_net(images, labels)
    labels = labels.clone()
    labels[::9] = (labels[::9] + 1) % 4  # some that the network gets wrong
    return net, images, labels


@pytest.fixture(scope="module")
def hardened(case):
    """The same images and labels, and a network trained on adversarial examples of them."""
    _, images, labels = case
    net = trained_net(images, labels)
    attack = GradientAttack(epsilon=0.1, steps=5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    torch.manual_seed(0)
    for _ in range(60):
        adversarial = attack(net, images, labels)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(adversarial), labels).backward()
        optimizer.step()
    return net.eval(), images, labels


def measured(suite: AttackSuite, case, *, only: range | None = None) -> dict[str, torch.Tensor]:
    net, images, labels = case
    extractor = FeatureExtractor(net, [])
    suite.start([], images.device)
    for number in only if only is not None else range(math.ceil(len(images) / CHUNK)):
        here = torch.arange(len(images))[number * CHUNK : (number + 1) * CHUNK]
        suite.measure(net, extractor, (images[here], labels[here]), number=number, places=here)
    suite.finish()
    return suite.result.outcomes


# ---------------------------------------------------------------- rows
def test_each_attack_is_measured_alone_on_what_is_right_without_one(case):
    net, images, labels = case
    seen = {"weak": [], "strong": []}

    def recording(name, attack):
        def call(net, images, labels, *, generator):
            assert (net(images).argmax(1) == labels).all()
            seen[name].append(len(images))
            return attack(net, images, labels, generator=generator)

        return call

    attacks = {
        "strong": recording("strong", GradientAttack(epsilon=0.3, steps=10)),
        "weak": recording("weak", GradientAttack(epsilon=0.02, steps=1)),
    }
    suite = AttackSuite(attacks)
    outcomes = measured(suite, case)
    right = net(images).argmax(1) == labels
    assert torch.equal(outcomes["clean"].bool(), right)
    assert 0 < int(right.sum()) < len(images)
    # the weak attack saw every image that is right, fallen under the strong one or not
    assert sum(seen["weak"]) == sum(seen["strong"]) == int(right.sum())
    assert outcomes["strong"].sum() < outcomes["weak"].sum()
    metrics = suite.result.metrics
    assert metrics["weak_accuracy"] == int(outcomes["weak"].sum()) / 100
    every = (outcomes["weak"] & outcomes["strong"] & outcomes["clean"]).sum()
    assert metrics["worst_case_accuracy"] == int(every) / 100
    assert list(metrics)[-3:] == ["worst_case_accuracy", "worst_case_low", "worst_case_high"]
    measured(clean := AttackSuite({}), case)
    assert not any(name.startswith("worst_case") for name in clean.result.metrics), "clean accuracy is no worst case"


def test_an_attack_cannot_make_a_wrong_image_right(case):
    def to_the_label(net, images, labels, *, generator):
        return GradientAttack(epsilon=1, steps=20, targeted=True)(net, images, labels)

    outcomes = measured(AttackSuite({"kind": to_the_label}), case)
    assert not (outcomes["kind"] > outcomes["clean"]).any()


@pytest.mark.parametrize(("right", "images"), [(0, 10), (10, 10), (3, 7), (381, 500), (5, 1000)])
def test_the_interval_is_wilsons(right, images):
    z, share = 1.959963984540054, right / images
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    low, high = wilson(right, images)
    assert low == pytest.approx(middle - half, abs=1e-12)
    assert high == pytest.approx(middle + half, abs=1e-12)
    assert 0 <= low <= share <= high <= 1 or right in (0, images)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 8) == pytest.approx(2 / 2**8)
    assert mcnemar(3, 3) == pytest.approx(1)
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(2 * (1 + 6) / 2**6)


# ---------------------------------------------------------------- chunks
def test_what_is_finished_is_not_measured_again(case, tmp_path):
    calls = []

    def attack(net, images, labels, *, generator):
        calls.append(len(images))
        return GradientAttack(epsilon=0.2, steps=3)(net, images, labels, generator=generator)

    def fresh() -> AttackSuite:
        suite = AttackSuite({"pgd": attack})
        suite.cache = ResultCache(tmp_path, {"network": "a"}, {"clean": None, "pgd": {"steps": 3}})
        return suite

    whole = measured(AttackSuite({"pgd": attack}), case)
    calls.clear()
    measured(fresh(), case, only=range(2))  # killed after two chunks
    assert len(calls) == 2
    again = measured(fresh(), case)
    assert len(calls) == 3
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("at", range(1, 7))
def test_killed_anywhere_it_ends_as_if_it_had_not_been(case, tmp_path, at, monkeypatch):
    """At each write, before and after the rename, the process is gone; the same command resumes."""
    attacks = {"pgd": GradientAttack(epsilon=0.2, steps=3), "fgsm": GradientAttack(epsilon=0.1, steps=1)}

    def fresh() -> AttackSuite:
        suite = AttackSuite(attacks)
        suite.cache = ResultCache(tmp_path, {"network": "a"}, {"clean": None, "pgd": {}, "fgsm": {}})
        return suite

    whole = measured(AttackSuite(attacks), case)
    rename, done = Path.replace, []

    def kill(self, target):
        done.append(target)
        if len(done) == at:
            if at % 2:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        measured(fresh(), case)
    monkeypatch.setattr(Path, "replace", rename)
    again = measured(fresh(), case)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_chunks_of_another_evaluation_are_refused(tmp_path):
    ResultCache(tmp_path, {"network": "a", "seed": 0}, {})
    with pytest.raises(InputError, match=r"another evaluation: seed differ \(seed was 0 and is 1\); set evaluation"):
        ResultCache(tmp_path, {"network": "a", "seed": 1}, {})
    ResultCache(tmp_path, {"network": "a", "seed": 0}, {})


def test_an_attack_with_other_settings_has_its_own_chunks(tmp_path):
    for steps, expected in ((3, None), (4, None), (3, "first")):
        chunks = ResultCache(tmp_path, {}, {"pgd": {"steps": steps}})
        assert chunks.read("pgd", "0") == expected
        if expected is None:
            chunks.write("pgd", "0", "first" if steps == 3 else "second")


# ---------------------------------------------------------------- libraries
def by_hand(net, images, labels, *, epsilon, seed):
    """AutoAttack as its own README runs it."""
    from pyautoattack import AutoAttack as Original

    attacks = ["apgd-ce", "apgd-t", "fab-t", "square"]
    attack = Original(net, norm="Linf", eps=epsilon, seed=seed, version="custom", attacks=attacks)
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 3
    attack.square.n_queries = 5000
    return attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]


@pytest.mark.slow
@pytest.mark.parametrize(("trained_on", "epsilon"), [("case", 0.1), ("hardened", 0.15)])
def test_autoattack_equals_a_script_without_nsr(trained_on, epsilon, request):
    net, images, labels = request.getfixturevalue(trained_on)
    images, labels = images[:60], labels[:60]  # a whole chunk and a part of one
    outcomes = measured(AttackSuite({"autoattack": AutoAttack(epsilon=epsilon, seed=3)}), (net, images, labels))
    net = copy.deepcopy(net)  # the script leaves gradients behind
    flags = []
    for start in range(0, 60, CHUNK):
        part, true = images[start : start + CHUNK], labels[start : start + CHUNK]
        adversarial = by_hand(net, part, true, epsilon=epsilon, seed=3)
        flags.append(((net(adversarial).argmax(1) == true) & (net(part).argmax(1) == true)).long())
    expected = torch.cat(flags)
    assert torch.equal(outcomes["autoattack"].long(), expected)
    assert 0 < int(expected.sum()) < int(outcomes["clean"].sum())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stronger_attacks_leave_less(hardened, norm):
    """From rows measured alone: clean >= FGSM >= PGD-20 >= PGD-100 >= AutoAttack, one image of forty aside."""
    epsilon = {"linf": 0.15, "l2": 0.9, "l1": 2.0}[norm]
    attacks = {
        "fgsm": GradientAttack(epsilon=epsilon, steps=1, step_size=epsilon, random_start=False, norm=norm),
        "pgd": GradientAttack(epsilon=epsilon, steps=20, norm=norm),
        "pgd100": GradientAttack(epsilon=epsilon, steps=100, restarts=5, norm=norm),
        "autoattack": AutoAttack(epsilon=epsilon, norm=norm),
    }
    net, images, labels = hardened
    outcomes = measured(AttackSuite(attacks), (net, images[:CHUNK], labels[:CHUNK]))
    right = [int(outcome.sum()) for outcome in outcomes.values()]
    assert all(weaker >= stronger - 1 for weaker, stronger in itertools.pairwise(right)), right
    assert right[0] >= right[-1] + 3
    assert right[-1] > 5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("part", ["apgd-ce", "apgd-dlr", "square"])
def test_library_attacks_stay_in_the_ball(case, norm, part):
    net, images, labels = case
    epsilon = {"linf": 0.1, "l2": 0.7, "l1": 4.0}[norm]
    attack = AutoAttack(epsilon=epsilon, norm=norm, version="custom", attacks=[part], queries=50)
    before = torch.random.get_rng_state()
    adversarial = attack(net, images[:20], labels[:20])
    assert torch.equal(torch.random.get_rng_state(), before)  # its seeding stays its own
    length = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    distance = torch.linalg.vector_norm((adversarial - images[:20]).flatten(1), ord=length, dim=1)
    assert (distance <= epsilon * (1 + 1e-4)).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_momentum_against_a_slow_loop(case):
    net, images, labels = case
    epsilon, steps, momentum = 0.1, 5, 0.9
    got = Momentum(epsilon=epsilon, steps=steps, momentum=momentum)(net, images[:10], labels[:10])
    adversarial, velocity = images[:10].clone(), torch.zeros_like(images[:10])
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = torch.nn.functional.cross_entropy(net(adversarial), labels[:10], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        size = gradient.abs().flatten(1).sum(1).view(-1, 1, 1, 1)
        velocity = momentum * velocity + gradient / size
        adversarial = (adversarial.detach() + epsilon / steps * velocity.sign()).clamp(0, 1)
        adversarial = torch.minimum(torch.maximum(adversarial, images[:10] - epsilon), images[:10] + epsilon)
    torch.testing.assert_close(got, adversarial, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cross_entropy", [True, False])
def test_the_adaptive_attack_against_a_slow_loop(case, cross_entropy):
    net, images, labels = case
    images, labels = images[:6].double(), labels[:6]
    net = copy.deepcopy(net).double()
    settings = {"weight": 2.0, "top": 0.5, "layers": ["2", "5"], "cross_entropy": cross_entropy}
    attack = AdaptiveAttack(epsilon=0.1, steps=3, step_size=0.04, **settings)
    got = attack(net, images, labels, generator=torch.Generator().manual_seed(5))
    draw = torch.rand(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    adversarial = (images + (2 * draw - 1) * 0.1).clamp(0, 1)
    for _ in range(3):
        adversarial = adversarial.detach().requires_grad_()
        with capture_features(net, ["2", "5"]) as features:
            net(images)
            clean = dict(features)
            logits = net(adversarial)
        loss = sum(-torch.log_softmax(row, 0)[label] for row, label in zip(logits, labels, strict=True))
        loss = loss if cross_entropy else 0 * loss
        for layer, moved in features.items():
            neurons = []  # (neuron, image)
            for m in range(moved.shape[1]):
                neurons.append([(clean[layer][i, m] - moved[i, m]).abs().mean() for i in range(len(images))])
            for i in range(len(images)):
                own = sorted((row[i] for row in neurons), key=lambda value: -float(value.detach()))
                chosen = own[: int(0.5 * len(own))]
                loss = loss + 2.0 * sum(chosen) / len(chosen) / 2
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = (adversarial.detach() + 0.04 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    torch.testing.assert_close(got, adversarial, rtol=0, atol=1e-9)
    assert not any(module._forward_hooks for module in net.modules())


def test_transfer_shows_the_surrogates_examples(case):
    net, images, labels = case
    torch.manual_seed(1)
    surrogates = [trained_net(images, labels, steps=steps) for steps in (10, 20)]
    attack = GradientAttack(epsilon=0.15, steps=5, random_start=False)
    right = net(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    got = TransferAttack(attack=attack, networks=surrogates)(net, images, labels)
    made = [attack(surrogate, images, labels) for surrogate in surrogates]
    fooled = [net(examples).argmax(1) != labels for examples in made]
    for i in range(len(images)):
        assert torch.equal(got[i], made[0][i] if fooled[0][i] else made[1][i])
    assert int((fooled[0] | fooled[1]).sum()) > 0
    with pytest.raises(InputError, match="needs at least one surrogate"):
        TransferAttack(attack=attack, networks=[])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "fast"}, "version is 'fast'; it must be one of standard, plus, rand, custom"),
        ({"version": "custom"}, "version 'custom' needs attacks, the others take none"),
        ({"attacks": ["apgd-ce"]}, "version 'custom' needs attacks, the others take none"),
        ({"version": "custom", "attacks": ["apgd"]}, r"attacks entry is 'apgd'.*did you mean 'apgd-[a-z]+'"),
        ({"queries": 0}, "queries is 0"),
        ({"restarts": 1.5}, "restarts is 1.5"),
        ({"norm": "l3"}, "norm is 'l3'; it must be one of linf, l2, l1"),
        ({"epsilon": -1}, "epsilon is -1"),
    ],
)
def test_wrong_settings_of_autoattack(settings, message):
    with pytest.raises(InputError, match=message):
        AutoAttack(**{"epsilon": 0.1, **settings})


# ---------------------------------------------------------------- the command
def test_the_command_resumes_where_it_was_killed(best, tmp_path, monkeypatch):
    """Batches of 40 images, killed in the second: the same command, in another directory, ends as one that was not."""
    command = [best, "test_attacks=[clean,fgsm,pgd]", "test_attacks.pgd.steps=2"]
    command += ["evaluation.n_examples=100", "data.evaluation_batch_size=40"]
    evaluated(tmp_path / "whole" / "first", *command)
    measure, begun = AttackSuite.measure, []

    def killed(self, *arguments, **settings):
        begun.append(settings["number"])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return measure(self, *arguments, **settings)

    monkeypatch.setattr(AttackSuite, "measure", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        evaluated(tmp_path / "parts" / "first", *command)
    monkeypatch.setattr(AttackSuite, "measure", measure)
    assert len(list((tmp_path / "parts" / "cache").glob("*/pgd-*/*.json"))) == 1
    evaluated(tmp_path / "parts" / "second", *command)
    for name in ("evaluation.json", "evaluation.csv", "images.csv", "sensitivity.csv"):
        assert (tmp_path / "parts" / "second" / name).read_bytes() == (tmp_path / "whole" / "first" / name).read_bytes()
    images = rows(tmp_path / "whole" / "first" / "images.csv")
    metrics = json.loads((tmp_path / "whole" / "first" / "evaluation.json").read_text())
    assert len(images) == 100
    for attack in ("clean", "fgsm", "pgd"):
        assert sum(int(row[attack]) for row in images) / 100 == metrics[f"test/{attack}_accuracy"]


def test_a_limit_is_balanced_and_fixed(trained, tmp_path, capsys):
    def build_data():
        return made("train", *TINY).data

    data = build_data()
    data.setup("test")
    labels = data.test_set.labels
    first = data.limit_test(100, "balanced")
    counts = torch.bincount(data.test_set.labels, minlength=10)
    assert (counts - 100 * torch.bincount(labels, minlength=10) / len(labels)).abs().max() < 1
    other = build_data()
    other.setup("test")
    assert other.limit_test(100, "balanced") == first
    assert torch.equal(other.test_set.images, data.test_set.images)
    third = build_data()
    third.setup("test")
    assert third.limit_test(30, "first") != first
    assert torch.equal(third.test_set.labels, labels[:30])
    fourth = build_data()
    fourth.setup("test")
    with pytest.raises(InputError, match="the first 5 test images contain none of class"):
        fourth.limit_test(5, "first")


def test_transfer_from_a_checkpoint(best, tmp_path, capsys):
    command = [best, "test_attacks=[clean,transfer]", "evaluation.n_examples=50"]
    command += [f"test_attacks.transfer.checkpoints=[{best.removeprefix('checkpoint=')}]"]
    evaluated(tmp_path / "run", *command, "test_attacks.transfer.attack.steps=2")
    assert "PGD-2" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(best, tmp_path):
    """What is alive at the end of each chunk: the same at the second and at the tenth."""
    alive: list[int] = []

    def count(row: str, seconds: float | None) -> None:
        if row == "pgd":
            gc.collect()
            tensors = [entry for entry in gc.get_objects() if type(entry) is torch.Tensor]
            dense = [entry for entry in tensors if entry.layout == torch.strided]
            alive.append(sum({entry.untyped_storage().data_ptr(): entry.nbytes for entry in dense}.values()))

    command = [best, "test_attacks=[clean,fgsm,pgd]", "test_attacks.pgd.steps=2"]
    config = job("evaluate", tmp_path / "run", *command, "data.evaluation_batch_size=50", "checks.enabled=false")
    measure = AttackSuite.measure

    def watched(self, *arguments, **settings):
        self.finished = count
        measure(self, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttackSuite, "measure", watched)
        evaluate(config)
    assert len(alive) == 10
    images = 500 * 64 * 4
    assert alive[1] > images / 2  # the data set is there: the count sees something
    # bytes: 60 for the results of an image; its pixels are 256
    assert max(alive[1:]) - min(alive[1:]) < 60 * 50 * (len(alive) - 1)


@pytest.mark.slow
def test_kill_minus_nine(best, tmp_path):
    """A real process, killed without warning in its third and sixth chunk, ends as one that was not."""
    settings = [best, "test_attacks=[clean,fgsm,pgd]", "data.evaluation_batch_size=50", "epsilon=0.1"]
    settings += ["test_attacks.pgd.steps=300", "checks.enabled=false", "trainer.accelerator=cpu", "pictures=false"]

    def command(name: str) -> list[str]:
        return [sys.executable, str(ROOT / "evaluate.py"), *settings, f"hydra.run.dir={tmp_path / name}"]

    subprocess.run(command("whole/run"), check=True, capture_output=True, cwd=tmp_path)
    for number, finished in enumerate((2, 5)):
        process = subprocess.Popen(command(f"parts/{number}"), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        while len(list((tmp_path / "parts" / "cache").glob("*/pgd-*/*.json"))) < finished:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = list((tmp_path / "parts" / "cache").glob("*/pgd-*/*.json"))
    assert 5 <= len(done) < 10
    subprocess.run(command("parts/last"), check=True, capture_output=True, cwd=tmp_path)
    for name in ("evaluation.json", "images.csv", "sensitivity.csv"):
        assert (tmp_path / "parts" / "last" / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes()
