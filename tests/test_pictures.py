"""Pictures: their numbers are what the network gives, computed here once more; a failure costs a run nothing."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_runs import make_run
from torch import nn

from nsr.attacks import GradientAttack
from nsr.layers import find_layers
from nsr.models import Classifier, SmallCNN
from nsr.pictures import Picture, Subject, make_pictures, write_pictures
from nsr.pictures import attacked as attacking
from nsr.pictures.full import _filter_normalized, full_pictures, optimized_inputs, weight_landscape
from nsr.pictures.subject import PASS, operations
from nsr.report.__main__ import main
from nsr.report.files import read_files
from nsr.report.numbers import plain

EPSILON, IMAGES = 0.03, 40
ATTACK = GradientAttack(epsilon=EPSILON, steps=4)


def a_subject(
    net: nn.Module, *, images: int = IMAGES, classes: int = 3, attack=ATTACK, seed: int = 0, **changes
) -> Subject:
    """A random network whose predictions are the labels, but for the first image's."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.rand(images, *changes.pop("shape", (1, 8, 8)), generator=draw)
    net.eval()
    with torch.no_grad():
        list(net.modules())[-1].bias -= net(pixels).mean(0)  # a linear layer: predictions differ between images
        labels = net(pixels).argmax(1)
    labels[0] = (labels[0] + 1) % classes if images > 2 else labels[0]
    places = torch.arange(images) + 100
    subject = Subject(
        net=net,
        root=net,
        layers=find_layers(net, pixels[:2], None),
        device=torch.device("cpu"),
        read=lambda position: pixels[position],
        labels=labels,
        places=places,
        class_names=["<b>zero", "one", "two"],
        outcomes={},
        attacks={"pgd": attack},
        titles={"pgd": "PGD-4, L-infinity 0.03"},
        measured_on="the validation images",
        seed=seed,
    )
    adversarial = attack(net, pixels, labels, generator=subject.generators(range(images)))
    with torch.no_grad():
        flags = [(net(each).argmax(1) == labels) for each in (pixels, adversarial)]
    outcomes = {"clean": flags[0].to(torch.uint8), "pgd": (flags[0] & flags[1]).to(torch.uint8)}
    generator = torch.Generator().manual_seed(1)
    sensitivities = {layer.name: torch.rand(layer.neurons, generator=generator) for layer in subject.layers}
    return replace(subject, outcomes=outcomes, sensitivities=sensitivities, **changes)


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    return a_subject(Classifier(SmallCNN(channels=1, classes=3, image_size=8, width=4)))


@pytest.fixture(scope="module")
def pictures(subject) -> dict[str, Picture]:
    return {picture.id: picture for picture in make_pictures(subject)}


def pair(subject: Subject, places: list[int]) -> list[torch.Tensor]:
    """The clean and the adversarial images of places in the test set, attacked one by one."""
    positions = [place - 100 for place in places]
    images = subject.images(positions)
    rows = zip(images, positions, strict=True)
    attack = subject.attacks["pgd"]
    each = [attack(subject.net, x[None], subject.labels[n][None], generator=subject.generators([n])) for x, n in rows]
    return [images, torch.cat(each)]


