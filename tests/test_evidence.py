"""The experiment engine: rows, resumption, choice."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_1samp
from torch import nn

from benchmarks import make_cifar10_jpeg
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import cell, choice, rows
from benchmarks.evidence.penalty import ActivationPenalty
from benchmarks.evidence.plan import LONGER, cells, chosen, read_plan, settings
from benchmarks.evidence.terms import ImageByImage, RelativeTerm, TowardsAverage
from nsr import capture_features
from nsr.errors import InputError

PLAN = read_plan("fashion_mnist")
CHOICES = {name: {arm: settings(PLAN, name, arm)[0] for arm in PLAN["arms"]} for name in PLAN["objectives"]}


def test_objectives_may_have_settings_of_their_own():
    plan = read_plan("speedrun_fashion_mnist")
    found = {(each.objective, each.setting) for each in cells(plan, {})}
    own = plan["tuning"]["none"]
    assert found == {(name, " ".join(setting)) for name in own for setting in own[name]}
    assert choice.smallest_differences(plan, []) == {}


def row(name: str, status: str, **more) -> dict:
    return {"cell": name, "title": f"confirm {name}", "status": status, **more}


def rows_of(folder, *files) -> list[dict]:
    for number, file in enumerate(files):
        for each in file:
            rows.append(folder / "plan" / f"{number}.jsonl", each)
    return rows.read("plan", folder)


def test_every_start_counts_and_machines_are_merged(tmp_path):
    one = [row("a", "started"), row("a", "started"), row("a", "finished", config="x"), row("b", "started")]
    found = {each["cell"]: each for each in rows_of(tmp_path, one, [row("b", "finished", config="y")])}
    assert (found["a"]["status"], found["a"]["starts"]) == ("finished", 2)
    assert (found["b"]["status"], found["b"]["starts"]) == ("finished", 1)


def test_a_line_cut_short_by_a_kill_loses_nothing_else(tmp_path):
    path = tmp_path / "plan" / "0.jsonl"
    rows.append(path, row("a", "started"))
    with path.open("a") as file:
        file.write(json.dumps(row("a", "finished"))[:30])
    rows.append(path, row("b", "started"))
    assert [(each["cell"], each["status"]) for each in rows.read("plan", tmp_path)] == [
        ("a", "started"),
        ("b", "started"),
    ]


def test_contradictory_rows_are_refused(tmp_path):
    same = row("a", "finished", validation_robust=[0.1], seconds=1)
    assert len(rows_of(tmp_path, [same], [{**same, "seconds": 2}])) == 1
    with pytest.raises(InputError, match=r"other results of confirm a .* validation_robust differ; keep one"):
        rows_of(tmp_path, [{**same, "validation_robust": [0.2]}])


def test_a_cell_is_claimed_once(tmp_path):
    with rows.claimed(tmp_path / "lock") as first, rows.claimed(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with rows.claimed(tmp_path / "lock") as again:
        assert again


@pytest.mark.parametrize("retry", [False, True])
def test_a_cell_that_ended_with_an_error_is_repeated_once_when_asked(tmp_path, monkeypatch, retry):
    read, performed = rows.read, []

    def stop(cell, path, *_):
        performed.append(cell.seed)
        rows.append(path, row(cell.identity, "stopped", stage="confirm"))

    monkeypatch.setattr(rows, "read", lambda plan: read(plan, tmp_path))
    monkeypatch.setattr(rows, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "WORK", tmp_path)
    monkeypatch.setattr(command, "machine", lambda: {"commit": "a"})
    monkeypatch.setattr(command, "_perform", stop)
    options = SimpleNamespace(only="confirm.pgd.none", minutes=None, machine="first", keep=None, retry=retry)
    for times in (1, 1 + retry):
        command.perform(read_plan("digits"), options)
        assert sorted(performed) == sorted([*range(200, 210)] * times)


def test_flags_are_packed_as_bits():
    flags = numpy.array([1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1])
    assert cell.packed(flags) == "81a0"
    assert cell.unpacked("81a0", 11).tolist() == flags.tolist()


def test_the_plan_is_balanced():
    made = cells(PLAN, CHOICES)
    assert len({each.identity for each in made}) == len(made)
    for objective in PLAN["objectives"]:
        tuned = [c for c in made if c.stage in ("rate", "tune") and c.objective == objective]
        assert {sum(c.arm == arm for c in tuned) for arm in PLAN["arms"]} == {len(tuned) / len(PLAN["arms"])}
    confirmed = [c for c in made if c.stage == "confirm" and c.objective != "natural" and c.arm != LONGER]
    arms = len(PLAN["objectives"]) * len(PLAN["arms"])
    assert len(confirmed) == arms * 10
    assert all(len({c.seed for c in confirmed[i : i + arms]}) == 1 for i in range(0, len(confirmed), arms))
    assert not {c.seed for c in confirmed} & set(PLAN["tuning"]["seeds"])
    assert all(c.evaluation == () for c in made if c.stage not in ("confirm", "standard"))


def test_the_arm_of_equal_cost_is_none_with_more_steps():
    made = [c for c in cells(PLAN, CHOICES) if c.stage == "confirm"]
    longer = {(c.objective, c.seed): c for c in made if c.arm == LONGER}
    none = {(c.objective, c.seed): c for c in made if c.arm == "none" and c.objective != "natural"}
    assert longer.keys() == none.keys()
    for key, cell_ in longer.items():
        assert cell_.evaluation == none[key].evaluation
        (own,), (other,) = (set(a.training) - set(b.training) for a, b in ((cell_, none[key]), (none[key], cell_)))
        steps = [int(word.removeprefix("trainer.limit_train_batches=")) for word in (own, other)]
        assert steps == [PLAN["confirm"]["equal_cost"][key[0]], PLAN["steps"][key[0]]["none"]] and steps[0] > steps[1]


def test_no_test_image_before_all_choices():
    assert {c.stage for c in cells(PLAN, {})} == {"rate"}
    some = {**CHOICES, "fast": {"none": ["a"]}}
    assert {c.stage for c in cells(PLAN, some)} == {"rate", "tune"}
    assert chosen({"pgd": {"none": ["a"], "sns": ["b"]}}, "pgd", "sns") == ["a", "b"]


def test_a_plan_without_tuning_confirms_the_defaults():
    plan = read_plan("digits")
    made = cells(plan, choice.choose(plan, []))
    assert len({each.identity for each in made}) == len(made) == 9 * 2 * 10
    assert {each.stage for each in made} == {"confirm"}
    assert not any("limit_train_batches" in word for each in made for word in each.training)
    assert choice.smallest_differences(plan, []).keys() == plan["objectives"].keys() - {"natural"}
    each = {
        **plan,
        "confirm": {**plan["confirm"], "deviation": {**dict.fromkeys(plan["objectives"], 0.1), "fast": 0.2}},
    }
    found = choice.smallest_differences(each, [])
    assert found["fast"] == pytest.approx(2 * found["pgd"])
    assert choice.smallest_differences({**plan, "confirm": {**plan["confirm"], "seeds": []}}, []) == {}


def test_the_choice_is_the_best_mean_over_seeds():
    plan = {"objectives": {"pgd": []}, "arms": {"none": []}, "tuning": {"seeds": [0, 1], "none": [["a"], ["b"]]}}
    values = {("a", 0): 0.5, ("a", 1): 0.6, ("b", 0): 0.7, ("b", 1): 0.3}
    runs = [
        {"stage": "rate", "objective": "pgd", "arm": "none", "setting": s, "seed": n, "best_epoch": 1}
        | {"validation_robust": [0.9, value]}
        for (s, n), value in values.items()
    ]
    assert choice.choose(plan, runs) == {"pgd": {"none": ["a"]}}
    assert choice.choose(plan, runs[:3]) == {}


@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_the_smallest_detectable_difference_by_simulation(alpha):
    smallest = choice.detectable(2.0, 10, alpha)
    drawn = numpy.random.default_rng(0).normal(smallest, 2.0, (4000, 10))
    power = (ttest_1samp(drawn, 0, axis=1).pvalue <= alpha).mean()
    assert abs(power - 0.8) < 0.02


def test_the_deviation_of_a_paired_difference():
    noise = numpy.random.default_rng(0).normal(0, 0.01, (4000, 2))
    table = noise + numpy.linspace(0, 1, 4000)[:, None] + [0, 0.3]  # settings and seeds differ
    assert choice.paired_deviation(table) == pytest.approx(0.01 * 2**0.5, rel=0.03)


@pytest.mark.slow
def test_a_killed_cell_is_repeated_and_a_finished_one_skipped(tmp_path, monkeypatch):
    """One training and one evaluation on digits: the row's accuracies are those of the images."""
    training = (
        "data=digits",
        "model.width=4",
        "objective=fast",
        "stabilizer=none",
        "logger=csv",
        "trainer.max_epochs=1",
    )
    training += ("test_attacks=[clean]", "trainer.accelerator=cpu", "performance=auto")
    evaluation = ("trainer.accelerator=cpu", "checks.enabled=false", "evaluation.n_examples=100", "test_attacks=[pgd]")
    one = cell.Cell("confirm", "fast", "none", "", 3, training, evaluation)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "left over by a kill").touch()
    found = cell.run(one, tmp_path / "work", tmp_path / "kept")
    assert found["last"] == "best" and found["best"]["n_images"] == 100 and not (tmp_path / "work").exists()
    for attack, digits in found["best"]["correct"].items():
        assert cell.unpacked(digits, 100).mean() == pytest.approx(found["best"]["accuracy"][attack])
    assert (tmp_path / "kept" / "fast_none_3.ckpt").is_file()
    assert len(found["data"]) == 64 and len(found["validation_robust"]) == 2
    with pytest.raises(cell.CellStopped, match="objective"):
        cell.run(one._replace(training=("objective=none_such",)), tmp_path / "work", None)


