"""The analysis against a slow version: one image, one set, part after part; then what it keeps, counts and refuses."""

from __future__ import annotations

import csv
import gc
import weakref
from dataclasses import asdict

import pytest
import torch
from reference import (
    inventory,
    pattern_images,
    same_inventory,
    slow_mean_activation,
    slow_most_sensitive,
    slow_sensitivity,
    trained_net,
)
from torch import Tensor, nn

from nsr.attacks import GradientAttack, pgd
from nsr.errors import InputError
from nsr.features import capture_features
from nsr.interventions import Effects, Interventions, intervene
from nsr.interventions.conductance import conductance
from nsr.interventions.controls import neuron_sets
from nsr.interventions.intervene import halves
from nsr.interventions.patching import Replay
from nsr.interventions.ranking import Pairs, rank_neurons
from nsr.layers import find_layers

SETTINGS = {"shares": [0.25, 0.5], "draws": 4, "replicates": 200}
ALL_KINDS = ("restore", "corrupt", "mask_zero", "mask_mean")


@pytest.fixture(scope="module")
def case():
    """A net with a layer of maps ('2') and one of units ('5'), its images, labels and adversarial images."""
    images, labels = pattern_images(80, classes=4)
    net = trained_net(images, labels).double()
    images, labels = images.double(), labels.clone()
    labels[::9] = (labels[::9] + 1) % 4  # some that the network gets wrong
    return net, images, labels, pgd(net, images, labels, epsilon=0.12, steps=5, random_start=False)


@pytest.fixture(scope="module")
def effects(case) -> Effects:
    net, images, labels, adversarial = case
    rankings = ["activation", "relative"]
    return intervene(
        net, images, labels, adversarial=adversarial, layers=["2", "5"], kinds=ALL_KINDS, rankings=rankings, **SETTINGS
    )


def row(effects: Effects, **wanted):
    (found,) = [each for each in effects.rows if all(getattr(each, name) == value for name, value in wanted.items())]
    return found


def forward(net: nn.Sequential, image: Tensor, layer: str, chosen: list[int], instead: Tensor) -> Tensor:
    """The logits of one image whose chosen neurons of one layer give `instead` (neuron, ...); part after part."""
    value = image[None]
    for name, part in net.named_children():
        value = part(value).clone()
        if name == layer:
            for neuron in chosen:
                value[0, neuron] = instead[neuron]
    return value[0]


# ---------------------------------------------------------------- the definition


def slow(net, layer, images, adversarial, labels, chosen, kind, means) -> tuple[int, list[float]]:
    """How many images the intervention has its effect on, and how far the margin moves on each."""
    changed, gains = 0, []
    with torch.no_grad(), capture_features(net, [layer]) as features:
        for image, moved, label in zip(images, adversarial, labels.tolist(), strict=True):
            logits = net(image[None])[0]
            clean = features[layer][0].clone()
            attacked = net(moved[None])[0]
            corrupted = features[layer][0].clone()
            if logits.argmax() != label or (not kind.startswith("mask") and attacked.argmax() == label):
                continue
            if kind == "restore":
                start, instead, before = moved, clean, attacked
            else:
                start, before = image, logits
                instead = {"corrupt": corrupted, "mask_zero": 0 * clean, "mask_mean": means}[kind]
            after = forward(net, start, layer, chosen, instead)
            is_wrong = int(after.argmax()) != label
            changed += not is_wrong if kind == "restore" else is_wrong
            move = slow_margin(after, label) - slow_margin(before, label)
            gains.append(-move if kind == "restore" else move)
    return changed, gains