def features(net: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    kept = []
    handle = net.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        net(images)
    handle.remove()
    return kept[0]


def test_the_examples_are_the_first_that_fell_and_held(subject, pictures):
    data = pictures["examples"].data
    for group, wanted in (("fell", 0), ("held", 1)):
        own = (subject.outcomes["clean"] == 1) & (subject.outcomes["pgd"] == wanted)
        positions = [entry["image"] - 100 for entry in data["images"] if entry["group"] == group]
        assert own[positions].all() and len(positions) == min(4, int(own.sum()))
        classes = {int(subject.labels[n]) for n in own.nonzero()[:, 0].tolist()}
        assert {int(subject.labels[n]) for n in positions} == classes  # one of each class before a second one
    assert {entry["group"] for entry in data["images"]} == {"fell", "held"}
    views = pair(subject, [entry["image"] for entry in data["images"]])
    for name, images in zip(("clean", "adversarial"), views, strict=True):
        probabilities = subject.net(images).softmax(1)
        assert [entry[f"{name}_prediction"] for entry in data["images"]] == probabilities.argmax(1).tolist()
        shown = [entry[f"{name}_confidence"] for entry in data["images"]]
        assert shown == pytest.approx(probabilities.amax(1).tolist(), rel=1e-4)
    assert "PGD-4, L-infinity 0.03" in pictures["examples"].caption


@torch.no_grad()
def test_the_steps_end_at_the_adversarial_image(subject, pictures):
    data = pictures["attack_steps"].data
    _, adversarial = pair(subject, [data["image"]])
    probabilities = subject.net(adversarial)[0].softmax(0)
    assert len(data["probability"]) == 5  # four steps and the end
    assert data["probability"][-1] == pytest.approx(float(probabilities[data["label"]]), rel=1e-4)
    for number in range(4):
        attack = GradientAttack(epsilon=EPSILON, steps=number, step_size=ATTACK.step_size)
        position = data["image"] - 100
        images, label = subject.images([position]), subject.labels[position][None]
        image = attack(subject.net, images, label, generator=subject.generators([position]))
        assert data["probability"][number] == pytest.approx(float(subject.net(image)[0].softmax(0)[label]), rel=1e-4)


def test_neurons_and_the_images_that_move_them_most(subject, pictures):
    top, maps = pictures["top_images"].data, pictures["feature_maps"].data
    views = pair(subject, top["candidates"])
    assert sorted(top["candidates"]) == subject.places.tolist()
    layers = [layer.name for layer in subject.layers]
    assert list(dict.fromkeys(row["layer"] for row in top["neurons"])) == layers
    for row in top["neurons"]:
        own = subject.sensitivities[row["layer"]]
        assert row["sensitivity"] == pytest.approx(float(own[row["neuron"]]), rel=1e-5)
        assert row["sensitivity"] >= float(own.sort(descending=True).values[1]) - 1e-6
        clean, adversarial = (features(subject.net, row["layer"], images)[:, row["neuron"]] for images in views)
        moved = (clean - adversarial).abs().flatten(1).mean(1) if clean.ndim > 1 else (clean - adversarial).abs()
        expected = moved.sort(descending=True, stable=True)
        assert row["values"] == pytest.approx(expected.values[:3].tolist(), rel=1e-4)
        assert row["images"] == [top["candidates"][n] for n in expected.indices[:3].tolist()]
        if row["layer"].endswith("relu1"):
            assert all(box[2] - box[0] <= 3 and box[3] - box[1] <= 3 for box in row["boxes"] if box)
    for row in maps["neurons"]:
        clean, adversarial = (features(subject.net, row["layer"], each) for each in pair(subject, [maps["image"]]))
        difference = float((clean - adversarial)[0, row["neuron"]].abs().mean())
        assert row["mean_difference"] == pytest.approx(difference, rel=1e-4)
    assert {row["layer"] for row in maps["neurons"]} == set(layers[:-1])
    assert f"The outputs of {layers[-1]} are no images" in pictures["feature_maps"].caption


def test_classes_have_the_mean_sensitivity_of_their_images(subject, pictures):
    data = pictures["class_sensitivity"].data
    views = pair(subject, data["images"])
    labels = subject.labels[torch.tensor(data["images"]) - 100]
    assert data["counts"] == [int((labels == label).sum()) for label in data["classes"]]
    for layer, values in data["absolute"].items():
        clean, adversarial = (features(subject.net, layer, images) for images in views)
        moved = (clean - adversarial).abs().flatten(1).mean(1)
        assert values == pytest.approx([float(moved[labels == label].mean()) for label in data["classes"]], rel=1e-4)


def test_the_landscape_has_the_losses_of_image_and_adversarial_image(subject, pictures):
    data = pictures["landscape"].data
    labels = subject.labels[torch.tensor(data["images"]) - 100]
    clean, adversarial = (
        nn.functional.cross_entropy(subject.net(images), labels, reduction="none").tolist()
        for images in pair(subject, data["images"])
    )
    losses = torch.tensor(data["losses"])
    assert losses.shape == (4, 9, 9)
    assert losses[:, 4, 4].tolist() == pytest.approx(clean, rel=1e-4)
    assert data["clean_loss"] == pytest.approx(clean, rel=1e-4)
    assert losses[:, 4, 8].tolist() == pytest.approx(adversarial, rel=1e-4)
    assert data["adversarial_loss"] == pytest.approx(adversarial, rel=1e-4)
    assert torch.tensor(data["correct"])[:, 4, 4].all()


def test_the_network_is_left_as_it_was(subject, pictures):
    net = subject.net
    assert not net._forward_hooks and not net._forward_pre_hooks
    assert all(not module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


class Tokens(nn.Module):
    """A network without feature maps."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, images):
        return self.last(self.relu(self.first(images.flatten(1))))


@pytest.mark.slow
def test_networks_without_maps_and_few_images():
    torch.manual_seed(0)
    made = {picture.id: picture for picture in make_pictures(a_subject(Tokens(), shape=(3, 8, 8)))}
    assert "feature_maps" not in made and "are no images, so they have no maps" in made["top_images"].caption
    few = {picture.id for picture in make_pictures(a_subject(Tokens(), images=2, shape=(3, 8, 8), classes=1))}
    assert {"examples", "top_images", "landscape"} <= few
    nothing = a_subject(Tokens(), shape=(3, 8, 8))
    assert make_pictures(replace(nothing, attacks={}, sensitivities={})) == []
    wrong = {name: torch.zeros_like(flags) for name, flags in nothing.outcomes.items()}
    assert make_pictures(replace(nothing, outcomes=wrong)) == []


def test_of_attacks_with_equal_accuracy_the_later_is_shown():
    flags = {"clean": [1, 1, 1], "fgsm": [1, 0, 0], "pgd": [0, 1, 0], "uniform": [1, 1, 0], "curve_x2": [0, 0, 0]}
    assert attacking.strongest_first({name: torch.tensor(own) for name, own in flags.items()}) == ["pgd", "fgsm"]


def test_an_attack_that_exceeds_the_budget_gives_way_to_the_next(subject, monkeypatch):
    passes = []

    def endless(net, images, labels, *, generator=None):
        while True:
            passes.append(len(images))
            net(images)

    outcomes = {**subject.outcomes, "endless": subject.outcomes["pgd"] * 0}
    slow = replace(subject, attacks={"endless": endless, "pgd": ATTACK}, outcomes=outcomes)
    assert attacking.strongest_first(outcomes) == ["endless", "pgd"]
    monkeypatch.setattr(attacking, "ATTACK_BUDGET", 6.5 * (PASS + 2 * operations(subject)))
    slow = replace(slow, titles={"endless": "Endless attack"})
    found = attacking.attack_images(slow)
    assert found.row == "pgd" and found.note.startswith("Endless attack is stronger")
    assert len(passes) == 6 + 1  # the one that exceeds the budget is never made
    assert "Endless attack" in next(iter(make_pictures(slow))).caption
    monkeypatch.setattr(attacking, "ATTACK_BUDGET", PASS)
    assert attacking.attack_images(slow) is None
    assert not subject.net._forward_pre_hooks


def test_the_budget_is_one_of_operations_whatever_the_machine_does(subject, monkeypatch):
    """The work of a small network, counted by hand: convolutions and products, two operations for each product."""
    counted = []

    def count(module, inputs, output):
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        counted.append(2 * module.weight.numel() * positions)

    layers = [each for each in subject.net.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    handles = [each.register_forward_hook(count) for each in layers]
    subject.net(subject.images([0]))
    assert [handle.remove() for handle in handles] and sum(counted) == operations(subject)
    two, six = (ATTACK.steps * (PASS + images * sum(counted)) for images in (2, 6))
    monkeypatch.setattr(attacking, "ATTACK_BUDGET", 1.01 * (two + six))
    found = attacking.attack_images(subject)
    assert len(found.positions) == 8 and f"ended at 8 of {IMAGES} images" in found.note
    monkeypatch.setattr(attacking, "ATTACK_BUDGET", 0.99 * (two + six))
    assert len(attacking.attack_images(subject).positions) == 2


def test_a_picture_that_fails_leaves_the_others(subject, monkeypatch, caplog):
    monkeypatch.setattr("nsr.pictures.make.receptive_fields", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.WARNING):
        made = [picture.id for picture in make_pictures(subject)]
    assert made == ["examples", "attack_steps", "class_sensitivity", "feature_maps", "landscape"]
    (record,) = caplog.records
    assert record.getMessage() == "no picture of top: ZeroDivisionError: division by zero"


def test_files_are_complete_and_the_report_reads_them(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("nsr.pictures.write.png", lambda figure, dots: b"\x89PNG" + bytes(dots * 3000))
    hostile = replace(pictures["examples"], alt="<script>\x1b", caption="\x07")
    paths = write_pictures(tmp_path, [hostile, pictures["landscape"]])
    assert paths["examples/examples"].stat().st_size == 4 + 100 * 3000  # the largest below 350 kB
    (first, second) = read_files(tmp_path).pictures()
    assert (first.section, first.alt, first.caption) == ("examples", "<script>\\x1b", "\\x07")
    assert second.data == plain(pictures["landscape"].data)
    write_pictures(tmp_path, [pictures["landscape"]])  # in place of the earlier ones
    assert [each.name for each in sorted((tmp_path / "pictures").iterdir())] == ["index.json", "landscape.png"]
    monkeypatch.setattr("nsr.pictures.write.png", lambda figure, dots: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_pictures(tmp_path, [hostile])
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"] and len(
        list(read_files(tmp_path).pictures())
    ) == 1


def test_a_failure_is_one_warning(tmp_path, caplog):
    import importlib

    from nsr.app import pictures as commands

    original = importlib.reload(commands)  # the fixture for runs in this process has replaced its function
    broken = SimpleNamespace(settings={"pictures": True})
    with caplog.at_level(logging.WARNING):
        assert original.write_or_warn(broken, tmp_path, torch.device("cpu")) == {}
    (record,) = caplog.records
    assert record.getMessage().startswith("no pictures: AttributeError") and not list(tmp_path.iterdir())
    assert original.write_or_warn(SimpleNamespace(settings={"pictures": False}), tmp_path, torch.device("cpu")) == {}


# ---------------------------------------------------------------- nsr-report --full
def test_the_landscape_of_the_weights_has_the_loss_in_the_middle(subject):
    net, images = subject.net, subject.images(range(6))
    labels = subject.labels[:6]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = weight_landscape(net, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    with torch.no_grad():
        assert float(losses[4, 4]) == pytest.approx(float(nn.functional.cross_entropy(net(images), labels)), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert losses.shape == (9, 9) and len(losses.unique()) > 60


def test_directions_are_as_long_as_the_filters(subject):
    weight = subject.net.get_submodule("net.conv2").weight
    direction = _filter_normalized(weight, torch.Generator().manual_seed(0))
    lengths = [each.flatten(1).norm(dim=1).tolist() for each in (weight.detach(), direction.detach())]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)


def test_optimized_inputs_excite_their_neurons(subject):
    layer = next(layer for layer in subject.layers if layer.name == "net.relu1")
    usual = features(subject.net, "net.relu1", subject.images(range(20))).mean((2, 3)).amax(0)
    neurons = usual.sort(descending=True).indices[:2].tolist()  # a neuron that is 0 everywhere has no gradient
    images, outputs = optimized_inputs(subject.net, layer, neurons, (1, 8, 8), root=subject.root, steps=30)
    assert images.shape == (2, 1, 8, 8) and float(images.min()) >= 0 and float(images.max()) <= 1
    found = features(subject.net, "net.relu1", images).mean((2, 3))
    assert outputs.tolist() == pytest.approx([float(found[0, neurons[0]]), float(found[1, neurons[1]])], rel=1e-5)
    assert (outputs > usual[neurons]).all()
    assert not any(module._forward_hooks for module in subject.net.modules())


def test_full_pictures_of_a_costly_network_are_made_of_less(subject, monkeypatch):
    """The captions say of how much: here of the least that a picture needs."""
    monkeypatch.setattr("nsr.pictures.full.BUDGET", 1.0)
    inputs, weights = full_pictures(subject, next(iter(subject.attacks)))
    assert "32 steps" in inputs.caption
    assert "first 4 test images" in weights.caption and weights.data["images"] == 4


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["a"], "has no checkpoints/best.ckpt, which --full needs"),
        (["a", "b"], "--full is for one run, and 2 are given"),
    ],
)
def test_full_pictures_need_one_run_with_a_checkpoint(runs, expected, tmp_path, capsys):
    places = [str(make_run(tmp_path / name)) for name in runs]
    assert main([*places, "--full"]) == 1
    shown = capsys.readouterr().err
    assert expected in shown and shown.count("\n") == 1
    assert not list(tmp_path.rglob("pictures*")) and not list(tmp_path.rglob("*.html"))


@pytest.mark.slow
def test_the_whole_road(best, tmp_path, capfd):
    """The full pictures of a checkpoint are on the page; one that names other code is refused."""
    run = tmp_path / "run"
    shutil.copytree(Path(best.partition("=")[2]).parents[1], run)
    assert main([str(run), "--full"]) == 0
    page = (run / "report.html").read_text()
    assert {"optimized_inputs.png", "weight_landscape.png", "index.json"} == {
        each.name for each in (run / "pictures_full").iterdir()
    }
    assert "filter-normalized" in page and "Olah et al. 2017" in page
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    saved["nsr_settings"]["model"]["_target_"] = "os.system"
    torch.save(saved, run / "checkpoints" / "best.ckpt")
    with pytest.raises(SystemExit):
        main([str(run), "--full"])
    shown = capfd.readouterr().err
    assert shown.startswith("error: ") and "os.system" in shown and shown.count("\n") == 1