def test_a_jpeg_copy_has_a_file_for_each_image(monkeypatch, tmp_path):
    class Images(list):
        """Two training images of each of two classes, one test image; a stand-in for torchvision's set."""

        def __init__(self, root, *, train):
            self.classes = ["cat", "dog"]
            shades = [(40, 0), (80, 1), (120, 0), (160, 1)] if train else [(200, 1)]
            super().__init__((Image.new("RGB", (32, 32), (shade,) * 3), label) for shade, label in shades)

    monkeypatch.setattr(make_cifar10_jpeg, "CIFAR10", Images)
    assert make_cifar10_jpeg.write(tmp_path, tmp_path / "copy") == 5
    files = {path.relative_to(tmp_path / "copy").as_posix(): path for path in (tmp_path / "copy").rglob("*.jpg")}
    shades = {name: Image.open(path).getpixel((5, 5))[0] for name, path in files.items()}
    assert shades == {
        "train/cat/0000.jpg": 40,
        "train/dog/0000.jpg": 80,
        "train/cat/0001.jpg": 120,
        "train/dog/0001.jpg": 160,
        "test/dog/0000.jpg": 200,
    }
    with pytest.raises(FileExistsError):
        make_cifar10_jpeg.write(tmp_path, tmp_path / "copy")


def test_the_penalty_on_activations_is_their_weighted_mean():
    clean = {"one": torch.tensor([[1.0, -3.0]]), "two": torch.zeros(1, 4, 2, 2)}
    adversarial = {"one": torch.tensor([[4.0, 0.0]]), "two": torch.ones(1, 4, 2, 2)}
    assert ActivationPenalty(weight=2.0)(clean, adversarial).item() == pytest.approx(2 * (2 + 0 + 2 + 1) / 4)