def slow_margin(logits: Tensor, label: int) -> float:
    values = logits.tolist()
    return max(value for k, value in enumerate(values) if k != label) - values[label]


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("layer", ["2", "5"])
def test_against_a_slow_version(case, effects, layer, kind):
    net, images, labels, adversarial = case
    ranking, tested = halves(labels, seed=0)
    with torch.no_grad(), capture_features(net, [layer]) as features:
        net(images[ranking])
        clean = features[layer].clone()
        net(adversarial[ranking])
        moved = features[layer].clone()
    sensitivity = slow_sensitivity(clean, moved)
    scores = {
        "most_sensitive": sensitivity,
        "least_sensitive": sensitivity,
        "by_activation": slow_mean_activation(clean),
        "by_relative": slow_sensitivity(clean, moved, kind="relative"),
    }
    means = [clean[:, m].mean() for m in range(clean.shape[1])]
    energy = [float(((clean - moved)[:, m] ** 2).mean()) for m in range(clean.shape[1])]
    for share in (0.25, 0.5):
        count = int(share * len(sensitivity))
        for family, values in scores.items():
            order = slow_most_sensitive(values, len(values))
            chosen = order[-count:] if family == "least_sensitive" else order[:count]
            parts = images[tested], adversarial[tested], labels[tested]
            changed, gains = slow(net, layer, *parts, chosen, kind, means)
            got = row(effects, layer=layer, kind=kind, share=share, family=family)
            assert got.images == len(gains) > 5
            assert got.effect == pytest.approx(changed / len(gains), abs=1e-6)
            assert got.margin == pytest.approx(sum(gains) / len(gains), abs=1e-5)
            assert got.mass == pytest.approx(sum(sensitivity[m] for m in chosen) / sum(sensitivity), abs=1e-6)
            assert got.energy == pytest.approx(sum(energy[m] for m in chosen) / sum(energy), abs=1e-6)
            top = slow_most_sensitive(sensitivity, count)
            assert got.overlap == pytest.approx(len({*chosen} & {*top}) / count, abs=1e-6)


def test_random_families_are_means_of_their_draws(case, effects):
    """One draw at a time, through the ordinary interface for a given set."""
    net, images, labels, adversarial = case
    ranking, tested = halves(labels, seed=0)
    layers = find_layers(net, images[:2], ["5"])
    pairs = [[Pairs(images[half], adversarial[half], labels[half])] for half in (ranking, tested)]
    rankings = rank_neurons(Replay(net, layers, images), pairs[0])
    ranked = rankings["5"]
    sets = neuron_sets(ranked.sensitivity, ranked.energy, {}, shares=[0.5], draws=4, seed=0, layer="5")
    for family in ("random_equal_size", "random_equal_mass", "random_equal_energy"):
        shares = []
        for mask in sets.masks(0.5, family):
            chosen = mask.nonzero()[:, 0].tolist()
            parts = images[tested], adversarial[tested], labels[tested]
            changed, gains = slow(net, "5", *parts, chosen, "restore", None)
            shares.append(changed / len(gains))
        got = row(effects, layer="5", kind="restore", share=0.5, family=family)
        assert got.draws == 4
        assert got.effect == pytest.approx(sum(shares) / 4, abs=1e-6)


def test_contrasts_are_differences_of_effects(effects):
    for each in effects.rows:
        if each.family in ("most_sensitive", "whole_layer"):
            assert each.contrast is None
            continue
        most = row(effects, layer=each.layer, kind=each.kind, share=each.share, family="most_sensitive")
        assert each.contrast == pytest.approx(most.effect - each.effect, abs=2e-6)
        assert each.margin_contrast == pytest.approx(most.margin - each.margin, abs=2e-6)
        assert each.contrast_low <= each.contrast <= each.contrast_high
        assert each.effect_low <= each.effect <= each.effect_high


def test_the_whole_layer(effects):
    """Nothing goes around the two layers: all clean is clean, all adversarial is adversarial."""
    for layer in ("2", "5"):
        for kind in ("restore", "corrupt"):
            assert row(effects, layer=layer, kind=kind, family="whole_layer").effect == 1


def test_restoring_the_top_is_corrupting_the_rest(case):
    net, images, labels, adversarial = case
    settings = {**SETTINGS, "shares": [0.25, 0.75]}
    effects = intervene(net, images, labels, adversarial=adversarial, layers=["5"], **settings)
    for share in (0.25, 0.75):
        restored = row(effects, kind="restore", share=share, family="most_sensitive")
        corrupted = row(effects, kind="corrupt", share=1 - share, family="least_sensitive")
        assert restored.effect == pytest.approx(1 - corrupted.effect, abs=1e-6)


