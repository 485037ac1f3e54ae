"""Each check is triggered by a network with masked gradients known from the literature, and not by an honest one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference import pattern_images, trained_net
from torch import nn
from torch.nn import functional

from nsr.app.rules import MASKING_CHECKS
from nsr.attacks import AutoAttack, GradientAttack, UniformDraws
from nsr.errors import RunStopped
from nsr.evaluation.masking_checks import PROBES, RULES, evaluate_checks
from nsr.evaluation.report import show_checks
from nsr.evaluation.suite import AttackSuite
from nsr.features import FeatureExtractor
from nsr.run.checks import Check
from tests.conftest import evaluated, read_json

CLASSES = 4
EPSILON = 0.3


class Deceiving(nn.Module):
    """A network behind something that hides it from gradients."""

    def __init__(self, net: nn.Module, kind: str):
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.kind == "quantized input":  # Guo et al. 2018: a staircase has no gradient
            images = torch.round(images * 16) / 16
        if self.kind == "random resizing":  # Xie et al. 2018
            side = images.shape[-1]
            size = int(torch.randint(side - 2, side + 1, ()))
            left, top = (int(torch.randint(side - size + 1, ())) for _ in range(2))
            images = functional.interpolate(images, size=(size, size))
            images = functional.pad(images, (left, side - size - left, top, side - size - top))
        logits = self.net(images)
        return logits * 1e5 if self.kind == "logit scale" else logits  # Carlini and Wagner 2016: saturated softmax


@pytest.fixture(scope="module")
def case():
    images, labels = pattern_images(100, classes=CLASSES)
    return trained_net(images, labels), images, labels


def checked(net: nn.Module, images, labels, **further) -> dict[str, Check]:
    attacks = {
        "fgsm": GradientAttack(epsilon=EPSILON, steps=1, step_size=EPSILON, random_start=False),
        "pgd": GradientAttack(epsilon=EPSILON, steps=20),
        "pgd100": GradientAttack(epsilon=EPSILON, steps=50, restarts=2),
        "uniform": UniformDraws(epsilon=EPSILON, draws=50),
        **further,
    }
    suite = AttackSuite(attacks, probes=PROBES)
    suite.start([], images.device)
    suite.measure(net.eval(), FeatureExtractor(net, []), (images, labels), number=0)
    suite.finish()
    outcomes = {**suite.result.outcomes, **suite.result.probed}
    found = evaluate_checks(outcomes, classes=CLASSES, attacks={"L-infinity": {name: name for name in attacks}})
    assert [check.name for check in found] == list(RULES)
    return {check.name: check for check in found}


def test_an_honest_network_raises_none(case):
    found = checked(*case)
    assert [name for name, check in found.items() if check.triggered] == []
    not_evaluated = {name for name, check in found.items() if check.triggered is None}
    assert not_evaluated == {"square_stronger_than_pgd", "adaptive_stronger_than_autoattack"}
    assert found["square_stronger_than_pgd"].evidence == "not measured: square"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("logit scale", {"zero_gradients", "unbounded_attack_fails"}),
        ("quantized input", {"zero_gradients", "unbounded_attack_fails"}),
        ("random resizing", {"nondeterministic"}),
    ],
)
def test_a_deceiving_network_is_noticed(case, kind, expected):
    net, images, labels = case
    found = checked(Deceiving(net, kind), images, labels)
    triggered = {name for name, check in found.items() if check.triggered}
    assert expected <= triggered
    for name in expected:
        assert "triggered" in found[name].evidence
        assert found[name].meaning


class KWinners(nn.Module):
    """Only a few units of a layer pass, which ones changes from step to step (Xiao, Zhong and Zheng 2020)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        flat = features.flatten(1)
        lowest = flat.topk(max(1, flat.shape[1] // 20), dim=1).values[:, -1:]
        return (flat * (flat >= lowest)).view_as(features)


def test_shattered_gradients_are_noticed(case):
    """Gradient attacks find hardly an adversarial example, 300 queries fool nearly all images."""
    _, images, labels = case
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), KWinners(), nn.Flatten()),
        *(nn.Linear(16 * 64, 64), KWinners(), nn.Linear(64, CLASSES)),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    square = AutoAttack(epsilon=EPSILON, version="custom", attacks=["square"], queries=300)
    found = checked(net, images, labels, square=square)
    triggered = {name for name, check in found.items() if check.triggered}
    assert {"square_stronger_than_pgd", "random_stronger_than_pgd"} <= triggered