def test_a_term_image_by_image_takes_each_image_s_own_neurons():
    clean, adversarial = torch.zeros(2, 3), torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    term = ImageByImage(weight=2.0, top=1)
    assert term({"one": clean}, {"one": adversarial}).item() == pytest.approx(2 * (5 + 4) / 2)
    maps = [values[:, :, None, None] * torch.tensor([[0.5, 1.5]]) for values in (clean, adversarial)]
    assert term({"one": maps[0]}, {"one": maps[1]}).item() == pytest.approx(2 * (5 + 4) / 2)


def test_a_relative_term_does_not_fall_when_a_network_shrinks_its_outputs():
    clean, change = torch.rand(4, 6, 3, 3) + 0.1, torch.rand(4, 6, 3, 3)
    term = RelativeTerm(top=0.5)
    value = term({"one": clean}, {"one": clean + change})
    assert term({"one": clean / 10}, {"one": (clean + change) / 10}) == pytest.approx(value.item())
    ratios = (change.mean((0, 2, 3)) / clean.mean((0, 2, 3))).sort(descending=True).values
    assert value.item() == pytest.approx(ratios[:3].mean().item())
    silent = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.2]])  # the floor: 0.1 * 0.5
    assert term({"one": silent[0]}, {"one": silent[1]}).item() == pytest.approx(0.2 / 0.05)


def test_a_term_towards_an_averaged_network_sends_it_no_gradient():
    net = nn.Sequential()
    net.add_module("model", nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    objective, (images, labels) = (
        TowardsAverage(term_weight=2.0, top=1.0),
        (torch.rand(5, 1, 2, 2), torch.arange(5) % 2),
    )

    def terms():
        with capture_features(net, "model.2") as captured:
            logits = net(images + 0.3)
        features = {"2": captured["model.2"]}  # as a network without its normalization names it
        views = {"clean_images": images, "adversarial_features": features}
        return objective(labels=labels, adversarial_logits=logits, net=net, **views), features["2"]

    found, features = terms()
    clean = net.model[:3](images)
    assert found["towards_average"].item() == pytest.approx(2 * (features - clean).abs().mean().item(), rel=1e-5)
    before = net.model[1].weight.detach().clone()
    with torch.no_grad():
        net.model[1].weight += 1
    found, _ = terms()
    found["towards_average"].backward()
    average = objective.average.module.model[1].weight
    torch.testing.assert_close(average, 0.99 * before + 0.01 * (before + 1))
    assert average.grad is None and net.model[1].weight.grad.abs().sum() > 0