# ---------------------------------------------------------------- whatever the batches


def test_rows_do_not_depend_on_batches(case):
    net, images, labels, adversarial = case
    settings = {**SETTINGS, "layers": ["2"], "adversarial": adversarial, "kinds": ALL_KINDS}
    whole = intervene(net, images, labels, **settings)
    for batch_size, images_at_once in ((7, 256), (80, 1), (33, 5)):
        parts = intervene(net, images, labels, batch_size=batch_size, images_at_once=images_at_once, **settings)
        assert parts.rows == whole.rows
        assert parts.images == whole.images


def test_the_seed_decides(case):
    net, images, labels, _ = case
    attack = GradientAttack(epsilon=0.12, steps=2)
    frames = [
        intervene(net, images, labels, attack=attack, layers=["5"], seed=seed, **SETTINGS).rows for seed in (0, 0, 1)
    ]
    assert frames[0] == frames[1] != frames[2]


def test_halves_are_of_every_class():
    labels = torch.tensor([0] * 11 + [1] * 20 + [2] * 5)
    ranking, tested = halves(labels, seed=3)
    assert sorted([*ranking.tolist(), *tested.tolist()]) == list(range(36))
    counts = [torch.bincount(labels[half], minlength=3) for half in (ranking, tested)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert not torch.equal(ranking, halves(labels, seed=4)[0])


def test_neurons_are_ranked_on_other_images_than_they_are_tested_on(case):
    """What happens to the tested images changes no set."""
    net, images, labels, adversarial = case
    _, tested = halves(labels, seed=0)
    other = adversarial.clone()
    other[tested] = images[tested] + 0.9 * (adversarial[tested] - images[tested])
    results = [
        intervene(net, images, labels, adversarial=each, layers=["5"], **SETTINGS) for each in (other, adversarial)
    ]
    for one, two in zip(*(result.rows for result in results), strict=True):
        assert (one.mass, one.overlap, one.neurons) == (two.mass, two.overlap, two.neurons)
    assert results[0].layers == results[1].layers
    assert results[0].rows != results[1].rows


# ---------------------------------------------------------------- what is run and kept


class Counting(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.passes, self.images = net, 0, 0

    def forward(self, values: Tensor) -> Tensor:
        self.passes += 1
        self.images += len(values)
        return self.net(values)


def test_passes_before_the_layers_are_made_once(case):
    """Two passes a batch, clean and adversarial, for all layers, shares, sets and kinds together."""
    net, images, labels, adversarial = case
    first, last = Counting(net[0]), Counting(net[6])
    counted = nn.Sequential(first, *net[1:6], last)
    layers = find_layers(counted, images[:2], ["2", "5"])
    ranking, tested = halves(labels, seed=0)

    def pairs(half):
        return [Pairs(images[part], adversarial[part], labels[part]) for part in half.split(20)]

    first.passes = first.images = 0
    Interventions(**SETTINGS).measure(counted, layers, pairs(ranking), pairs(tested))
    trial = 1  # the layers are behind it, so that no trial replay runs it either
    assert first.passes == trial + 2 * 2 + 2 * 2
    assert first.images == 3 + 2 * 40 + 2 * 40
    assert last.images > 5 * first.images


@pytest.mark.slow
def test_no_batch_outlives_its_turn(case):
    net, images, labels, adversarial = case
    layers = find_layers(net, images[:2], ["2", "5"])
    seen: list[weakref.ref] = []
    kept: list[int] = []

    def pairs(half, *, counts=False):
        for part in half.split(14):
            gc.collect()
            assert all(reference() is None for reference in seen[:-2]), "an earlier batch is still there"
            if counts:
                kept.append(sum(value.numel() for value in gc.get_objects() if type(value) is Tensor))
            pair = Pairs(images[part], adversarial[part], labels[part])
            seen.extend(weakref.ref(value) for value in pair[:2])
            yield pair

    ranking, tested = halves(labels, seed=0)
    Interventions(**SETTINGS).measure(net, layers, pairs(ranking), pairs(tested, counts=True))
    assert len(seen) == 12
    # between two batches: a flag and a margin for each set and image, and far less than the features of one batch
    outcomes = 2 * 2 * 2 * 33 * 14  # flag and margin, kinds, layers, sets at most, images
    assert kept[-1] - kept[-2] <= outcomes


def test_the_network_is_left_as_it_was(case):
    net, images, labels, _ = case
    net[1].train()
    before = inventory(net)
    intervene(net, images, labels, attack=GradientAttack(epsilon=0.12, steps=2), layers=["2"], **SETTINGS)
    same_inventory(before, inventory(net))
    net[1].eval()


# ---------------------------------------------------------------- results as they are handed on


def test_a_data_frame(effects):
    frame = effects.frame()
    assert len(frame) == len(effects.rows) == 2 * 4 * (2 * 7 + 1)
    assert frame.iloc[3].to_dict().keys() == asdict(effects.rows[3]).keys()
    assert set(frame.family) == {
        *("most_sensitive", "least_sensitive", "random_equal_size", "random_equal_mass", "random_equal_energy"),
        *("by_activation", "by_relative", "whole_layer"),
    }


def test_figures_of_the_layers(case, effects):
    net, images, labels, adversarial = case
    ranking, _ = halves(labels, seed=0)
    with torch.no_grad(), capture_features(net, ["5"]) as features:
        net(images[ranking])
        clean = features["5"].clone()
        net(adversarial[ranking])
        moved = features["5"].clone()
    sensitivity, activation = slow_sensitivity(clean, moved), slow_mean_activation(clean)
    centred = [[value - sum(values) / len(values) for value in values] for values in (sensitivity, activation)]
    covariance = sum(a * b for a, b in zip(*centred, strict=True))
    correlation = covariance / (sum(a * a for a in centred[0]) * sum(b * b for b in centred[1])) ** 0.5
    figures = effects.layers["5"]
    assert figures["correlation_of_sensitivity_and_activation"] == pytest.approx(correlation, abs=1e-9)
    assert figures["mean_sensitivity"] == pytest.approx(sum(sensitivity) / len(sensitivity), rel=1e-9)
    assert effects.images["tested"] == 40
    assert effects.images["tested"] > effects.images["right"] > effects.images["fooled"] > 0


def test_a_layer_of_one_neuron():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid(), nn.Linear(1, 2))
    images, labels = pattern_images(40, classes=2)
    with torch.no_grad():
        labels = net(images).argmax(1)
    attack = GradientAttack(epsilon=0.5, steps=5)
    effects = intervene(net, images, labels, attack=attack, layers=["2"], kinds=["mask_zero"], **SETTINGS)
    assert effects.layers["2"]["correlation_of_sensitivity_and_activation"] is None
    assert {each.neurons for each in effects.rows} == {1}


# ---------------------------------------------------------------- conductance


def test_conductance_adds_up_to_the_change_of_the_logit(case):
    pytest.importorskip("captum")
    net, images, labels, adversarial = case
    layers = find_layers(net, images[:2], ["2", "5"])
    with torch.no_grad():
        change = (net(adversarial[:6]) - net(images[:6])).gather(1, labels[:6, None])[:, 0]
    before = inventory(net)
    for layer in layers:
        flow = conductance(net, layer, images[:6], adversarial[:6], labels[:6])
        assert flow.shape == (6, layer.neurons)
        torch.testing.assert_close(flow.sum(1), change, rtol=0.02, atol=0.05)
    same_inventory(before, inventory(net))


def test_conductance_of_a_linear_layer_by_hand():
    pytest.importorskip("captum")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3)).double()
    images, labels = pattern_images(4, classes=3)
    images, adversarial = images.double(), 1 - images.double()
    (layer,) = find_layers(net, images, ["1"])
    moved = net[1](adversarial.flatten(1)) - net[1](images.flatten(1))  # (image, neuron)
    expected = moved * net[2].weight[labels]
    got = conductance(net, layer, images, adversarial, labels, images_at_once=8)
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-9)