def test_a_network_that_draws_is_measured_the_same_again(case):
    """And the same when a row is measured alone: what it draws depends on the chunk."""
    net, images, labels = case
    drawing = Deceiving(net, "random resizing")

    def outcomes(*names: str) -> dict[str, torch.Tensor]:
        attacks = {name: GradientAttack(epsilon=EPSILON, steps=int(name[3:])) for name in names}
        suite = AttackSuite(attacks)
        suite.start([], images.device)
        suite.measure(drawing.eval(), FeatureExtractor(drawing, []), (images, labels), number=0)
        suite.finish()
        return suite.result.outcomes

    first, second, alone = outcomes("pgd2", "pgd5"), outcomes("pgd2", "pgd5"), outcomes("pgd5")
    torch.manual_seed(99)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(alone["pgd5"], first["pgd5"])


def flags(*counts: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([value for value, count in counts for _ in range(count)], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("rows", "name", "triggered"),
    [
        ({"apgd_ce": flags((1, 62), (0, 38)), "pgd": flags((1, 70), (0, 30))}, "convergence", True),
        # seven images are no evidence, however few there are: 2 / 2**7
        ({"apgd_ce": flags((1, 63), (0, 37)), "pgd": flags((1, 70), (0, 30))}, "convergence", False),
        # a point at most, whatever the number of images
        ({"apgd_ce": flags((1, 4950), (0, 50)), "pgd": flags((1, 5000))}, "convergence", False),
        ({"apgd_ce": flags((1, 4949), (0, 51)), "pgd": flags((1, 5000))}, "convergence", True),
        # neither alone is below PGD, both together are
        ({"mine": flags((0, 30), (1, 70)), "pgd": flags((1, 70), (0, 30))}, "convergence", True),
        ({"fgsm": flags((1, 50), (0, 50)), "pgd": flags((1, 70), (0, 30))}, "fgsm_stronger_than_pgd", True),
        ({"fgsm": flags((1, 70), (0, 30)), "pgd": flags((1, 50), (0, 50))}, "fgsm_stronger_than_pgd", False),
        ({"square": flags((1, 50), (0, 5), (1, 45)), "pgd": flags((1, 100))}, "square_stronger_than_pgd", True),
        ({"square": flags((1, 50), (0, 4), (1, 46)), "pgd": flags((1, 100))}, "square_stronger_than_pgd", False),
        ({"square": flags((0, 50), (1, 50)), "pgd": flags((0, 50), (1, 50))}, "square_stronger_than_pgd", False),
        ({"uniform": flags((0, 3), (1, 97)), "pgd": flags((1, 100))}, "random_stronger_than_pgd", True),
        ({"epsilon_one": flags((1, 31), (0, 69))}, "unbounded_attack_fails", True),
        ({"epsilon_one": flags((1, 29), (0, 71))}, "unbounded_attack_fails", False),
        (
            {"adaptive": flags((1, 60), (0, 40)), "autoattack": flags((1, 70), (0, 30))},
            "adaptive_stronger_than_autoattack",
            True,
        ),
        (
            {"adaptive": flags((1, 70), (0, 30)), "autoattack": flags((1, 60), (0, 40))},
            "adaptive_stronger_than_autoattack",
            False,
        ),
        ({"clean": flags((1, 50), (0, 50)), "zero_gradient": flags((1, 2), (0, 98))}, "zero_gradients", False),
        ({"clean": flags((1, 50), (0, 50)), "zero_gradient": flags((1, 3), (0, 97))}, "zero_gradients", True),
        # zero gradients of wrong images hide nothing
        ({"clean": flags((1, 50), (0, 50)), "zero_gradient": flags((0, 50), (1, 50))}, "zero_gradients", False),
    ],
)
def test_thresholds(rows, name, triggered):
    assert of_rows(rows, 4)[name].triggered is triggered


def of_rows(rows, classes: int, **models) -> dict[str, Check]:
    """The checks of these rows, in one threat model unless the models are given."""
    attacks = models or {"L2": {name: name for name in rows if name not in ("clean", *PROBES)}}
    return {check.name: check for check in evaluate_checks(rows, classes=classes, attacks=attacks)}


def test_each_threat_model_is_checked_by_itself():
    rows = {
        "pgd_linf": flags((1, 70), (0, 30)),
        "fgsm_linf": flags((1, 70), (0, 30)),
        "pgd_l2": flags((1, 70), (0, 30)),
        "fgsm_l2": flags((1, 50), (0, 50)),
    }
    models = {norm: {name: f"{name}_{norm}" for name in ("pgd", "fgsm")} for norm in ("linf", "l2")}
    found = of_rows(rows, 10, **models)["fgsm_stronger_than_pgd"]
    assert found.triggered is True
    assert found.evidence.startswith("l2: fgsm 50.00 %, pgd 70.00 %")
    # attacks of other threat models say nothing about the convergence of this one's
    assert of_rows(rows, 10, linf=models["linf"])["convergence"].triggered is False
    assert of_rows(rows, 10, l2=models["l2"])["convergence"].triggered is True
    assert of_rows(rows, 10, l2={"pgd": "pgd_l2"})["convergence"].triggered is None


def test_they_are_shown_with_evidence_and_meaning(capsys):
    rows = {"fgsm": flags((1, 50), (0, 50)), "pgd": flags((1, 70), (0, 30))}
    show_checks(list(of_rows(rows, 10).values()))
    text = " ".join(capsys.readouterr().out.split())
    assert "one step is stronger" in text
    assert "fgsm 50.00 %, pgd 70.00 %" in text
    assert "PGD overstates robustness" in text
    assert "all of pgd, fgsm 50.00 %, pgd 70.00 %" in text
    assert "the strongest other one is fgsm, 50.00 %" in text
    assert "2 triggered, 0 passed, 6 not evaluated" in text


def test_the_page_has_every_check():
    page = (Path(__file__).parent.parent / "docs" / "checks.md").read_text()
    assert all(f"| `{name}` | {rule.title} |" in page for name, rule in RULES.items())
    assert tuple(RULES) == MASKING_CHECKS


def test_the_command_writes_them(best, tmp_path):
    command = [best, "test_attacks=[clean,fgsm,pgd]", "evaluation.n_examples=50"]
    evaluated(tmp_path / "with" / "run", *command, "test_attacks.pgd.steps=2")
    written = json.loads((tmp_path / "with" / "run" / "checks.json").read_text())
    assert [check["name"] for check in written] == list(RULES)
    evaluated(tmp_path / "without" / "run", *command, "test_attacks.pgd.steps=2", "checks.enabled=false")
    assert not (tmp_path / "without" / "run" / "checks.json").exists()
    assert not list((tmp_path / "without" / "cache").glob("*/epsilon_one*"))


def test_the_command_ends_where_a_named_one_is_raised(best, tmp_path, capsys):
    """After everything is written and shown, in one line; one that is passed, or not named, ends nothing."""
    # PGD too small to do anything: one honest step is stronger
    command = [best, "test_attacks=[clean,fgsm,pgd]", "evaluation.n_examples=200"]
    command += ["test_attacks.pgd.steps=1", "test_attacks.pgd.step_size=0.0001", "test_attacks.pgd.random_start=false"]
    run = tmp_path / "run"
    with pytest.raises(
        RunStopped, match=r"^checks\.stop_on: one step is stronger than many \(check fgsm_stronger_than_pgd\)"
    ) as caught:
        evaluated(run, *command, "checks.stop_on=[nondeterministic,fgsm_stronger_than_pgd]")
    (check,) = [each for each in read_json(run / "checks.json") if each["name"] == "fgsm_stronger_than_pgd"]
    assert check["triggered"] is True
    assert check["title"] == "one step is stronger than many"
    assert check["evidence"] in str(caught.value)
    assert {"evaluation.json", "images.csv", "config.yaml"} <= {path.name for path in run.iterdir()}
    assert "written to" in (shown := capsys.readouterr().out)
    assert "checks: the measured robustness may not be real" in shown
    evaluated(tmp_path / "silent", *command, "checks.stop_on=[nondeterministic]")
    evaluated(tmp_path / "unnamed", *command)
