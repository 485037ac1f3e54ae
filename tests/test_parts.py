"""Parts of an evaluation: any batch size, shards and single images give the images of the whole; several norms."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from reference import pattern_images, trained_net
from torch import nn

from nsr.attacks import GradientAttack, UniformDraws
from nsr.data import EvaluationBatches
from nsr.errors import InputError, fraction
from nsr.evaluation.curve import write_distances
from nsr.evaluation.image_table import write_classes, write_images
from nsr.evaluation.outcomes import SuiteResult
from nsr.evaluation.report import titles
from nsr.evaluation.robustbench import write_entry
from nsr.evaluation.shards import FILE, read_shards, write_shard
from nsr.evaluation.suite import AttackSuite
from nsr.evaluation.threat_models import by_threat_model, in_each, row_epsilon, row_threat_model, worst_cases
from nsr.features import FeatureExtractor
from nsr.layers import find_layers
from tests.conftest import evaluated, read_json, refusal, rows

IMAGES = 60


@pytest.fixture(scope="module")
def case():
    images, labels = pattern_images(IMAGES, classes=4)
    net = trained_net(images, labels)
    labels = labels.clone()
    labels[::9] = (labels[::9] + 1) % 4  # some that the network gets wrong
    return net, images, labels


def suite_of(case, *, batch_size: int, numbers=None, merged=()) -> AttackSuite:
    net, images, labels = case
    attacks = {"pgd": GradientAttack(epsilon=0.15, steps=3), "uniform": UniformDraws(epsilon=0.6, draws=5)}
    suite = AttackSuite(attacks, sensitivity_attack=GradientAttack(epsilon=0.15, steps=2))
    layers = find_layers(net, images[:2])
    suite.start(layers, images.device)
    places = torch.arange(IMAGES).split(batch_size)
    for number in range(len(places)) if numbers is None else numbers:
        batch = images[places[number]], labels[places[number]]
        suite.measure(net, FeatureExtractor(net, layers), batch, number=number, places=places[number])
    suite.add(merged)
    return suite


def assert_same(one: SuiteResult, other: SuiteResult) -> None:
    for first, second in ((one.outcomes, other.outcomes), (one.predictions, other.predictions)):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[row], second[row]) for row in first)
    assert torch.equal(one.places, other.places)
    torch.testing.assert_close(one.margins, other.margins)
    for layer, sensitivity in one.sensitivities.items():
        torch.testing.assert_close(sensitivity.absolute, other.sensitivities[layer].absolute)
    assert one.metrics == pytest.approx(other.metrics)


# ---------------------------------------------------------------- batches and shards
def test_an_images_result_is_the_same_in_batches_of_any_size(case):
    whole = suite_of(case, batch_size=IMAGES).finish()
    assert 0 < whole.outcomes["uniform"].sum() < whole.outcomes["clean"].sum()
    assert 0 < whole.outcomes["pgd"].sum() < whole.outcomes["clean"].sum()
    for batch_size in (7, 25):
        assert_same(suite_of(case, batch_size=batch_size).finish(), whole)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_together_are_the_whole(case, tmp_path, shards):
    whole = suite_of(case, batch_size=7).finish()
    for shard in range(shards):
        (folder := tmp_path / str(shard)).mkdir()
        part = suite_of(case, batch_size=7, numbers=range(shard, 9, shards)).partial_result()
        write_shard(folder, (shard, shards), {"network": "a"}, part)
    found = read_shards([tmp_path], {"network": "a"})
    assert_same(suite_of(case, batch_size=7, numbers=(), merged=found).finish(), whole)


def test_shards_share_the_batches_of_one():
    for size, batch_size, shards, processes in ((100, 7, 4, 1), (103, 10, 3, 2), (8, 8, 1, 2), (50, 7, 8, 3)):
        whole = list(EvaluationBatches(size, batch_size))
        seen = []
        for shard in range(shards):
            for rank in range(processes):
                place = {"rank": rank, "world_size": processes, "shard": shard, "shards": shards}
                batches = EvaluationBatches(size, batch_size, **place)
                for index, batch in enumerate(batches):
                    assert batch == whole[batches.number(index)]
                    seen += [] if batches.repeated(index) else [batches.number(index)]
        assert sorted(seen) == list(range(len(whole)))
    with pytest.raises(InputError, match="shard is 4/4, but 20 images are 3 batches of 8; give at most 3 shards"):
        EvaluationBatches(20, 8, shard=3, shards=4)


def test_shards_that_are_no_whole_are_refused(case, tmp_path):
    part = suite_of(case, batch_size=30, numbers=[0]).partial_result()
    write_shard(tmp_path, (0, 2), {"network": "a", "seed": 0}, part)
    message = refusal(read_shards, [tmp_path], {"network": "a", "seed": 0})
    assert "shards are missing: 2/2" in message
    assert "of another evaluation (seed differ)" in refusal(read_shards, [tmp_path], {"network": "a", "seed": 1})
    assert f"no folder there holds a {FILE}" in refusal(read_shards, [tmp_path / "other"], {})
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    assert "cannot be read" in refusal(read_shards, [tmp_path], {})


def test_a_row_that_is_restarted_is_measured_anew(case):
    cache = {}
    saved = SimpleNamespace(
        read=lambda row, batch: cache.get((row, batch)),
        write=lambda row, batch, result: cache.update({(row, batch): result}),
    )
    measured = []
    for restarted in ((), (), ("pgd",)):
        net, images, labels = case
        suite = AttackSuite(
            {"pgd": GradientAttack(epsilon=0.1, steps=1), "uniform": UniformDraws(epsilon=0.1, draws=1)}
        )
        suite.cache, suite.restarted = saved, restarted
        suite.finished = lambda row, seconds: measured.append(row) if seconds is not None else None
        suite.start([], images.device)
        suite.measure(net, FeatureExtractor(net, []), (images, labels), number=0)
        measured.append("|")
    assert measured == ["clean", "pgd", "uniform", "|", "|", "pgd", "|"]


# ---------------------------------------------------------------- nearest adversarial images
class Linear(nn.Module):
    """Two classes by the sign of w x + b: the distance to the boundary is |w x + b| / ||w||_1 in L-infinity."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 0.25, 0.75]))

    def forward(self, images):
        value = images.flatten(1) @ self.weight - 0.25
        return torch.stack([-value / 2, value / 2], dim=1)