def test_conductance_ranks(case):
    pytest.importorskip("captum")
    net, images, labels, adversarial = case
    effects = intervene(
        net, images, labels, adversarial=adversarial, layers=["5"], rankings=["conductance"], batch_size=25, **SETTINGS
    )
    ranking, _ = halves(labels, seed=0)
    (layer,) = find_layers(net, images[:2], ["5"])
    scores = conductance(net, layer, images[ranking], adversarial[ranking], labels[ranking]).abs().mean(0)
    chosen = slow_most_sensitive(scores.tolist(), 16)
    _, tested = halves(labels, seed=0)
    changed, gains = slow(net, "5", images[tested], adversarial[tested], labels[tested], chosen, "restore", None)
    got = row(effects, kind="restore", share=0.5, family="by_conductance")
    assert got.effect == pytest.approx(changed / len(gains), abs=1e-6)


def test_without_captum(case, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    net, images, labels, adversarial = case
    with pytest.raises(InputError, match=r"conductance, which needs captum: pip install 'nsr\[attribution\]'"):
        intervene(net, images, labels, adversarial=adversarial, rankings=["conductance"])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": [0.5, 1.5]}, r"shares entry is 1\.5; it must be a number above 0 and at most 1; a share of"),
        ({"shares": [0]}, "shares entry is 0; it must be a number above 0"),
        ({"shares": []}, r"shares is \[\]; it must be a list of different entries, at least one"),
        ({"shares": [0.5, 0.5]}, "it must be a list of different entries"),
        ({"shares": 0.5}, r"shares is 0\.5; it must be a list"),
        ({"kinds": ["restor"]}, r"kinds entry is 'restor'; it must be one of restore, .* \(did you mean 'restore'\?\)"),
        ({"rankings": ["size"]}, "rankings entry is 'size'; it must be one of activation, relative, conductance"),
        ({"draws": 1}, "draws is 1; it must be a whole number at least 2"),
        ({"replicates": 10}, "replicates is 10"),
        ({"images_at_once": 0}, "images_at_once is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"layers": ["9"]}, "no layer matches '9' in Sequential; it has '0', '1', '2', '3'"),
        ({"attack": print}, "give one of attack and adversarial"),
        ({"adversarial": None}, "give one of attack and adversarial"),
        ({"adversarial": torch.zeros(3, 1, 8, 8)}, r"adversarial has shape \(3, 1, 8, 8\); it must be that of images"),
    ],
)
def test_what_is_refused(case, settings, message):
    net, images, labels, adversarial = case
    with pytest.raises(InputError, match=message) as caught:
        intervene(net, images, labels, **{"adversarial": adversarial, **settings})
    assert "\n" not in str(caught.value)