class ToTheBoundary:
    """The nearest adversarial image of Linear, but none for images of the first gray level."""

    norm, epsilon, title = "linf", 0.1, "to the boundary"

    def nearest(self, net, images, labels, *, generator):
        away = (net(images)[:, 1] * 2) * 1.001 / net.weight.abs().sum()
        moved = images - away[:, None, None, None] * net.weight.sign().view(1, 1, 2, 2)
        return torch.where((images[:, 0, 0, 0] == 0.5)[:, None, None, None], images, moved)

    def __call__(self, net, images, labels, *, generator):
        raise AssertionError("an attack with `nearest` is measured by it")


def test_nearest_examples_give_distances_and_the_accuracy_within_the_radius():
    net, images = Linear(), 0.3 + 0.4 * torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images[::10, 0, 0, 0] = 0.5  # no adversarial image is found for these
    with torch.no_grad():
        values = net(images)[:, 1] * 2
    labels = (values > 0).long()
    labels[1] = 1 - labels[1]  # misclassified without an attack
    suite = AttackSuite({"nearest": ToTheBoundary()})
    suite.start([], images.device)
    for number, places in enumerate(torch.arange(40).split(15)):
        batch = images[places], labels[places]
        suite.measure(net, FeatureExtractor(net, []), batch, number=number, places=places)
    result = suite.finish()
    expected = values.abs() * 1.001 / 2.5
    expected[::10], expected[1] = torch.inf, 0
    torch.testing.assert_close(result.distances["nearest"], expected.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(result.outcomes["nearest"].bool(), expected > 0.1)
    assert result.metrics["nearest_median_distance"] == pytest.approx(float(expected.double().quantile(0.5)), rel=1e-4)
    fell = (expected <= 0.1) & (torch.arange(40) != 1)
    assert torch.equal(result.predictions["nearest"][fell], 1 - labels[fell])
    torch.testing.assert_close(result.margins, torch.where(labels == 1, values, -values).detach())


# ---------------------------------------------------------------- files
def test_the_files_of_images_and_classes(tmp_path):
    result = SuiteResult(
        outcomes={"clean": torch.tensor([1, 1, 0, 1]), "pgd": torch.tensor([1, 0, 0, 0])},
        predictions={"clean": torch.tensor([0, 0, 0, 1]), "pgd": torch.tensor([0, 1, 0, 0])},
        margins=torch.tensor([0.5, 2.0, -1.0, 0.25]),
        labels=torch.tensor([0, 0, 1, 1]),
        places=torch.tensor([4, 5, 6, 9]),
        distances={"fmn": torch.tensor([0.5, 0.125, 0, torch.inf])},
    )
    names, files = ["cat", "=dog"], [f"{number}.png" for number in range(9)] + ["-a\n.png"]
    write_images(tmp_path / "images.csv", result, names, files)
    write_classes(tmp_path, result, names, {"worst_case": ["clean", "pgd"]})
    images = rows(tmp_path / "images.csv")
    columns = ["image", "file", "label", "class", "clean", "pgd", "clean_prediction", "pgd_prediction", "clean_margin"]
    assert list(images[0]) == [*columns, "fmn_distance"]
    assert list(images[1].values()) == ["5", "5.png", "0", "cat", "1", "0", "0", "1", "2", "0.125"]
    # no spreadsheet evaluates names, and they stay in one line
    assert list(images[3].values()) == ["9", "'-a\\n.png", "1", "'=dog", "1", "0", "1", "0", "0.25", "inf"]
    classes = [list(row.values()) for row in rows(tmp_path / "classes.csv")]
    assert classes == [["0", "cat", "2", "1.0", "0.5", "0.5"], ["1", "'=dog", "2", "0.5", "0.0", "0.0"]]
    confusion = [tuple(row.values()) for row in rows(tmp_path / "confusion.csv")]
    assert ("clean", "0", "0", "2") in confusion
    assert [row for row in confusion if row[0] == "pgd"] == [
        *(("pgd", "0", "0", "1"), ("pgd", "0", "1", "1"), ("pgd", "1", "0", "2")),
    ]


def test_the_entry_for_robustbench(tmp_path):
    attack = SimpleNamespace(norm="linf", epsilon=8 / 255, is_standard=True)
    settings = {
        "norm": "linf",
        "epsilon": "8/255",
        "test_attacks": {"clean": None, "autoattack": {"epsilon": "8/255"}},
        "data": {"_target_": "nsr.data.CIFAR10"},
        "model": {"_target_": "nsr.models.ResNet18"},
        "evaluation": {"robustbench": {"name": "Mine", "venue": None}},
    }
    write_entry(tmp_path, {"clean_accuracy": 0.9244, "autoattack_accuracy": 0.6731}, {"autoattack": attack}, settings)
    entry = json.loads((tmp_path / "robustbench.json").read_text())
    known = {"dataset": "cifar10", "architecture": "ResNet18", "eps": "8/255", "clean_acc": "92.44"}
    assert entry.items() >= {**known, "autoattack_acc": "67.31", "name": "Mine", "unreliable": False}.items()
    # every field of an entry of its model zoo
    of_zoo = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert set(entry) >= {*of_zoo.split(), "autoattack_acc", "footnote", "unreliable"}
    curve = {"curve": {"attack": {"epsilon": "8/255"}, "scales": [1]}}
    (tmp_path / "robustbench.json").unlink()
    write_entry(tmp_path, {}, {"curve_x1": attack}, {**settings, "test_attacks": curve})
    assert not (tmp_path / "robustbench.json").exists(), "a row of a curve is no entry"
    attack.is_standard = False
    write_entry(tmp_path, {}, {"autoattack": attack}, settings)
    assert not (tmp_path / "robustbench.json").exists()


# ---------------------------------------------------------------- threat models
def test_attacks_in_each_threat_model():
    by_norm = {
        norm: {"clean": None, "pgd": {"norm": norm}, "ddn": {"norm": "l2"}, "curve": {}} for norm in ("linf", "l2")
    }
    attacks = in_each(by_norm, by_norm["linf"])
    assert list(attacks) == ["clean", "curve", "pgd_linf", "pgd_l2", "ddn_l2"]
    only_l1 = in_each({"linf": {"mine": {"norm": "l1"}}}, {"mine": {"norm": "l1"}})
    assert only_l1 == {"mine": {"norm": "l1"}}
    settings = {"norm": "linf", "epsilon": "8/255", "threat_models": {"linf": "8/255", "l2": 0.5}}
    settings["test_attacks"] = {**attacks, "curve": None, "clean": None}
    objects = {name: SimpleNamespace(norm=(attacks[name] or {}).get("norm")) for name in attacks if "_" in name}
    assert row_threat_model("pgd_l2", objects["pgd_l2"], settings) == ("l2", 0.5)
    expected = {"L-infinity": {"pgd": "pgd_linf"}, "L2": {"pgd": "pgd_l2", "ddn": "ddn_l2"}}
    assert by_threat_model(objects, settings) == expected


@pytest.mark.parametrize(
    ("own", "attribute", "written"),
    [({}, 0.5, 0.5), ({"epsilon": "4/255"}, 4 / 255, "4/255"), ({}, 8 / 255, "8/255"), ({}, None, "8/255")],
    ids=["of the object", "of its settings", "of the run, as written", "of the run"],
)
def test_the_radius_of_a_row_is_the_one_that_its_images_are_checked_at(own, attribute, written):
    settings = {"norm": "linf", "epsilon": "8/255", "test_attacks": {"mine": own}}
    attack = SimpleNamespace(norm="linf", epsilon=attribute)
    assert row_epsilon("mine", attack, settings) == written
    assert row_threat_model("mine", attack, settings) == ("linf", fraction("epsilon", written))
    rows = by_threat_model({"mine": attack}, settings)["L-infinity"]
    assert list(rows) == (["mine"] if written == "8/255" else []), "others are measured in another threat model"


def test_worst_cases_are_of_each_threat_model_and_of_all():
    curve = {"attack": {"epsilon": 0.1}, "scales": [1]}
    own = {"pgd_linf": {}, "far": {"epsilon": 0.2}, "curve": curve, "ddn_l2": {"norm": "l2"}}
    settings = {"norm": "linf", "epsilon": 0.1, "test_attacks": {"clean": None, **own}}
    norms = {"pgd_linf": "linf", "far": "linf", "curve_x1": "linf", "ddn_l2": "l2"}
    attacks = {row: SimpleNamespace(norm=norm, title=row) for row, norm in norms.items()}
    one = worst_cases(attacks, settings)
    assert one == {"worst_case": ["clean", "pgd_linf"]}, "other radii and norms are no part"
    assert titles(settings, AttackSuite(attacks, worst_cases=one))["worst_case"] == "worst case, L-infinity 0.1"
    settings["threat_models"] = {"linf": 0.1, "l2": 0.5}
    both = worst_cases(attacks, settings)
    assert both["worst_case_l2"] == ["clean", "ddn_l2"]
    assert both["worst_case"] == ["clean", "pgd_linf", "ddn_l2"]
    assert list(both) == ["worst_case_linf", "worst_case_l2", "worst_case"]
    named = titles(settings, AttackSuite(attacks, worst_cases=both))
    assert named["worst_case_l2"] == "worst case, L2 0.5" and "union" in named["worst_case"]
    assert worst_cases({}, settings) == {}


def test_rows_of_equal_titles_have_their_names(monkeypatch, tmp_path):
    attacks = {row: SimpleNamespace(norm="l2", epsilon=0.1, title="DDN-9") for row in ("one", "two")}
    settings = {"norm": "l2", "epsilon": 0.1, "test_attacks": {row: {} for row in attacks}}
    named = titles(settings, AttackSuite(attacks))
    assert (named["one"], named["two"]) == ("DDN-9, L2 0.1 (one)", "DDN-9, L2 0.1 (two)")
    drawn = {}
    monkeypatch.setattr("nsr.plots.smallest_perturbations", lambda lines, **_: drawn.update(lines))
    monkeypatch.setattr("nsr.plots.save", lambda *_: None)
    write_distances(tmp_path, {"one": torch.ones(2), "two": torch.zeros(2)}, attacks)
    assert len(drawn) == 2, "each has a line in distances.png"


# ---------------------------------------------------------------- the command
COMMAND = ("test_attacks=[clean,fgsm,pgd]", "test_attacks.pgd.steps=2", "data.evaluation_batch_size=60")
FILES = ("evaluation.json", "evaluation.csv", "images.csv", "classes.csv", "confusion.csv", "checks.json")


@pytest.mark.slow
def test_the_command_in_shards_and_for_single_images(best, tmp_path, capsys):
    whole = evaluated(tmp_path / "whole" / "run", best, *COMMAND)
    for number in (1, 2, 3):
        evaluated(
            tmp_path / "shards" / str(number), best, *COMMAND, f"shard={number}/3", f"evaluation.cache={tmp_path}/c"
        )
    assert "merge=" in capsys.readouterr().out
    merged = evaluated(tmp_path / "merged" / "run", best, *COMMAND, f"merge={tmp_path / 'shards'}")
    assert all((merged / name).read_bytes() == (whole / name).read_bytes() for name in FILES)
    evaluated(tmp_path / "some", best, *COMMAND, "only=[3,171]")
    images, some = rows(whole / "images.csv"), rows(tmp_path / "some" / "only.csv")
    for image, index in zip(some, (3, 171), strict=True):
        assert float(image.pop("clean_margin")) == pytest.approx(float(images[index].pop("clean_margin")), abs=1e-4)
        assert image == images[index]
    assert not (tmp_path / "some" / "evaluation.json").exists()
    # where one shard is missing, or another command's are there, nothing is merged
    shutil.rmtree(tmp_path / "shards" / "2")
    assert "shards are missing: 2/3" in refusal(
        evaluated, tmp_path / "a", best, *COMMAND, f"merge={tmp_path / 'shards'}"
    )
    other = (*COMMAND, "test_attacks.pgd.steps=3", f"merge={tmp_path / 'shards'}")
    assert "of another evaluation (attacks differ)" in refusal(evaluated, tmp_path / "b", best, *other)


@pytest.mark.slow
def test_the_command_in_several_threat_models(best, tmp_path):
    settings = ("threat_models={linf: 0.1, l2: 0.5}", "evaluation.n_examples=100", "checks.enabled=false")
    several = evaluated(tmp_path / "run", best, *COMMAND, *settings)
    metrics, images = read_json(several / "evaluation.json"), rows(several / "images.csv")
    attacks = [f"{name}_{norm}" for norm in ("linf", "l2") for name in ("fgsm", "pgd")]
    union = [all(image[name] == "1" for name in ("clean", *attacks)) for image in images]
    assert metrics["test/worst_case_accuracy"] == sum(union) / 100
    # each norm by itself gives the same rows
    for norm, epsilon in (("linf", 0.1), ("l2", 0.5)):
        own = (f"norm={norm}", f"epsilon={epsilon}", *settings[1:])
        alone = read_json(evaluated(tmp_path / norm, best, *COMMAND, *own) / "evaluation.json")
        for name in ("fgsm", "pgd", "worst_case"):
            assert metrics[f"test/{name}_{norm}_accuracy"] == alone[f"test/{name}_accuracy"]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("shard=0/3", "shard is '0/3'; it must be NUMBER/COUNT from 1/COUNT to COUNT/COUNT, such as 3/16"),
        ("shard=9/16", "shard is 9/16, but 500 images are 2 batches of 250; give at most 2 shards"),
        ("only=[500]", "only has 500; the images of the test set are 0 to 499"),
        ("only=[pdg]", "only entry is 'pdg'; it must be one of clean, fgsm, pgd"),
        ("only=[3,pgd]", "it must be names of rows or indices of images"),
        ("shard=1/2 only=[3]", "shard and only are given; they exclude each other"),
        ("shard=1/2 analyses=[interventions]", "shard measures a part of the test set, analysis needs all of it"),
        ("merge=nowhere", "no folder there holds a shard.pt"),
        ("threat_models=[l2,l2]", "it must be a list of different norms"),
        ("threat_models={l2: -1}", "threat_models.l2 is -1"),
    ],
)
def test_parts_that_cannot_be_are_refused_in_one_line(best, refused, typed, line):
    overrides = typed.split(" ") if "{" not in typed else [typed]
    assert line in refused("evaluate", best, "test_attacks=[clean,fgsm,pgd]", *overrides)