def test_too_few_images(case):
    net, images, labels, _ = case
    attack = GradientAttack(epsilon=0.12, steps=2)
    with pytest.raises(InputError, match="19 images are too few for two halves.* interventions need 20 or more"):
        intervene(net, images[:19], labels[:19], attack=attack)
    intervene(net, images[:20], labels[:20], attack=attack, layers=["5"], **SETTINGS)


def test_where_nothing_is_fooled(case):
    net, images, labels, _ = case
    with pytest.raises(
        InputError, match="none of the 35 tested images that are right is fooled by the attack: nothing"
    ):
        intervene(net, images, labels, adversarial=images, layers=["5"], **SETTINGS)
    effects = intervene(net, images, labels, adversarial=images, layers=["5"], kinds=ALL_KINDS, **SETTINGS)
    assert set(effects.left_out) == {"restore", "corrupt"}
    assert effects.kinds() == ["mask_zero", "mask_mean"]
    wrong = (labels + 1) % 4
    with torch.no_grad():
        wrong = (net(images).argmax(1) + 1) % 4
    with pytest.raises(InputError, match="none of the 40 tested images is right without the attack"):
        intervene(net, images, wrong, adversarial=images, layers=["5"], kinds=["mask_zero"], **SETTINGS)


@pytest.mark.slow
def test_columns_of_the_rows_are_plain(effects, tmp_path):
    from nsr.interventions.report import write_effects

    write_effects(tmp_path, effects, settings={"seed": 0})
    with (tmp_path / "interventions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(effects.rows)
    for written, each in zip(rows, effects.rows, strict=True):
        for name, value in asdict(each).items():
            assert written[name] == ("" if value is None else str(value)), name
